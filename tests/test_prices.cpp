// What a unit's basis, spread and prices are made of: prices.h over samples that are known.
#include "calibrate/prices.h"

#include "backends.h"
#include "calibration_lab.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

constexpr int TOKENS = 500, WIDE = 16;

// One layer of one kv head whose keys and values have different spreads in every coordinate, as
// have their gradients; `shift` is added to every row of both. All are multiples of 2⁻¹⁰, so that
// the shift loses nothing.
PriceSamples samples(float shift) {
    Config config;
    config.L = 1, config.G = 1, config.d = WIDE;
    PriceSamples all(Units(config, false), TOKENS, 1, "");
    Random random(5);
    for (size_t u = 0; u < 2; u++)
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t i = 0; i < WIDE; i++) {
                size_t at = t * WIDE + i;
                double spread = std::pow(1.4, double((3 * i + u) % WIDE) - 8);
                all.k(u)[at] = float(std::round(1024 * spread * random.normal()) / 1024) + shift;
                all.g_of_age(u, 0)[at] = float(std::pow(1.2, double(i)) * random.normal());
            }
    return all;
}

double off(const std::vector<double>& a, const std::vector<double>& b) {
    Floats x(a.begin(), a.end());
    return nmse(x.data(), b.data(), b.size());
}
double off(const Floats& a, const Floats& b) {
    return nmse(a.data(), Doubles(b.begin(), b.end()).data(), b.size());
}

}  // namespace

TEST_CASE("what all keys of a head have in common costs no bits") {
    PriceSamples plain = samples(0), moved = samples(8);
    PricedUnit a = price_unit(plain, 0, true, DType::F16), b = price_unit(moved, 0, true, DType::F16);
    REQUIRE(a.mean.size() == WIDE);
    REQUIRE(b.mean.size() == WIDE);
    for (size_t i = 0; i < WIDE; i++) CHECK(std::fabs(b.mean[i] - a.mean[i] - 8) <= 8 * 0x1p-23);
    // μ is rounded to float once more: 2⁻²⁴ of 8 in rows of 2⁻⁴ at least.
    constexpr double ROUNDED = 0x1p-34;
    CHECK(off(b.spread, a.spread) <= ROUNDED);
    CHECK(off(b.encode, a.encode) <= ROUNDED);
    CHECK(off(b.compressed.noise, a.compressed.noise) <= ROUNDED);
    CHECK(off(b.compressed.dropped, a.compressed.dropped) <= ROUNDED);
    Choices of_a = formats_of(a, a.age[0], DType::F16), of_b = formats_of(b, b.age[0], DType::F16);
    REQUIRE(of_a.size() == of_b.size());
    for (size_t i = 0; i < of_a.size(); i++) CHECK(of_a[i].format == of_b[i].format);
}

TEST_CASE("values, and keys that are cut by rank alone, keep what they have in common") {
    PriceSamples moved = samples(8);
    CHECK(price_unit(moved, 1, true, DType::F16).mean.empty());
    CHECK(price_unit(moved, 0, false, DType::F16).mean.empty());
}

TEST_CASE("coordinates of coded keys have unit spread about their mean, and E D = I") {
    PriceSamples moved = samples(3);
    PricedUnit unit = price_unit(moved, 0, true, DType::F16);
    for (size_t i = 0; i < WIDE; i++) {
        double square = 0;
        for (size_t t = 0; t < TOKENS; t++) {
            double c = 0;
            for (size_t j = 0; j < WIDE; j++)
                c += double(moved.k(0)[t * WIDE + j] - unit.mean[j]) * double(unit.encode[j * WIDE + i]);
            square += c * c / TOKENS;
        }
        CHECK(std::fabs(square - 1) <= 1e-5);  // E is in f32: 2⁻²⁴ of each of 16 terms
        for (size_t j = 0; j < WIDE; j++) {
            double one = 0, size = 0;
            for (size_t m = 0; m < WIDE; m++) {
                double x = double(unit.encode[i * WIDE + m]) * double(unit.decode[m * WIDE + j]);
                one += x, size += std::fabs(x);
            }
            CHECK(std::fabs(one - (i == j)) <= 1e-6 * size);
        }
    }
}

TEST_CASE("a unit that was turned is priced again in the order of its coordinates") {
    PriceSamples all = samples(3);
    PricedUnit unit = price_unit(all, 0, true, DType::F16), turned = unit;
    Matrix Q = unit.Q;
    for (size_t i = 0; i < WIDE; i++) std::swap(Q(i, 0), Q(i, 5));
    turned.turn_to(Q);
    price_again(turned, all, 0, DType::F16);
    auto swapped = [](std::vector<double> x) { return std::swap(x[0], x[5]), x; };
    REQUIRE(turned.age.size() == unit.age.size());
    CHECK(off(turned.compressed.noise, swapped(unit.compressed.noise)) <= TOL_F32);
    CHECK(off(turned.compressed.dropped, swapped(unit.compressed.dropped)) <= TOL_F32);
    CHECK(off(turned.age[0].noise, turned.compressed.noise) <= TOL_F32);
    std::vector<float> weight = weights_of(turned);
    CHECK(weight[5] == 1);  // of the dearest
    CHECK(weight[0] < 1);
}

TEST_SUITE_END();
