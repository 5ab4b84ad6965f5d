// Rotary position embedding (Su et al. 2021) on pairs (j, j + d/2), the layout of Hugging Face's
// Llama. Twin: src/backend/cpu/rope.cpp.
#include "cuda_backend.h"

namespace stief {

constexpr int ROPE_BLOCK = 256;

// grid (T, pieces of ROPE_BLOCK · EACH pairs), block 256: a thread turns EACH pairs beside each
// other, of q's heads and then of k's. It reads all it turns before it writes any of it. EACH = 4:
// half is a multiple of 4, and everything at multiples of 16 bytes.
template <int EACH>
__global__ void __launch_bounds__(ROPE_BLOCK)
    rope_kernel(float* q, float* k, const float* rotation, const int* pos, int H, int G, int half) {
    size_t t = blockIdx.x, d = 2 * size_t(half);
    int i = (int(blockIdx.y) * ROPE_BLOCK + int(threadIdx.x)) * EACH;
    if (i >= (H + G) * half) return;
    const float* angle = rotation + (size_t(*pos) + t) * d;
    int h = i / half, j = i % half;
    float* x =
        h < H ? q + (t * size_t(H) + size_t(h)) * d : k + (t * size_t(G) + size_t(h - H)) * d;
    if constexpr (EACH == 4) {
        float4 *low = reinterpret_cast<float4*>(x + j), a = *low;
        float4 *high = reinterpret_cast<float4*>(x + j + half), b = *high;
        float4 cos = load_4(angle + j), sin = load_4(angle + j + half);
        *low = make_float4(a.x * cos.x - b.x * sin.x, a.y * cos.y - b.y * sin.y,
                           a.z * cos.z - b.z * sin.z, a.w * cos.w - b.w * sin.w);
        *high = make_float4(b.x * cos.x + a.x * sin.x, b.y * cos.y + a.y * sin.y,
                            b.z * cos.z + a.z * sin.z, b.w * cos.w + a.w * sin.w);
    } else {
        float a = x[j], b = x[j + half], cos = angle[j], sin = angle[j + half];
        x[j] = a * cos - b * sin;
        x[j + half] = b * cos + a * sin;
    }
}

void CudaBackend::rope(float* q, float* k, const float* rotation, int H, int G, int d,
                       const Step& step) {
    if (!k) G = 0;
    bool whole = d % 8 == 0 && whole_4(q) && whole_4(k) && whole_4(rotation);
    int each = ROPE_BLOCK * (whole ? 4 : 1), pieces = ((H + G) * (d / 2) + each - 1) / each;
    launch(whole ? rope_kernel<4> : rope_kernel<1>, dim3(unsigned(step.T), unsigned(pieces)),
           ROPE_BLOCK, 0, queue, q, k, rotation, pos, H, G, d / 2);
}

}  // namespace stief
