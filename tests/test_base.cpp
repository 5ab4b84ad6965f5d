// The base floor: 16-bit floats against arithmetic in double, the generator, errors.
#include <cmath>
#include <cstring>

#include "base/arena.h"
#include "base/bf16.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/shape.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// A binary format by its definition: numbers m · 2^(e − bits) with |m| < 2^(bits+1), e ≥ lowest.
struct Format {
    int mantissa_bits, lowest, highest;

    // The nearest number of the format, ties to even m, in double, where every step is exact.
    double round(double x) const {
        if (x == 0 || !std::isfinite(x)) return x;
        int e = std::max(std::ilogb(x), lowest);
        double unit = std::ldexp(1.0, e - mantissa_bits);
        double rounded = std::nearbyint(x / unit) * unit;
        double largest = std::ldexp(2 - std::ldexp(1.0, -mantissa_bits), highest);
        return std::fabs(rounded) > largest ? std::copysign(INFINITY, x) : rounded;
    }

    // The value of a bit pattern: sign, exponent, mantissa.
    double value(uint16_t bits) const {
        int field = (bits & 0x7fff) >> mantissa_bits, m = bits & ((1 << mantissa_bits) - 1);
        int last = 0x7fff >> mantissa_bits;
        double magnitude = field == last ? (m ? NAN : INFINITY)
                         : field == 0    ? std::ldexp(m, lowest - mantissa_bits)
                                         : std::ldexp(m + (1 << mantissa_bits),
                                                      lowest + field - 1 - mantissa_bits);
        return bits & 0x8000 ? -magnitude : magnitude;
    }
};
constexpr Format BF16{7, -126, 127}, F16{10, -14, 15};

bool same(double a, double b) {
    return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

// Every pattern, the middle between it and the next, and the floats on both sides of that middle.
template <class T, class Convert>
int count_wrong(const Format& form, const Convert& convert) {
    int wrong = 0;
    for (uint32_t i = 0; i < 0x10000; i++) {
        T half{uint16_t(i)};
        float x = to_float(half);
        wrong += !same(x, form.value(half.bits));
        wrong += !same(to_float(convert(x)), x);
        if (!std::isfinite(x)) continue;
        float next = to_float(T{uint16_t(i + 1)});
        float middle = std::isfinite(next)
                           ? float((double(x) + next) / 2)
                           : float(x * (1 + std::ldexp(1.0, -form.mantissa_bits - 2)));
        for (float y : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 2 * middle)})
            wrong += !same(to_float(convert(y)), form.round(y));
    }
    Random random(7);
    for (int i = 0; i < 2'000'000; i++) {
        float x = std::bit_cast<float>(uint32_t(random.next()));
        wrong += !same(to_float(convert(x)), form.round(x));
    }
    return wrong;
}

}  // namespace

TEST_SUITE_BEGIN("base");

TEST_CASE("bf16 is what its definition says, for every pattern, middle and neighbour") {
    CHECK(count_wrong<bf16>(BF16, [](float x) { return to_bf16(x); }) == 0);
}

TEST_CASE("f16 is what its definition says, for every pattern, middle and neighbour") {
    CHECK(count_wrong<f16>(F16, [](float x) { return to_f16(x); }) == 0);
}

TEST_CASE("16-bit floats keep signed zeros, infinities and NaN, and overflow to infinity") {
    CHECK(to_bf16(-0.0f).bits == 0x8000);
    CHECK(to_f16(-0.0f).bits == 0x8000);
    CHECK(to_f16(65519.99f).bits == 0x7bff);
    CHECK(to_f16(65520.0f).bits == 0x7c00);
    CHECK(to_f16(-1e30f).bits == 0xfc00);
    CHECK(to_bf16(3.4e38f).bits == 0x7f80);
    CHECK(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
    CHECK(std::isnan(to_float(to_f16(std::bit_cast<float>(0xff800001u)))));
}

TEST_CASE("the generator is splitmix64: its first numbers are those of the paper's authors") {
    Random random(1234567);
    CHECK(random.next() == 6457827717110365317u);
    CHECK(random.next() == 3203168211198807973u);
    CHECK(random.next() == 9817491932198370423u);
}

TEST_CASE("uniform numbers stay below 1, normal ones have mean 0 and variance 1") {
    Random random(1);
    const int n = 200'000;
    double sum = 0, squares = 0, highest = 0, lowest = 1;
    for (int i = 0; i < n; i++) {
        double z = random.normal(), u = random.uniform();
        sum += z, squares += z * z;
        highest = std::max(highest, u), lowest = std::min(lowest, u);
    }
    CHECK(highest < 1);
    CHECK(lowest >= 0);
    CHECK(std::fabs(sum / n) <= 4 / std::sqrt(n));                  // four standard errors
    CHECK(std::fabs(squares / n - 1) <= 4 * std::sqrt(2.0 / n));
    uint64_t largest = 0;
    for (int i = 0; i < 1000; i++) largest = std::max(largest, random.below(7));
    CHECK(largest == 6);
}

TEST_CASE("messages are formatted, also long ones, and shapes are shown as tuples") {
    std::string long_text(5000, 'x');
    CHECK(format("%s|%d", long_text.c_str(), 7) == long_text + "|7");
    CHECK_NOTHROW(check(true, "never"));
    CHECK_THROWS_WITH_AS(check(false, "%d of %s", 3, "four"), "3 of four", Error);
    CHECK_THROWS_WITH_AS(fail("100%%"), "100%", Error);
    CHECK(to_string(Shape{}) == "()");
    CHECK(to_string(Shape{512, 2048}) == "(512, 2048)");
}

TEST_CASE("an arena gives aligned arrays that do not overlap, and counts the same without memory") {
    const size_t sizes[] = {1, 64, 65, 0, 1000};
    std::vector<char> bytes(8192);
    char* begin = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes.data()) + 255) & ~255);
    Arena arena(begin), counting;
    char* end = begin;
    for (size_t n : sizes) {
        char* array = reinterpret_cast<char*>(arena.take<float>(n));
        CHECK(array >= end);
        CHECK((array - begin) % ptrdiff_t(Arena::ALIGNED) == 0);
        end = array + n * sizeof(float);
        CHECK(counting.take<float>(n) == nullptr);
        CHECK(counting.used == arena.used);
    }
    CHECK(begin + arena.used >= end);
}

TEST_CASE("a hash tells words, their order and their number apart") {
    auto of = [](const std::string& bytes) {
        Hash hash;
        hash.add_bytes(bytes.data(), bytes.size());
        return hash.value();
    };
    std::string text = "0123456789abcdefxyz";
    for (size_t i = 0; i < text.size(); i++)
        for (int bit = 0; bit < 8; bit++) {
            std::string other = text;
            other[i] = char(other[i] ^ (1 << bit));
            CHECK(of(other) != of(text));
        }
    CHECK(of(text) != of(text.substr(0, 18)));
    CHECK(of("12345678abcdefgh") != of("abcdefgh12345678"));
    CHECK(of("") != of(std::string(1, 0)));
}

TEST_SUITE_END();
