// Rotary position embedding (Su et al. 2021) on pairs (j, j + d/2), the layout of Hugging Face's
// Llama.
#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::rope(float* q, float* k, const float* rotation, int H, int G, int d,
                      const Step& step) {
    size_t half = size_t(d) / 2, heads = size_t(k ? H + G : H);
    for_rows(size_t(step.T), heads * size_t(d), [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            const float* angle = rotation + (size_t(step.pos) + t) * 2 * half;
            auto turn = [&](float* x, int count) {
                x += t * size_t(count) * size_t(d);
                for (int h = 0; h < count; h++, x += d) kernels.rotate(x, angle, half);
            };
            turn(q, H);
            if (k) turn(k, G);
        }
    });
}

}  // namespace stief
