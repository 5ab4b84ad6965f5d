// What calibration asks of the CPU: the reference meaning of backward.h. Rows are shared out over
// the backend's threads; no result depends on how.
#pragma once
#include "backend/backward.h"
#include "backend/cpu/cpu_backend.h"

namespace stief {

struct CpuBackward final : Backward {
    CpuBackend& cpu;
    Threads& threads;
    std::vector<float> turned;   // (N, T), (N, K): a factor of a product, and the product
    std::vector<float> widened;  // (D)

    explicit CpuBackward(CpuBackend& of) : cpu(of), threads(of.threads) {}

    void causal_softmax(float* p, int T, int m, int S, int first, float scale) override;
    void causal_softmax_backward(float* dp, const float* p, const float* out, const float* dout,
                                 int T, int m, int S, int first, int d, float scale) override;
    void copy_distances(const Scores& to, const Scores& from, int T, int m, int first, int lo,
                        int hi, bool zero_others) override;
    void swiglu_backward(float* dgate, float* dup, const float* dh, const float* gate,
                         const float* up, int T, int F) override;
    void rmsnorm_backward(float* dx, const float* dz, const float* x, const Weight& w, float eps,
                          int T) override;
    void add_transposed_product(float* out, const float* a, const float* b, int T, int N,
                                int K) override;

    void round_rows(float* c, const float* weight, const RowFormat& format, DType dtype, int rows,
                    int d) override;
    void score_direction(float* z, uint64_t seed, int rows, int V) override;
    void divergence_gradient(float* z, const float* reference, int rows, int V) override;

    void zero(float* x, size_t n) override;
    void copy_rows(float* to, size_t to_stride, const float* from, size_t from_stride, size_t rows,
                   size_t width) override;
    void add(float* out, const float* x, size_t n) override;
    void scaled_difference(float* out, const float* a, const float* b, float scale,
                           size_t n) override;
    double squared_norm(const float* x, size_t n) override;
    double squared_distance(const float* a, const float* b, size_t n) override;
    void add_grams(std::span<const Gram> all) override;

    void cayley(std::span<const Turn> all) override;
};

}  // namespace stief
