// What the table of inner loops promises beyond the seam: e^x to 2 units in the last place,
// conversions to the last bit, and the AMX product, whose instructions most machines do not have.
#include "backend/cpu/amx_tiles.h"
#include "backend/cpu/kernels.h"
#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

static std::vector<const Kernels*> all_kernels() {
    std::vector<const Kernels*> tables;
    for (const std::string& isa : cpu_isas()) tables.push_back(&choose_kernels(isa.c_str()));
    return tables;
}

TEST_CASE("e^x is right to 2 units in the last place over the whole range") {
    for (const Kernels* kernels : all_kernels()) {
        CAPTURE(kernels->name);
        Floats x;
        for (float one = -87; one < 88.7f; one += 0.00137f) x.push_back(one);
        Floats y = x;
        kernels->exp_sum(y.data(), y.size(), 0);
        double worst = 0;
        for (size_t i = 0; i < x.size(); i++) {
            double want = std::exp(double(x[i])),
                   ulp = double(std::nextafter(float(want), INFINITY)) - double(float(want));
            worst = std::max(worst, std::abs(double(y[i]) - want) / ulp);
        }
        CHECK(worst <= 2);
    }
}

TEST_CASE("e^x at its ends: 0 far down, subnormals on the way, infinity far up, NaN for NaN") {
    const struct { float x, want, slack; } cases[] = {
        {-INFINITY, 0, 0}, {-1e30f, 0, 0}, {-104, 0, 0},   {0, 1, 0},
        {-95, 5.5210821e-42f, 3e-45f},     {89, INFINITY, 0}, {INFINITY, INFINITY, 0},
    };
    for (const Kernels* kernels : all_kernels()) {
        CAPTURE(kernels->name);
        for (auto c : cases) {
            CAPTURE(c.x);
            float x[] = {c.x, NaN};
            kernels->exp_sum(x, 2, 0);
            CHECK((x[0] == c.want || std::abs(x[0] - c.want) <= c.slack));
            CHECK(std::isnan(x[1]));
        }
    }
}

TEST_CASE("the sum of e^x is of what was written, tails included") {
    for (const Kernels* kernels : all_kernels())
        for (size_t n : {1, 3, 16, 33, 257}) {
            CAPTURE(kernels->name);
            CAPTURE(n);
            Floats x = normals(n, 70);
            double got = double(kernels->exp_sum(x.data(), n, 0.5f)), sum = 0;
            for (float one : x) sum += double(one);
            CHECK(std::abs(got - sum) <= 1e-6 * sum);
        }
}

TEST_CASE("conversions from and to 16 bits agree with bf16.h for all values") {
    for (const Kernels* kernels : all_kernels())
        for (DType dtype : {DType::F16, DType::BF16}) {
            CAPTURE(kernels->name);
            CAPTURE(std::string(name_of(dtype)));
            std::vector<uint16_t> bits(65536), back(65536);
            for (size_t i = 0; i < bits.size(); i++) bits[i] = uint16_t(i);
            Floats wide(bits.size());
            kernels->widen[int(dtype)](wide.data(), bits.data(), bits.size());
            kernels->narrow[int(dtype)](back.data(), wide.data(), wide.size());
            int wrong = 0, not_kept = 0;
            for (size_t i = 0; i < bits.size(); i++) {
                uint16_t one = bits[i];
                float want = dtype == DType::F16 ? to_float(f16{one}) : to_float(bf16{one});
                bool nan = std::isnan(want);
                wrong += nan ? !std::isnan(wide[i]) : !(wide[i] == want);
                not_kept += nan ? (back[i] & 0x7fff) <= (dtype == DType::F16 ? 0x7c00 : 0x7f80)
                                : back[i] != one;
            }
            CHECK(wrong == 0);
            CHECK(not_kept == 0);
        }
}

TEST_CASE("rounding to 16 bits agrees with bf16.h between its values") {
    Floats x;
    Random random(71);
    for (int i = 0; i < 40000; i++) x.push_back(std::bit_cast<float>(uint32_t(random.next())));
    for (uint32_t tie = 0; tie < 4096; tie++) {
        x.push_back(std::bit_cast<float>(0x3f800000u + tie * 0x1000u));
        x.push_back(std::bit_cast<float>(0x33000000u + tie * 0x4321u));  // f16's subnormals
    }
    for (const Kernels* kernels : all_kernels())
        for (DType dtype : {DType::F16, DType::BF16}) {
            CAPTURE(kernels->name);
            CAPTURE(std::string(name_of(dtype)));
            std::vector<uint16_t> got(x.size());
            kernels->narrow[int(dtype)](got.data(), x.data(), x.size());
            int wrong = 0;
            for (size_t i = 0; i < x.size(); i++)
                if (!std::isnan(x[i]))
                    wrong +=
                        got[i] != (dtype == DType::F16 ? to_f16(x[i]).bits : to_bf16(x[i]).bits);
            CHECK(wrong == 0);
        }
}

// The meaning of AMX's instructions as loops (Intel's manual, volume 2), with its rules checked: a
// register is used with the rows and bytes that it was configured for.
struct PlainTiles {
    static inline TileConfig config;
    static inline float tile[8][16][16];

    static void configure(const TileConfig& wanted) {
        config = wanted;
        for (auto& one : tile) std::fill(&one[0][0], &one[0][0] + 256, NaN);
    }
    static void release() { config = {}; }
    template <int C>
    static void used() {
        REQUIRE(config.palette == 1);
        REQUIRE((config.rows[C] >= 1 && config.rows[C] <= 16));
        REQUIRE((config.row_bytes[C] >= 4 && config.row_bytes[C] <= 64));
    }
    template <int C>
    static void zero() {
        used<C>();
        std::memset(tile[C], 0, sizeof tile[C]);
    }
    template <int C>
    static void load(const void* from, size_t row_bytes) {
        zero<C>();
        for (int i = 0; i < config.rows[C]; i++)
            std::memcpy(tile[C][i], static_cast<const char*>(from) + size_t(i) * row_bytes,
                        config.row_bytes[C]);
    }
    template <int C>
    static void store(void* to, size_t row_bytes) {
        used<C>();
        for (int i = 0; i < config.rows[C]; i++)
            std::memcpy(static_cast<char*>(to) + size_t(i) * row_bytes, tile[C][i],
                        config.row_bytes[C]);
    }
    static float half(float pair, int which) {
        return to_float(bf16{uint16_t(std::bit_cast<uint32_t>(pair) >> 16 * which)});
    }
    template <int C, int A, int B>
    static void multiply() {
        used<C>(), used<A>(), used<B>();
        REQUIRE(config.rows[A] == config.rows[C]);
        REQUIRE(config.row_bytes[B] == config.row_bytes[C]);
        REQUIRE(config.row_bytes[A] == 4 * config.rows[B]);
        for (int i = 0; i < config.rows[C]; i++)
            for (int j = 0; j < config.row_bytes[C] / 4; j++)
                for (int l = 0; l < config.rows[B]; l++)
                    for (int which : {0, 1})
                        tile[C][i][j] += half(tile[A][i][l], which) * half(tile[B][l][j], which);
    }
};

TEST_CASE("the AMX product on plain loops is the product") {
    const struct { int T, n, k; bool add; const char* why; } cases[] = {
        {32, 32, 64, false, "four whole tiles"}, {16, 16, 32, true, "one tile"},
        {1, 1, 32, false, "one token, one output"}, {17, 17, 96, true, "one past a tile both ways"},
        {70, 32, 32, true, "three steps of tokens, the last of six"}, {33, 5, 64, false, "narrow"},
        {33, 70, 64, true, "three panels, the last of six outputs"},
    };
    const Kernels& packer = choose_kernels(cpu_isas().front().c_str());
    for (auto c : cases) {
        if (packer.lanes != 32) return skip("only panels of 32 outputs are AMX's");
        CAPTURE(c.why);
        size_t T = size_t(c.T), n = size_t(c.n), k = size_t(c.k);
        Elements x(normals(T * k, 72), DType::BF16), w(normals(n * k, 73), DType::BF16);
        Floats rounded(x.values.begin(), x.values.end()), before = normals(T * n, 74);
        Doubles want = reference::matmul(rounded, w.values, c.T, c.n, c.k);
        for (size_t i = 0; c.add && i < want.size(); i++) want[i] += double(before[i]);
        std::vector<char> panel((n + 31) / 32 * 32 * k * 2);
        for (size_t j = 0; j < n; j += 32)
            packer.pack_pairs(panel.data() + j * k * 2, w.data() + j * k * 2, k,
                              int(std::min<size_t>(32, n - j)), c.k);
        Lab lab({"cpu", {.name = "cpu"}, 1, {}});
        Output out(lab, T * n, c.add ? before : Floats());
        AmxProduct<PlainTiles>::run(out.data(), n, x.data(), k * 2, panel.data(), c.T, c.n, c.k,
                                    c.add);
        CHECK(out.guarded());
        CHECK(nmse(out.data(), want.data(), want.size()) <= TOL_F32);
    }
}

TEST_SUITE_END();
