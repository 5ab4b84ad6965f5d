// What products read besides float32: a norm on its way, and activations that are kept as they take
// them. Every backend, against reference.h.
#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

TEST_CASE("a product takes the norm of x on its way, whatever the types and addresses") {
    for (int T : {1, 5})
        for (DType dtype : DTYPES)
            for (DType norm_dtype : {dtype, DType::F32})
                for (int K : {128, 130, 8200}) {
                    CAPTURE(std::string(name_of(dtype)));
                    CAPTURE(name_of(norm_dtype));
                    CAPTURE(K);
                    constexpr int N = 21;
                    double eps = double(1e-2f);
                    Floats x = normals(size_t(T * K), 23);
                    Elements norm(normals(size_t(K), 24), norm_dtype);
                    Elements w(normals(size_t(N * K), 25), dtype);
                    Doubles normed, want;
                    for (int t = 0; t < T; t++) {
                        const float* row = x.data() + t * K;
                        double mean = 0;
                        for (int i = 0; i < K; i++) mean += double(row[i]) * double(row[i]) / K;
                        for (int i = 0; i < K; i++)
                            normed.push_back(double(row[i]) * norm.values[size_t(i)] /
                                             std::sqrt(mean + eps));
                    }
                    for (int t = 0; t < T; t++)
                        for (int j = 0; j < N; j++) {
                            double sum = 0;
                            for (int i = 0; i < K; i++)
                                sum += normed[size_t(t * K + i)] * w.values[size_t(j * K + i)];
                            want.push_back(sum);
                        }
                    for (bool exact : {true, false})
                        check_everywhere(want, product_tolerance(exact, T, dtype), {},
                                         [&](Lab& lab, float* out) {
                                             Output scratch(lab, size_t(T * K));
                                             Weight weight = lab.weight(norm, K, 1);
                                             Input input(lab.in(x), weight, 1e-2f, scratch.data());
                                             lab.backend->exact = exact;
                                             lab.backend->matmul(out, input, lab.weight(w, N, K), T,
                                                                 false);
                                             CHECK(scratch.guarded());
                                         });
                }
}

TEST_CASE("what only products read may be kept as they take it, and is the same to their rounding") {
    constexpr int K = 40, N = 9;
    for (int T : {1, 3})
        for (int F : {24, 5000})   // the second is longer than a block's turn
            for (DType dtype : DTYPES) {
                CAPTURE(std::string(name_of(dtype)));
                CAPTURE(F);
                Floats x = normals(size_t(T * K), 26);
                for (float& one : x) one *= 0.2f;
                Elements w_gate(normals(size_t(F * K), 27), dtype);
                Elements w_up(normals(size_t(F * K), 28), dtype);
                Elements w_down(normals(size_t(N * F), 29), dtype);
                Doubles hidden = reference::matmul(x, w_gate.values, T, F, K), want;
                Doubles up = reference::matmul(x, w_up.values, T, F, K);
                for (size_t i = 0; i < hidden.size(); i++)
                    hidden[i] *= up[i] / (1 + std::exp(-hidden[i]));
                for (int t = 0; t < T; t++)
                    for (int j = 0; j < N; j++) {
                        double sum = 0;
                        for (int i = 0; i < F; i++)
                            sum += hidden[size_t(t * F + i)] * w_down.values[size_t(j * F + i)];
                        want.push_back(sum);
                    }
                // x, gate and up are rounded in the first products, the hidden row in the second: four
                // independent errors of TOL_ROUNDED, silu at most doubles that of its argument.
                auto tolerance = [=](const Lab& lab) {
                    return 8 * product_tolerance(false, T, dtype)(lab);
                };
                check_everywhere(want, tolerance, {}, [&](Lab& lab, float* out) {
                    Output gate(lab, size_t(T * F)), scratch(lab, size_t(T * F));
                    Operand kept(gate.data(), dtype);
                    lab.backend->gated(kept, scratch.data(), lab.in(x), lab.weight(w_gate, F, K),
                                       lab.weight(w_up, F, K), T);
                    lab.backend->matmul(out, kept, lab.weight(w_down, N, F), T, false);
                    CHECK(gate.guarded());
                    CHECK(scratch.guarded());
                });
            }
}

TEST_SUITE_END();
