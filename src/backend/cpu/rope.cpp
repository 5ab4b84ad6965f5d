// Rotary position embedding (Su et al. 2021) on pairs (j, j + d/2), the layout of Hugging Face's
// Llama.
#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::rope(float* x, const float* rotation, int heads, int d, const Step& step, bool back) {
    size_t width = size_t(d), half = width / 2, row = size_t(heads) * width;
    for_rows(size_t(step.T), row, [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            const float* angle = rotation + (size_t(step.pos) + t) * width;
            if (back) {    // cos −a = cos a, sin −a = −sin a
                float* turned = reinterpret_cast<float*>(thread_scratch(width * sizeof(float)));
                std::copy(angle, angle + half, turned);
                for (size_t j = half; j < width; j++) turned[j] = -angle[j];
                angle = turned;
            }
            float* head = x + t * row;
            for (int h = 0; h < heads; h++, head += width) kernels.rotate(head, angle, half);
        }
    });
}

}  // namespace stief
