// The parts of the layer loss that are no matrix products: each forward beside its way back. A dz
// is ∂Δ/∂z. Rows are shared out over the threads; no result depends on how.
#pragma once
#include "backend/backend.h"

namespace stief {

// p_t ← softmax(p_t scale) over the first visible entries of row t = (token, head), 0 elsewhere:
// visible = first + t / m + 1                                             causal, m heads a token
void causal_softmax(Threads& threads, float* p,  // (T·m, S)
                    int T, int m, int S, int first, float scale);
// dS = scale · P ⊙ (dP − rowsum(dP ⊙ P)),  rowsum(dP ⊙ P) = dO · O
void causal_softmax_backward(Threads& threads, float* dp,  // (T·m, S)  in: dP, out: dS
                             const float* p,               // (T·m, S)
                             const float* out,             // (T·m, d)  O = P V
                             const float* dout,            // (T·m, d)  dO
                             int T, int m, int S, int first, int d, float scale);

// For h = silu(gate) ⊙ up, σ = 1 / (1 + e^−gate):
//     dgate = dh ⊙ up ⊙ σ (1 + gate (1 − σ)),  dup = dh ⊙ silu(gate)
void swiglu_backward(Threads& threads, float* dgate,  // (T, F)
                     float* dup,                      // (T, F)
                     const float* dh, const float* gate, const float* up, int T, int F);

// For z = x ⊙ w ρ, ρ = 1 / √(mean(x²) + ε):
//     dx += ρ w ⊙ dz − x ρ³/D Σ_j dz_j w_j x_j
void rmsnorm_backward(Threads& threads, float* dx,      // (T, D)
                      const float* dz, const float* x,  // (T, D)
                      const float* w,                   // (D)
                      float eps, int T, int D);

// The rotation of Backend::rope by minus the angle: its transpose.
void rope_backward(Threads& threads, float* x,  // (T, heads, d)  in place
                   const float* rotation, int heads, int d, const Step& step);

void widen(float* out, const Weight& vector);  // (N) of any dtype, to float
double squared_norm(Threads& threads, const float* x, size_t n);
double squared_distance(Threads& threads, const float* a, const float* b, size_t n);
// out = scale (a − b)
void scaled_difference(Threads& threads, float* out, const float* a, const float* b, float scale,
                       size_t n);
void add_to(Threads& threads, float* out, const float* x, size_t n);  // out += x

}  // namespace stief
