// The second seam: what calibration asks of a backend beside backend.h. The parts of a decoder
// layer's way there and back that are no product with a weight, sums over activations, and the
// retraction of its bases (calibrate/README.md §2 and §3). A dz is ∂Δ/∂z.
//
// Pointers are the backend's memory except where a comment says host. Sums are the same in every
// run: their order never depends on threads or on what else a device does.
#pragma once
#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/row_format.h"
#include "base/linalg.h"

namespace stief {

// sum ← sum + AᵀB, in double.
struct Gram {
    Matrix* sum;         // host  (d, d)
    const float *A, *B;  // (rows, d)
    int rows, d;
};

// Something for each of T·m queries and each of `count` keys from the key `first` on.
struct Scores {
    float* data;  // (T·m, count)
    int first, count;
};

// Q ← (I + τ/2 W)⁻¹ (I − τ/2 W) Q for a skew W.
struct Turn {
    Matrix* Q;        // host  (d, d)
    const Matrix* W;  // host  (d, d)
    double tau;
};

struct Backward {
    virtual ~Backward() = default;

    // ---- there and back
    // p_t ← softmax(p_t scale) over the first visible entries of row t = (token, head), 0
    // elsewhere; causal, m heads a token: visible = first + t / m + 1
    virtual void causal_softmax(float* p,  // (T·m, S)
                                int T, int m, int S, int first, float scale) = 0;
    // dS = scale · P ⊙ (dP − rowsum(dP ⊙ P)),  rowsum(dP ⊙ P) = dO · O
    virtual void causal_softmax_backward(float* dp,          // (T·m, S)  in: dP, out: dS
                                         const float* p,     // (T·m, S)
                                         const float* out,   // (T·m, d)  O = P V
                                         const float* dout,  // (T·m, d)  dO
                                         int T, int m, int S, int first, int d, float scale) = 0;
    // to_ts ← from_ts where lo ≤ (first + t / m) − s < hi and both have key s; other entries of
    // `to` are zeroed or left. The two may be the same.
    virtual void copy_distances(const Scores& to, const Scores& from, int T, int m, int first,
                                int lo, int hi, bool zero_others) = 0;
    // For h = silu(gate) ⊙ up, σ = 1 / (1 + e^−gate):
    //     dgate = dh ⊙ up ⊙ σ (1 + gate (1 − σ)),  dup = dh ⊙ silu(gate)
    virtual void swiglu_backward(float* dgate, float* dup,            // (T, F) ×2
                                 const float* dh,                     // (T, F)
                                 const float* gate, const float* up,  // (T, F) ×2
                                 int T, int F) = 0;
    // For z = x ⊙ w ρ, ρ = 1 / √(mean(x²) + ε):
    //     dx += ρ w ⊙ dz − x ρ³/D Σ_j dz_j w_j x_j
    virtual void rmsnorm_backward(float* dx,                        // (T, D)
                                  const float* dz, const float* x,  // (T, D) ×2
                                  const Weight& w,                  // (D)
                                  float eps, int T) = 0;
    // out += aᵀ b: the gradient of a product's second factor
    virtual void add_transposed_product(float* out,      // (N, K)
                                        const float* a,  // (T, N)
                                        const float* b,  // (T, K)
                                        int T, int N, int K) = 0;

    // What a cache of that format makes of rows in its basis: c ← unpack(pack(c)), and 0 where
    // nothing is stored.
    virtual void round_rows(float* c,             // (rows, d)  in place
                            const float* weight,  // host  (kept)  as pack_row takes it, or null
                            const RowFormat& format, DType dtype, int rows, int d) = 0;
    // A direction with the covariance of the model's own score, E[zᵀz] = diag(p) − pᵀp, for
    // p = softmax(z) and signs ξ ∈ {−1, 1} of the seed (score_sign):
    //     z_i ← √p_i (ξ_i − √p_i Σ_j ξ_j √p_j)
    virtual void score_direction(float* z,  // (rows, V)  in place: logits
                                 uint64_t seed, int rows, int V) = 0;
    // ∂KL(p ‖ softmax(z))/∂z for p = softmax(reference):  z ← softmax(z) − p
    virtual void divergence_gradient(float* z,  // (rows, V)  in place: logits
                                     const float* reference,  // (rows, V)
                                     int rows, int V) = 0;

    // ---- copies and sums
    virtual void zero(float* x, size_t n) = 0;
    // Rows of `width` floats, strides apart: one head's columns of (T, H, d) and back. from_stride may be
    // 0: the same row again and again.
    virtual void copy_rows(float* to, size_t to_stride, const float* from, size_t from_stride,
                           size_t rows, size_t width) = 0;
    virtual void add(float* out, const float* x, size_t n) = 0;  // out += x
    // out = scale (a − b)
    virtual void scaled_difference(float* out, const float* a, const float* b, float scale,
                                   size_t n) = 0;
    virtual double squared_norm(const float* x, size_t n) = 0;  // in double
    virtual double squared_distance(const float* a, const float* b, size_t n) = 0;
    virtual void add_grams(std::span<const Gram> all) = 0;

    // ---- the bases
    // Turns are independent: all at once.
    virtual void cayley(std::span<const Turn> all) = 0;

    void copy(float* to, const float* from, size_t n) { copy_rows(to, n, from, n, 1, n); }
};

// ξ of score_direction: bit i % 64 of one number of the stream of the seed and the row.
constexpr uint64_t score_signs(uint64_t seed, uint64_t row, uint64_t word) {
    uint64_t z = seed + (row << 32 | word) * 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Of the same kind as the backend, which outlives it and whose memory and order of work it shares.
std::unique_ptr<Backward> make_backward(Backend& backend);

// Host memory of any dtype, to float.
void widen(float* out, const Weight& vector);  // (N)

}  // namespace stief
