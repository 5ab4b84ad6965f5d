// Rotary position embedding (Su et al. 2021) on pairs (j, j + d/2), the layout of Hugging Face's
// Llama. Twin: src/backend/cpu/rope.cpp.
#include "cuda_backend.h"

namespace stief {

constexpr int ROPE_BLOCK = 256;

// grid (T, pieces of ROPE_BLOCK · EACH pairs), block 256: a thread turns EACH pairs beside each other,
// SIGN = −1: back. It reads all it turns before it writes any of it. EACH = 4: half is a multiple of 4,
// and everything at multiples of 16 bytes.
template <int EACH, int SIGN>
__global__ void __launch_bounds__(ROPE_BLOCK)
    rope_kernel(float* x, const float* rotation, const int* pos, int heads, int half) {
    size_t t = blockIdx.x, d = 2 * size_t(half);
    int i = (int(blockIdx.y) * ROPE_BLOCK + int(threadIdx.x)) * EACH;
    if (i >= heads * half) return;
    int j = i % half;
    const float* angle = rotation + (size_t(*pos) + t) * d + j;
    x += (t * size_t(heads) + size_t(i / half)) * d + size_t(j);
    if constexpr (EACH == 4) {
        float4 *low = reinterpret_cast<float4*>(x), a = *low;
        float4 *high = reinterpret_cast<float4*>(x + half), b = *high;
        float4 cos = load_4(angle), sin = load_4(angle + half);
        turn_pair(a.x, b.x, cos.x, SIGN * sin.x), turn_pair(a.y, b.y, cos.y, SIGN * sin.y);
        turn_pair(a.z, b.z, cos.z, SIGN * sin.z), turn_pair(a.w, b.w, cos.w, SIGN * sin.w);
        *low = a, *high = b;
    } else {
        float low = x[0], high = x[half];
        turn_pair(low, high, angle[0], SIGN * angle[half]);
        x[0] = low, x[half] = high;
    }
}

void CudaBackend::rope(float* x, const float* rotation, int heads, int d, const Step& step, bool back) {
    bool whole = d % 8 == 0 && whole_4(x) && whole_4(rotation);
    int each = ROPE_BLOCK * (whole ? 4 : 1), pieces = (heads * (d / 2) + each - 1) / each;
    auto kernel = back ? (whole ? rope_kernel<4, -1> : rope_kernel<1, -1>)
                       : (whole ? rope_kernel<4, 1> : rope_kernel<1, 1>);
    launch(kernel, dim3(unsigned(step.T), unsigned(pieces)), ROPE_BLOCK, 0, queue, x, rotation, pos, heads,
           d / 2);
}

}  // namespace stief
