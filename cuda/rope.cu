// Rotary position embedding (Su et al. 2021) on pairs (j, j + d/2), the layout of Hugging Face's
// Llama. Twin: src/backend/cpu/rope.cpp.
#include "cuda_backend.h"

namespace stief {

// grid T, block 256: a thread turns pairs of its token's heads, first q's and then k's.
__global__ void rope_kernel(float* q, float* k, const float* rotation, const int* pos, int H, int G,
                            int half) {
    size_t t = blockIdx.x, d = 2 * size_t(half);
    const float* angle = rotation + (size_t(*pos) + t) * d;
    for (int i = int(threadIdx.x); i < (H + G) * half; i += int(blockDim.x)) {
        int h = i / half, j = i % half;
        float* x =
            h < H ? q + (t * size_t(H) + size_t(h)) * d : k + (t * size_t(G) + size_t(h - H)) * d;
        float a = x[j], b = x[j + half], cos = angle[j], sin = angle[j + half];
        x[j] = a * cos - b * sin;
        x[j + half] = b * cos + a * sin;
    }
}

void CudaBackend::rope(float* q, float* k, const float* rotation, int H, int G, int d,
                       const Step& step) {
    launch(rope_kernel, dim3(unsigned(step.T)), 256, 0, queue, q, k, rotation, pos, H, k ? G : 0,
           d / 2);
}

}  // namespace stief
