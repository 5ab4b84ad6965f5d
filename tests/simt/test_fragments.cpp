// Tensor cores, ldmatrix and cp.async as the harness plays them, against products in double. The
// places of fragments are those of PTX's tables, element by element: i counts the elements of a
// lane.
#include <cstring>
#include <sstream>

#include "device_memory.h"
#include "fragment_tables.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

struct Place {
    int row, column;
};

// Where each element of each lane lies, read from a table of fragment_tables.h.
struct Places {
    Place place[32][8];
    Places(const char* table, int columns) {
        std::istringstream in(table);
        std::string entry;
        for (int at = 0; in >> entry; at++) {
            size_t dot = entry.find('.');
            place[std::stoi(entry)][std::stoi(entry.substr(dot + 1))] = {at / columns,
                                                                         at % columns};
        }
    }
    Place operator()(int lane, int i) const { return place[lane][i]; }
};
const Places a16(A_16X16, 16), b16(B_16X8, 8), c(C_16X8, 8);

// (M, N) of normal numbers, rounded as E is.
struct Numbers {
    int columns;
    std::vector<float> x;
    Numbers(int M, int N, uint64_t seed, float (*round)(float))
        : columns(N), x(normal_floats(size_t(M * N), seed)) {
        for (float& one : x) one = round(one);
    }
    float operator()(Place p) const { return x[size_t(p.row * columns + p.column)]; }
};

template <class E>
float rounded(float x) {
    return to_float(to_element<E>(x));
}

// D = C + A B by one warp, each lane's fragments filled by `fill`, against the same in double.
template <class Multiply>
void check_mma(const Numbers& A, const Numbers& B, Multiply multiply) {
    Numbers C(16, 8, 3, rounded<float>);
    std::vector<float> got(16 * 8, NaN);
    simt::play(dim3(1), 32, 768, [&] {
        int lane = int(threadIdx.x);
        float d[4];
        for (int i = 0; i < 4; i++) d[i] = C(c(lane, i));
        multiply(d, lane);
        for (int i = 0; i < 4; i++) got[size_t(c(lane, i).row * 8 + c(lane, i).column)] = d[i];
    });
    std::vector<double> want;
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            want.push_back(double(C({m, n})));
            for (int k = 0; k < 16; k++) want.back() += double(A({m, k})) * double(B({k, n}));
        }
    CHECK(nmse(got, want) <= TOL_F32);
}

template <class E>
void check_mma_halves() {
    Numbers A(16, 16, 1, rounded<E>), B(16, 8, 2, rounded<E>);
    check_mma(A, B, [&](float(&d)[4], int lane) {
        uint32_t a[4], b[2];
        for (int i = 0; i < 4; i++) a[i] = pack2<E>(A(a16(lane, 2 * i)), A(a16(lane, 2 * i + 1)));
        for (int i = 0; i < 2; i++) b[i] = pack2<E>(B(b16(lane, 2 * i)), B(b16(lane, 2 * i + 1)));
        mma_16x8x16<E>(d, a, b);
    });
    // The same fragments through shared memory: A's rows plain, B's rows transposed.
    check_mma(A, B, [&](float(&d)[4], int lane) {
        E* shared = reinterpret_cast<E*>(dynamic_shared());
        E* rows = shared + 16 * 16;
        for (int i = lane; i < 256; i += 32) shared[i] = to_element<E>(A.x[size_t(i)]);
        for (int i = lane; i < 128; i += 32) rows[i] = to_element<E>(B.x[size_t(i)]);
        __syncwarp();
        uint32_t a[4], b[2];
        load_matrix_x4(a, shared + lane % 16 * 16 + lane / 16 * 8);
        uint32_t twice[4];
        load_matrix_x4_transposed(twice, rows + lane % 16 * 8);
        for (int i = 0; i < 2; i++) b[i] = twice[i];
        mma_16x8x16<E>(d, a, b);
    });
}

}  // namespace

TEST_SUITE_BEGIN("simt");

TEST_CASE("mma_16x8x16 is a matrix product, element by element, in bf16 and f16") {
    simt::in_every_order([] {
        check_mma_halves<bf16>();
        check_mma_halves<f16>();
    });
}

TEST_CASE("each operand of a product reaches exactly its row and column") {
    for (int one = 0; one < 16 * 16; one++) {
        float A[256] = {}, B[128];
        A[one] = 1;
        for (int i = 0; i < 128; i++) B[i] = float(i);
        int wrong = 0;
        simt::play(dim3(1), 32, 0, [&] {
            int lane = int(threadIdx.x);
            auto at = [&](Place p) { return A[p.row * 16 + p.column]; };
            auto bt = [&](Place p) { return B[p.row * 8 + p.column]; };
            uint32_t a[4], b[2];
            float d[4] = {};
            for (int i = 0; i < 4; i++)
                a[i] = pack2<f16>(at(a16(lane, 2 * i)), at(a16(lane, 2 * i + 1)));
            for (int i = 0; i < 2; i++)
                b[i] = pack2<f16>(bt(b16(lane, 2 * i)), bt(b16(lane, 2 * i + 1)));
            mma_16x8x16<f16>(d, a, b);
            for (int i = 0; i < 4; i++) {
                Place p = c(lane, i);
                wrong += d[i] != (p.row == one / 16 ? float(one % 16 * 8 + p.column) : 0);
            }
        });
        REQUIRE(wrong == 0);
    }
}

TEST_CASE(
    "ldmatrix gives lane l the elements (l / 4, l % 4 * 2 ..) of each matrix, or transposed") {
    simt::in_every_order([] {
        int wrong = 0;
        simt::play(dim3(1), 64, 2 * 512, [&] {
            int lane = int(threadIdx.x) % 32;
            uint16_t* rows = reinterpret_cast<uint16_t*>(dynamic_shared()) + threadIdx.x / 32 * 256;
            // Element j of the row that lane i names is 8 i + j; rows lie in an order of their own.
            auto place = [](int i) { return i * 5 % 32 * 8; };
            for (int j = 0; j < 8; j++) rows[place(lane) + j] = uint16_t(8 * lane + j);
            __syncwarp();
            auto expect = [&](uint32_t got, int matrix, bool transposed) {
                for (int half = 0; half < 2; half++) {
                    int row = lane / 4, column = lane % 4 * 2 + half;
                    if (transposed) std::swap(row, column);
                    wrong += int(got >> 16 * half & 0xffffu) != 8 * (8 * matrix + row) + column;
                }
            };
            uint32_t four[4];
            load_matrix_x4(four, rows + place(lane));
            for (int i = 0; i < 4; i++) expect(four[i], i, false);
            load_matrix_x4_transposed(four, rows + place(lane));
            for (int i = 0; i < 4; i++) expect(four[i], i, true);
        });
        CHECK(wrong == 0);
    });
}

TEST_CASE("ldmatrix takes whole aligned rows of shared memory and nothing else") {
    uint32_t r[4];
    auto from = [&](size_t offset) {
        return [&r, offset] { load_matrix_x4(r, dynamic_shared() + offset); };
    };
    CHECK_NOTHROW(simt::play(dim3(1), 32, 64, from(48)));
    for (size_t offset : {8, 64, 56})
        CHECK_THROWS_WITH_AS(simt::play(dim3(1), 32, 64, from(offset)),
                             doctest::Contains("ldmatrix"), Error);
}

TEST_CASE("movmatrix gives each lane its elements of the transpose") {
    simt::in_every_order([] {
        int wrong = 0;
        simt::play(dim3(1), 64, 0, [&] {
            int lane = int(threadIdx.x) % 32;
            auto number = [&](Place p) { return uint32_t(p.row * 8 + p.column); };
            auto turned = [&](Place p) { return uint32_t(p.column * 8 + p.row); };
            uint32_t got = transpose_8x8(number(c(lane, 0)) | number(c(lane, 1)) << 16);
            wrong += got != (turned(c(lane, 0)) | turned(c(lane, 1)) << 16);
        });
        CHECK(wrong == 0);
    });
}

TEST_CASE("bytes, bits and places, as the instructions are described") {
    // prmt: nibble 3 of the selector is the highest byte; 8 and above: the byte's sign, eight times.
    CHECK(permute_bytes(0x33221100u, 0x77665544u, 0x7610) == 0x77661100u);
    CHECK(permute_bytes(0x33221100u, 0x77665544u, 0x4140) == 0x44114400u);
    CHECK(permute_bytes(0x33229100u, 0x77665584u, 0xffff'98c9) == 0xff00ffffu);
    CHECK(select_bits(0x12345678u, 0xabcdef01u, 0x00ff00f0u) == 0x12cd5608u);
    CHECK(funnel_right(0x89abcdefu, 0x01234567u, 0) == 0x89abcdefu);
    CHECK(funnel_right(0x89abcdefu, 0x01234567u, 8) == 0x6789abcdu);
    CHECK(funnel_right(0x89abcdefu, 0x01234567u, 36) == 0x789abcdeu);
    CHECK(lowest_bit(0) == -1);
    CHECK(lowest_bit(0x50) == 4);
    CHECK(power_of_two(-3) == 0.125f);
    CHECK(power_of_two(-130) == 0);
    // f16: 2048 + 1 · 1 is not there: to even. (1 + 3/2^10)² − 1 is rounded once, and not its square before.
    auto both = [](float x) { return pack2<f16>(x, -x); };
    CHECK(multiply2(both(3), both(0.5f)) == pack2<f16>(1.5f, 1.5f));
    CHECK(multiply_add2(both(1), pack2<f16>(1, 1), both(2048)) == both(2048));
    constexpr float NEAR = 1 + 3.0f / 1024;
    CHECK(multiply_add2(both(NEAR), pack2<f16>(NEAR, NEAR), both(-1)) == both(6.0f / 1024 + 2.0f / 262144));
    CHECK(negate2(both(2)) == both(-2));
    CHECK(subtract2<f16>(both(1152), both(1024)) == both(128));
    CHECK(subtract2<bf16>(pack2<bf16>(1.5f, 2), pack2<bf16>(2, 1.5f)) == pack2<bf16>(-0.5f, 0.5f));
    // first + ⌊count · min(max(x y + 1/2, 0), 1)⌋
    CHECK(place_of(0, 3, 200, 7) == 107);
    CHECK(place_of(0.25f, 1, 100, 0) == 75);
    CHECK(place_of(-2, 1, 100, 5) == 5);
    CHECK(place_of(2, 1, 100, 5) == 105);
    CHECK(place_of(NaN, 1, 100, 5) == 5);
    CHECK(float_of(-7) == -7);
}

TEST_CASE("registers of two elements, low first; 16-byte loads") {
    CHECK(pack2<bf16>(1.0f, -2.0f) == 0xc0003f80u);
    CHECK(pack2<f16>(1.0f, -2.0f) == 0xc0003c00u);
    float2 pair = unpack2<f16>(pack2<f16>(0.5f, 3.0f));
    CHECK(pair.x == 0.5f);
    CHECK(pair.y == 3.0f);
    DeviceMemory<bf16> memory(24);
    for (size_t i = 0; i < 24; i++) memory.data[i] = to_bf16(float(i));
    float x[8];
    unpack<bf16>(x, load_16(memory.data + 8));
    for (int i = 0; i < 8; i++) CHECK(x[i] == float(8 + i));
    CHECK_THROWS_WITH_AS(load_16(memory.data + 1), doctest::Contains("not aligned"), Error);
    CHECK_THROWS_WITH_AS(load_16(memory.data + 24), doctest::Contains("past the end"), Error);
}

// ---- asynchronous copies ----------------------------------------------------------------------

// 32 threads copy 16 bytes each, twice; WAIT: how many groups may be unfinished when they are read.
template <int WAIT>
static std::vector<float> copied(bool first, bool second) {
    DeviceMemory<float> x(normal_floats(256, 1)), out(2 * 128);
    simt::play(dim3(1), 32, 1024, [&] {
        char* mine = dynamic_shared() + threadIdx.x * 16;
        copy_async_16(mine, x.data + threadIdx.x * 4, first);
        copy_async_commit();
        copy_async_16(mine + 512, second ? x.data + 128 + threadIdx.x * 4 : nullptr, second);
        copy_async_commit();
        copy_async_wait<WAIT>();
        std::memcpy(out.data + threadIdx.x * 4, mine, 16);
        std::memcpy(out.data + 128 + threadIdx.x * 4, mine + 512, 16);
    });
    return out.values();
}

TEST_CASE("an asynchronous copy has arrived once it is waited for; where not valid it is zero") {
    std::vector<float> want = normal_floats(256, 1);
    CHECK(copied<0>(true, true) == want);
    std::fill(want.begin() + 128, want.end(), 0.0f);
    CHECK(copied<0>(true, false) == want);
}

TEST_CASE("broken on purpose: an asynchronous copy that was not waited for is NaN") {
    std::vector<float> want = normal_floats(256, 1), got = copied<1>(true, true);
    CHECK(std::equal(got.begin(), got.begin() + 128, want.begin()));
    for (size_t i = 128; i < 256; i++) REQUIRE(std::isnan(got[i]));
    for (float x : copied<2>(true, true)) REQUIRE(std::isnan(x));
}

TEST_CASE("an asynchronous copy checks both of its ends") {
    DeviceMemory<float> x(8);
    auto copy = [&](size_t to, size_t from) {
        simt::play(dim3(1), 1, 32,
                   [&] { copy_async_16(dynamic_shared() + to, x.data + from, true); });
    };
    CHECK_NOTHROW(copy(16, 4));
    CHECK_THROWS_WITH_AS(copy(24, 4), doctest::Contains("cp.async"), Error);
    CHECK_THROWS_WITH_AS(copy(32, 4), doctest::Contains("cp.async"), Error);
    CHECK_THROWS_WITH_AS(copy(16, 5), doctest::Contains("not aligned"), Error);
    CHECK_THROWS_WITH_AS(copy(16, 8), doctest::Contains("past the end"), Error);
}

TEST_SUITE_END();
