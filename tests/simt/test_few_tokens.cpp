// What test_singly.cpp is too small to meet on a device: results whose sums do not fit at once.
#include "backends.h"
#include "cuda_backend.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("simt");

TEST_CASE("products of a few tokens whose slices' sums come in pieces are the same") {
    constexpr int T = 9, N = 150, K = 1100;
    Floats x = normals(size_t(T * K), 1);
    Elements a(normals(size_t(N * K), 2), DType::BF16), b(normals(size_t(N * K), 3), DType::BF16);
    for (const Variant& variant : variants()) {
        CAPTURE(variant.group);
        Lab lab(variant);
        CudaBackend& gpu = static_cast<CudaBackend&>(*lab.backend);
        gpu.singly = true;
        Weight first = lab.weight(a, N, K), second = lab.weight(b, N, K);
        const float* in = lab.in(x);
        std::vector<Floats> results;
        for (size_t most : {gpu.most_sums, size_t(7000), size_t(1)}) {    // all rows, 43 of 300, one
            gpu.most_sums = most;
            Output one(lab, T * N), other(lab, T * N);
            Projection both[] = {{one.data(), first}, {other.data(), second}};
            gpu.matmul(both, in, T, false);
            Floats all = one.values();
            for (float y : other.values()) all.push_back(y);
            results.push_back(all);
        }
        CHECK(same_bits(results[0], results[1]));
        CHECK(same_bits(results[0], results[2]));
    }
}

TEST_SUITE_END();
