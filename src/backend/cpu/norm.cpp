// RMSNorm: out = x ⊙ w / √(mean(x²) + ε)  (Zhang and Sennrich 2019).
#include <cmath>

#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::rmsnorm(float* out, const float* x, const Weight& w, float eps, int T) {
    size_t D = size_t(w.N);
    for_rows(size_t(T), D, [&](size_t first, size_t end) {
        float* weight = reinterpret_cast<float*>(thread_scratch(D * sizeof(float)));
        kernels.widen[int(w.dtype)](weight, w.data, D);
        for (size_t t = first; t < end; t++) {
            const float* row = x + t * D;
            double sum[4] = {};  // double: the square of one outlier among 8,192 must lose nothing
            for (size_t i = 0; i < D; i++) sum[i % 4] += double(row[i]) * double(row[i]);
            double mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / double(D);
            float factor = float(1.0 / std::sqrt(mean + double(eps)));
            for (size_t i = 0; i < D; i++) out[t * D + i] = row[i] * factor * weight[i];
        }
    });
}

}  // namespace stief
