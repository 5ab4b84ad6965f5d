// Keys before rotation: rebuilt, turned and scored, on every instruction set, against the
// definition in double.
#include "backend/cpu/rebuilt_keys.h"
#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

// What rebuilt_keys.h leaves out of each term, at most 2⁻¹⁴ of it: squared.
constexpr double TOL_PAIRS = 0x1p-28;

static std::vector<const Kernels*> all_kernels() {
    std::vector<const Kernels*> tables;
    for (const std::string& isa : cpu_isas()) tables.push_back(&choose_kernels(isa.c_str()));
    return tables;
}

// Runs operation on every instruction set: what is rebuilt is the CPU's own.
static void check_on_cpus(const Doubles& want, double tolerance,
                          const std::function<void(Backend&, float*)>& operation) {
    for (const Variant& variant : variants()) {
        if (variant.device()) continue;
        CAPTURE(variant.group);
        CAPTURE(variant.threads);
        Lab lab(variant);
        Output out(lab, want.size());
        operation(*lab.backend, out.data());
        CHECK(out.guarded());
        CHECK(nmse(out.data(), want.data(), want.size()) <= tolerance);
    }
}

TEST_CASE("scores are inner products for every rank, number of heads and of rows") {
    for (const Kernels* kernels : all_kernels())
        for (DType dtype : {DType::F32, DType::F16, DType::BF16})
            for (int r : {0, 1, 4, 8, 12, 16, 20, 32, 36, 64})
                for (int count : {1, 5, 16, 67, 130}) {
                    CAPTURE(kernels->name);
                    CAPTURE(r);
                    CAPTURE(count);
                    constexpr int m = 7;
                    Floats q = normals(size_t(m * 64), 80);
                    Elements rows(normals(size_t(count * r), 81), dtype);
                    Doubles want;
                    for (int h = 0; h < m; h++)
                        for (int s = 0; s < count; s++) {
                            double sum = 0;
                            for (int i = 0; i < r; i++)
                                sum += double(q[size_t(h * 64 + i)]) *
                                       rows.values[size_t(s * r + i)];
                            want.push_back(sum);
                        }
                    Lab lab({"cpu", {.name = "cpu"}, 1, {}});
                    Output out(lab, want.size());
                    kernels->scores[int(dtype)](out.data(), size_t(count), q.data(), 64,
                                                rows.data(), m, count, r);
                    CHECK(out.guarded());
                    CHECK(nmse(out.data(), want.data(), want.size()) <= TOL_F32);
                }
}

TEST_CASE("a row split in two bf16 is the row, to the last bit, for every finite f16 and bf16") {
    for (const Kernels* kernels : all_kernels())
        for (DType dtype : {DType::F16, DType::BF16}) {
            auto split = kernels->split[int(dtype)];
            if (!split) continue;
            CAPTURE(kernels->name);
            CAPTURE(std::string(name_of(dtype)));
            constexpr size_t r = 20, count = 65536 / r, stride = 64;
            std::vector<uint16_t> rows(r * count), parts(stride * count, 0x1234);
            for (size_t i = 0; i < rows.size(); i++) rows[i] = uint16_t(i);
            split(parts.data(), stride, rows.data(), int(count), int(r));
            int wrong = 0;
            for (size_t i = 0; i < rows.size(); i++) {
                const uint16_t* part = &parts[i / r * stride + i % r];
                float want = dtype == DType::F16 ? to_float(f16{rows[i]}) : to_float(bf16{rows[i]});
                float sum = to_float(bf16{part[0]}) + to_float(bf16{part[r]});
                wrong += std::isfinite(want) && (sum != want || part[0] != part[2 * r]);
                wrong += parts[i / r * stride + 3 * r] != 0x1234;
            }
            CHECK(wrong == 0);
        }
}

TEST_CASE("rows paired into a panel are the panel of their transpose") {
    const struct { int n, k; const char* why; } cases[] = {
        {32, 64, "whole"}, {1, 1, "one element"}, {17, 33, "tails"}, {20, 48, "half a step"}};
    for (const Kernels* kernels : all_kernels())
        for (auto c : cases) {
            if (!kernels->pair_rows) continue;
            CAPTURE(c.why);
            size_t lanes = size_t(kernels->lanes), n = size_t(c.n), k = size_t(c.k);
            Floats x = normals(n * k, 82), turned(n * k);
            for (size_t i = 0; i < k; i++)
                for (size_t j = 0; j < n; j++) turned[j * k + i] = x[i * n + j];
            Elements rows(x, DType::BF16), columns(turned, DType::BF16);
            std::vector<uint16_t> got(lanes * 64, 0x1234), want(lanes * 64, 0x1234);
            kernels->pair_rows(got.data(), rows.data(), n, c.n, c.k);
            kernels->pack_pairs(want.data(), columns.data(), k, c.n, c.k);
            CHECK(got == want);
        }
}

// x̃_s turned by position s: reference of rotate, in double.
static void turn(Doubles& x, const Floats& angle, size_t s) {
    size_t half = x.size() / 2;
    for (size_t j = 0; j < half; j++) {
        double a = x[j], b = x[j + half], cos = double(angle[s * 2 * half + j]),
               sin = double(angle[s * 2 * half + half + j]);
        x[j] = a * cos - b * sin, x[j + half] = b * cos + a * sin;
    }
}

TEST_CASE("turned scores are inner products with rotated rows") {
    for (const Kernels* kernels : all_kernels())
        for (int d : {2, 16, 20, 64, 128})
            for (int count : {1, 4, 39}) {
                CAPTURE(kernels->name);
                CAPTURE(d);
                CAPTURE(count);
                constexpr int m = 7;
                size_t width = size_t(d);
                Floats q = normals(m * width, 83), x = normals(size_t(count) * width, 84);
                Floats angle = normals(size_t(count) * width, 85);
                Doubles want(size_t(m * count));
                for (size_t s = 0; s < size_t(count); s++) {
                    Doubles row(x.begin() + long(s * width), x.begin() + long((s + 1) * width));
                    turn(row, angle, s);
                    for (size_t h = 0; h < m; h++)
                        for (size_t i = 0; i < width; i++)
                            want[h * size_t(count) + s] += double(q[h * width + i]) * row[i];
                }
                Lab lab({"cpu", {.name = "cpu"}, 1, {}});
                Output out(lab, want.size());
                kernels->turned_scores(out.data(), size_t(count), q.data(), width, x.data(),
                                       angle.data(), m, count, width / 2);
                CHECK(out.guarded());
                CHECK(nmse(out.data(), want.data(), want.size()) <= TOL_F32);
            }
}

TEST_CASE("rebuilt keys are c[:r] D[:r], to what two bf16 hold or to f32") {
    const struct { int d, r, count; const char* why; } cases[] = {
        {64, 16, 128, "a quarter, a whole block"}, {64, 4, 1, "the smallest rank, one key"},
        {64, 20, 37, "tails"},                     {64, 64, 128, "full rank"},
        {128, 32, 100, "wide heads"},              {128, 44, 17, "wide heads, tails"},
        {20, 12, 50, "a width of no vector"},      {64, 0, 9, "nothing kept"}};
    for (auto c : cases)
        for (DType dtype : {DType::F32, DType::F16, DType::BF16})
            for (bool exact : {true, false}) {
                CAPTURE(c.why);
                CAPTURE(std::string(name_of(dtype)));
                CAPTURE(exact);
                size_t d = size_t(c.d), r = size_t(c.r), count = size_t(c.count);
                Floats decode = normals(d * d + 64, 86);
                Elements rows(normals(count * r, 87), dtype);
                Doubles want(count * d);
                for (size_t s = 0; s < count; s++)
                    for (size_t i = 0; i < r; i++)
                        for (size_t j = 0; j < d; j++)
                            want[s * d + j] += rows.values[s * r + i] * double(decode[i * d + j]);
                CacheLayer layer{.dtype = dtype, .capacity = c.count, .H = 1, .G = 1, .d = c.d,
                                 .k = {}, .v = {}, .seen = {}, .rotated = false};
                layer.k.push_back(whole_rows(rows.data(), c.r, dtype));
                layer.k[0].decode = decode.data();
                bool pairs = !exact && dtype != DType::F32;
                check_on_cpus(want, pairs ? TOL_PAIRS : TOL_F32,
                              [&](Backend& backend, float* out) {
                                     backend.exact = exact;
                                     auto& cpu = dynamic_cast<CpuBackend&>(backend);
                                     cpu.prepare_keys(layer);
                                     std::vector<char> scratch(RebuiltKeys::bytes(cpu, layer, 0));
                                     RebuiltKeys keys(cpu, layer, 0, scratch.data());
                                     keys.rebuild(out, {0, c.count, static_cast<char*>(rows.data()),
                                                        layer.k[0].store[0]});
                                 });
            }
}

// Of codes: as integers, to PRODUCT_LOSS of what the codes have lost (twice: of so few rows), or, where
// there is a matrix unit, rounded to the cache's dtype.
TEST_CASE("keys rebuilt from rows of codes are products with what the codes stand for") {
    constexpr size_t d = 64, count = 101;
    CacheRows head;
    head.store[1].format.count = {4, 8, 8, 0, 16, 8, 8, 8};
    head.store[2].format.count = {0, 0, 0, 0, 8, 0, 16, 8};
    Floats decode = normals(d * d + 64, 97);
    head.decode = decode.data();
    for (DType dtype : {DType::F16, DType::BF16})
        for (size_t one : {1, 2})
            for (bool exact : {true, false}) {
                CAPTURE(std::string(name_of(dtype)));
                CAPTURE(one);
                CAPTURE(exact);
                std::vector<std::vector<char>> bytes;
                for (size_t i : {1, 2}) {
                    RowStore& store = head.store[i];
                    store.bytes = int(store.format.bytes(dtype));
                    bytes.emplace_back(count * size_t(store.bytes) + ROW_SLACK);
                    store.data = bytes.back().data();
                }
                RowStore& store = head.store[one];
                char* rows = bytes[one - 1].data();
                size_t r = size_t(store.format.kept());
                Floats c = normals(count * r, 98), read(r, NaN);
                Doubles want(count * d), unpacked(count * d);
                for (size_t s = 0; s < count; s++) {
                    char* row = rows + s * size_t(store.bytes);
                    pack_row(row, &c[s * r], nullptr, store.format, dtype);
                    unpack_row(read.data(), row, store.format, dtype);
                    for (size_t i = 0; i < r; i++)
                        for (size_t j = 0; j < d; j++) {
                            want[s * d + j] += double(read[i]) * double(decode[i * d + j]);
                            unpacked[s * d + j] += double(c[s * r + i]) * double(decode[i * d + j]);
                        }
                }
                double lost = nmse(want.data(), unpacked.data(), want.size());
                CacheLayer layer{.dtype = dtype, .capacity = int(count), .H = 1, .G = 1,
                                 .d = int(d), .k = {head}, .v = {head}, .seen = {},
                                 .rotated = false};
                double integers = TOL_PAIRS + 2 * double(PRODUCT_LOSS) * lost;
                double tolerance = std::max(integers, dtype == DType::F16 ? TOL_F16 : TOL_BF16);
                check_on_cpus(want, exact ? TOL_F32 : tolerance, [&](Backend& backend, float* out) {
                    backend.exact = exact;
                    auto& cpu = dynamic_cast<CpuBackend&>(backend);
                    cpu.prepare_rows(layer), cpu.prepare_keys(layer);
                    std::vector<char> scratch(RebuiltKeys::bytes(cpu, layer, 0));
                    RebuiltKeys keys(cpu, layer, 0, scratch.data());
                    keys.rebuild(out, {0, int(count), rows, layer.k[0].store[one]});
                    bool by_integers = cpu.kernels.coded_product && !cpu.kernels.split[int(dtype)];
                    double allowed = std::string(cpu.kernels.name) == "avx2" ? TOL_PAIRS : integers;
                    if (by_integers && !exact)
                        CHECK(nmse(out, want.data(), want.size()) <= allowed);
                });
            }
}

// A key that is off by 2⁻¹⁴ moves a score of size 1 by as much, and its weight with it.
TEST_CASE("attention over rebuilt keys is the exact one to what two bf16 hold") {
    constexpr int G = 2, H = 6, d = 64, r = 20, S = 700;
    Floats decode = normals(size_t(d * d + 64), 90), rotation;
    for (float& one : decode) one /= 8;
    for (int s = 0; s < S; s++)
        for (bool sine : {false, true})
            for (int j = 0; j < d / 2; j++) {
                double angle = s * std::pow(0.7, j);
                rotation.push_back(float(sine ? std::sin(angle) : std::cos(angle)));
            }
    for (DType dtype : {DType::F16, DType::BF16})
        for (int T : {1, 9}) {
            CAPTURE(std::string(name_of(dtype)));
            CAPTURE(T);
            CacheLayer layer{.dtype = dtype, .capacity = S, .H = H, .G = G, .d = d,
                             .k = {}, .v = {}, .seen = {}, .rotated = false};
            layer.seen.assign(G, Seen::all_of(0));
            std::vector<Elements> rows;
            for (int g = 0; g < 2 * G; g++)
                rows.emplace_back(normals(size_t(S * r), uint64_t(92 + g)), dtype);
            for (size_t g = 0; g < G; g++) {
                layer.k.push_back(whole_rows(rows[g].data(), r, dtype));
                layer.v.push_back(whole_rows(rows[G + g].data(), r, dtype));
                layer.k[g].decode = layer.v[g].decode = decode.data();
            }
            Floats q = normals(size_t(T * H * d), 96), exact(q.size());
            Threads threads(2);
            std::unique_ptr<Backend> reference = make_backend({.name = "cpu"}, threads);
            reference->exact = true;
            reference->attend(exact.data(), q.data(), rotation.data(), layer, {S - T, T});
            check_on_cpus(Doubles(exact.begin(), exact.end()),
                          T > 1 ? TOL_FOUR_ROUNDED : 4 * TOL_PAIRS,
                          [&](Backend& backend, float* out) {
                                 backend.attend(out, q.data(), rotation.data(), layer, {S - T, T});
                             });
        }
}

TEST_SUITE_END();
