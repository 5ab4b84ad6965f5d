// Products of the seam, alone and several together, against their definition in double.
#include <algorithm>

#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

TEST_CASE("matmul is x wᵀ for every shape, dtype and instruction set, exact and fast") {
    const struct { int T, N, K; const char* why; } cases[] = {
        {1, 1, 1, "the smallest"},
        {1, 7, 3, "shorter than any vector"},
        {1, 45, 70, "tails of rows and of columns"},
        {1, 300, 513, "several pieces, one past a vector"},
        {1, 3, 16392, "columns of more than 64 chunks in every dtype"},
        {1, 70000, 8, "more than a pass of rows in a block"},
        {2, 33, 32, "smallest tile, one output past a panel"},
        {2, 5, 1, "k of one: half a pair"},
        {7, 16, 31, "half a panel, odd k"},
        {12, 32, 64, "whole tiles only"},
        {13, 40, 129, "one token past a tile"},
        {17, 17, 95, "one token past an AMX tile"},
        {33, 65, 33, "one past two AMX tiles"},
        {70, 50, 1100, "more than one chunk of k"},
        {3, 130, 4100, "chunks of every set, few tokens"},
        {35, 1100, 300, "groups of panels, the last one narrow"},
    };
    for (auto c : cases)
        for (DType dtype : DTYPES)
            for (bool exact : {true, false})
                for (bool add : {false, true}) {
                    CAPTURE(c.why);
                    CAPTURE(std::string(name_of(dtype)));
                    CAPTURE(exact);
                    CAPTURE(add);
                    size_t T = size_t(c.T), N = size_t(c.N), K = size_t(c.K);
                    Floats x = normals(T * K, 1), before = add ? normals(T * N, 2) : Floats();
                    Elements w(normals(N * K, 3), dtype);
                    Doubles want = reference::matmul(x, w.values, c.T, c.N, c.K);
                    for (size_t i = 0; i < before.size(); i++) want[i] += double(before[i]);
                    check_everywhere(want, product_tolerance(exact, c.T, dtype), before,
                                     [&](Lab& lab, float* out) {
                                         lab.backend->exact = exact;
                                         lab.backend->matmul(out, lab.in(x),
                                                             lab.weight(w, c.N, c.K), c.T, add);
                                     });
                }
}

TEST_CASE("a token's product does not depend on the tokens beside it") {
    int T = 29, N = 70, K = 300;
    Floats x = normals(size_t(T * K), 4);
    Elements w(normals(size_t(N * K), 5), DType::BF16);
    for (const Variant& variant : groups()) {
        if (variant.device()) continue;   // cuBLAS chooses its order of summing by the shape
        CAPTURE(variant.group);
        Lab lab(variant);
        Weight bound = lab.weight(w, N, K);
        Output all(lab, size_t(T * N));
        lab.backend->matmul(all.data(), x.data(), bound, T, false);
        Floats rows = all.values();
        for (int t : {0, 11, 27}) {
            Output some(lab, size_t(2 * N));
            lab.backend->matmul(some.data(), x.data() + t * K, bound, 2, false);
            CHECK(same_bits(some.values(), {rows.begin() + t * N, rows.begin() + (t + 2) * N}));
        }
    }
}

TEST_CASE("matmul_transposed is x w, exact and fast") {
    const struct { int T, N, K; const char* why; } cases[] = {
        {1, 1, 1, "the smallest"},
        {1, 70, 45, "one token, tails of both"},
        {2, 31, 33, "odd n, one past a panel"},
        {13, 129, 40, "one token past a tile"},
        {7, 31, 16, "an odd sum"},
        {33, 33, 65, "one past AMX tiles"},
        {5, 1100, 50, "more than one chunk"},
        {33, 4100, 17, "chunks of every set, half a panel"},
    };
    for (auto c : cases)
        for (DType dtype : DTYPES)
            for (bool exact : {true, false}) {
                CAPTURE(c.why);
                CAPTURE(std::string(name_of(dtype)));
                CAPTURE(exact);
                size_t N = size_t(c.N), K = size_t(c.K);
                Floats x = normals(size_t(c.T) * N, 15);
                Elements w(normals(N * K, 16), dtype);
                Doubles turned(N * K);
                for (size_t i = 0; i < N * K; i++) turned[i % K * N + i / K] = w.values[i];
                check_everywhere(reference::matmul(x, turned, c.T, c.K, c.N),
                                 product_tolerance(exact, c.T, dtype), {},
                                 [&](Lab& lab, float* out) {
                                     lab.backend->exact = exact;
                                     lab.backend->matmul_transposed(
                                         out, lab.in(x), lab.weight(w, c.N, c.K), c.T);
                                 });
            }
}

TEST_CASE("gated is silu(x w_gateᵀ) ⊙ x w_upᵀ, one product after the other or both at once") {
    for (int T : {1, 5})
        for (DType dtype : DTYPES)
            for (auto [F, K] : {std::pair{3, 130}, {70, 130}, {5, 8200}}) {
                CAPTURE(std::string(name_of(dtype)));
                CAPTURE(F);
                CAPTURE(K);
                Floats x = normals(size_t(T * K), 17);
                for (float& one : x) one *= 2 / std::sqrt(float(K));
                // Sums of so many are as exact as one product may be, and silu(z) u has z's error 1 + |z|
                // times and u's: at |z| = 2, 3² + 1.
                double tolerance = K > 130 ? 10 * TOL_F32 : TOL_F32;
                Elements w_gate(normals(size_t(F * K), 18), dtype);
                Elements w_up(normals(size_t(F * K), 19), dtype);
                Doubles want = reference::matmul(x, w_gate.values, T, F, K);
                Doubles up = reference::matmul(x, w_up.values, T, F, K);
                for (size_t i = 0; i < want.size(); i++)
                    want[i] *= up[i] / (1 + std::exp(-want[i]));
                check_everywhere(want, tolerance, {}, [&](Lab& lab, float* out) {
                    Output scratch(lab, size_t(T * F));
                    lab.backend->exact = true;
                    lab.backend->gated(out, scratch.data(), lab.in(x), lab.weight(w_gate, F, K),
                                       lab.weight(w_up, F, K), T);
                    CHECK(scratch.guarded());
                });
            }
}

TEST_CASE("several products of one x are what each alone is") {
    int K = 96, N[] = {40, 7, 300};
    for (int T : {1, 3})
        for (DType dtype : DTYPES) {
            CAPTURE(std::string(name_of(dtype)));
            Floats x = normals(size_t(T * K), 20);
            std::vector<Elements> w;
            for (int n : N) w.emplace_back(normals(size_t(n * K), uint64_t(n)), dtype);
            for (const Variant& variant : groups()) {
                CAPTURE(variant.group);
                Lab lab(variant);
                std::vector<std::unique_ptr<Output>> alone, together;
                std::vector<Projection> all;
                for (size_t i = 0; i < 3; i++) {
                    Weight bound = lab.weight(w[i], N[i], K);
                    alone.push_back(std::make_unique<Output>(lab, size_t(T * N[i])));
                    together.push_back(std::make_unique<Output>(lab, size_t(T * N[i])));
                    all.push_back({together[i]->data(), bound});
                    lab.backend->matmul(alone[i]->data(), lab.in(x), bound, T, false);
                }
                lab.backend->matmul(all, lab.in(x), T, false);
                for (size_t i = 0; i < 3; i++) {
                    CHECK(together[i]->guarded());
                    CHECK(same_bits(together[i]->values(), alone[i]->values()));
                }
            }
        }
}

// A device gives each block some rows of all of them, and asks for four at a time.
TEST_CASE("products of one token go on at the end of one matrix and the beginning of the next") {
    for (const Variant& variant : groups()) {
        if (!variant.device()) continue;
        CAPTURE(variant.group);
        int wide = variant.slow ? 1024 : 2048;  // the others: rows of so many chunks that a lane has 2, and 8
        for (auto [K, dtype] : {std::pair{wide, DType::BF16}, {4100, DType::F32}, {8200, DType::F32}})
            for (int more = 0; more < 4; more++)  // wherever the end lies among the four
                for (int count : {2, 3}) {
                    CAPTURE(K);
                    CAPTURE(more);
                    CAPTURE(count);
                    bool few = variant.slow || K > wide;
                    int N[] = {(few ? 160 : 5000) + more, few ? 70 : 700, 95};
                    if (K > wide) N[0] = 21 + more, N[1] = 9, N[2] = 6;
                    Lab lab(variant);
                    Floats x = normals(size_t(K), 20);
                    std::vector<std::unique_ptr<Output>> alone, together;
                    std::vector<Projection> all;
                    for (int i = 0; i < count; i++) {
                        Elements w(normals(size_t(N[i] * K), uint64_t(i)), dtype);
                        Weight bound = lab.weight(w, N[i], K);
                        alone.push_back(std::make_unique<Output>(lab, size_t(N[i])));
                        together.push_back(std::make_unique<Output>(lab, size_t(N[i])));
                        all.push_back({together.back()->data(), bound});
                        lab.backend->matmul(alone.back()->data(), lab.in(x), bound, 1, false);
                    }
                    lab.backend->matmul(all, lab.in(x), 1, false);
                    for (size_t i = 0; i < size_t(count); i++) {
                        CHECK(together[i]->guarded());
                        CHECK(same_bits(together[i]->values(), alone[i]->values()));
                    }
                }
    }
}

TEST_SUITE_END();
