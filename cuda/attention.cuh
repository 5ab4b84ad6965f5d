// The two attentions behind CudaBackend::attend, and how one kernel is chosen for a call.
#pragma once
#include "cache_rows.cuh"

namespace stief {

// Decode: T = 1, everything included (attention.cu).
void attend_one(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                const CacheLayer& cache);

// Prefill: T > 1, q and out in the coordinates of the cache (attention_tiles.cu).
void attend_tiles(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                  const CacheLayer& cache, const Step& step);

// What one split of one query head found: after its keys  max = max s,  sum = Σ e^(s − max),
// acc = Σ e^(s − max) c  in latent coordinates. Without keys: −∞, 0, and acc is not written.
struct Partial {
    float* memory;  // (splits, H, d + 2)
    int H, d;
    __device__ float* of(int split, int h) const {
        return memory + (size_t(split) * size_t(H) + size_t(h)) * size_t(d + 2);
    }
};

}  // namespace stief
