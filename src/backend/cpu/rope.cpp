// Rotary position embedding (Su et al. 2021) on pairs (j, j + d/2), the layout of Hugging Face's
// Llama.
#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::rope(float* x, const float* rotation, int heads, int d, const Step& step) {
    size_t half = size_t(d) / 2, row = size_t(heads) * size_t(d);
    for_rows(size_t(step.T), row, [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            const float* angle = rotation + (size_t(step.pos) + t) * 2 * half;
            for (int h = 0; h < heads; h++)
                kernels.rotate(x + t * row + size_t(h) * size_t(d), angle, half);
        }
    });
}

}  // namespace stief
