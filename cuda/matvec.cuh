// One token through one or several matrices, or each of several as if it were alone (matvec.cu).
#pragma once
#include "cuda_backend.h"

namespace stief {

// out (+)= x wᵀ for each
void matvecs(CudaBackend& gpu, std::span<const Projection> all, const Input& x, int T, bool add);
// gate ← silu(x w_gateᵀ) ⊙ (x w_upᵀ), for weights of one dtype; up (T, N) may be used on the way
void gated_singly(CudaBackend& gpu, float* gate, float* up, const Input& x, const Weight& w_gate,
                  const Weight& w_up, int T);

}  // namespace stief
