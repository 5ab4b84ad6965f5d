// calibrate/README.md §2, all but its products with weights. Twin: cuda/backward.cu.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backward.h"
#include "backend/cpu/vectors.h"
#include "base/bf16.h"

namespace stief {

using namespace vectors;

static void softmax_row(const Kernels& kernels, float* p, size_t visible, size_t S, float scale) {
    kernels.scale(p, visible, scale);
    float total = kernels.exp_sum(p, visible, kernels.largest(p, visible));
    kernels.scale(p, visible, 1 / total);
    std::fill(p + visible, p + S, 0.0f);
}

void CpuBackward::causal_softmax(float* p, int T, int m, int S, int first, float scale) {
    cpu.for_rows(size_t(T) * size_t(m), size_t(S), [&](size_t from, size_t to) {
        for (size_t row = from; row < to; row++)
            softmax_row(cpu.kernels, p + row * size_t(S), size_t(first) + row / size_t(m) + 1, size_t(S),
                        scale);
    });
}

void CpuBackward::causal_softmax_backward(float* dp, const float* p, const float* out,
                                          const float* dout, int T, int m, int S, int first, int d,
                                          float scale) {
    size_t width_d = size_t(d), width_S = size_t(S);
    cpu.for_rows(size_t(T) * size_t(m), width_S, [&](size_t from, size_t to) {
        for (size_t row = from; row < to; row++) {
            size_t visible = size_t(first) + row / size_t(m) + 1;
            double inner = 0;
            for (size_t i = 0; i < width_d; i++)
                inner += double(out[row * width_d + i]) * double(dout[row * width_d + i]);
            float shift = float(inner);
            float* ds = dp + row * width_S;
            const float* weight = p + row * width_S;
            by_fours(visible, [&](size_t s, size_t width) {
                store(ds + s, load(weight + s, width) * (load(ds + s, width) - shift) * scale,
                      width);
            });
            std::fill(ds + visible, ds + width_S, 0.0f);
        }
    });
}

void CpuBackward::copy_distances(const Scores& to, const Scores& from, int T, int m, int first,
                                 int lo, int hi, bool zero_others) {
    size_t wide = size_t(to.count);
    cpu.for_rows(size_t(T) * size_t(m), wide, [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; row++) {
            int query = first + int(row) / m;  // sees keys query − hi + 1 … query − lo at lo … hi − 1
            int near = std::max(to.first, from.first);
            int far = std::min(to.first + to.count, from.first + from.count);
            if (hi <= query) near = std::max(near, query - hi + 1);
            far = std::max(near, std::min(far, query - lo + 1));
            float* out = to.data + row * wide;
            const float* in = from.data + row * size_t(from.count);
            if (zero_others) {
                std::fill(out, out + std::min(near - to.first, to.count), 0.0f);
                std::fill(out + std::min(far - to.first, to.count), out + wide, 0.0f);
            }
            if (out + (near - to.first) != in + (near - from.first))
                std::copy(in + (near - from.first), in + (far - from.first), out + (near - to.first));
        }
    });
}

void CpuBackward::swiglu_backward(float* dgate, float* dup, const float* dh, const float* gate,
                                  const float* up, int T, int F) {
    cpu.for_rows(size_t(T), size_t(F), [&](size_t from, size_t to) {
        size_t begin = from * size_t(F);
        by_fours((to - from) * size_t(F), [&](size_t j, size_t width) {
            size_t i = begin + j;
            const Four zero = {};
            Four z = load(gate + i, width), h = load(dh + i, width);
            Four sigma = 1.0f / (1.0f + exp(zero - z));
            store(dgate + i, h * load(up + i, width) * sigma * (1.0f + z * (1.0f - sigma)), width);
            store(dup + i, h * z * sigma, width);
        });
    });
}

void CpuBackward::rmsnorm_backward(float* dx, const float* dz, const float* x, const Weight& weight,
                                   float eps, int T) {
    size_t n = size_t(weight.N);
    widened.resize(n);
    widen(widened.data(), weight);
    const float* w = widened.data();
    cpu.for_rows(size_t(T), n, [&](size_t from, size_t to) {
        for (size_t t = from; t < to; t++) {
            const float *xt = x + t * n, *dzt = dz + t * n;
            double squares = 0, inner = 0;  // double: as in the forward norm
            for (size_t i = 0; i < n; i++) {
                squares += double(xt[i]) * double(xt[i]);
                inner += double(dzt[i]) * double(w[i]) * double(xt[i]);
            }
            double rho = 1 / std::sqrt(squares / double(n) + double(eps));
            float along = float(rho * rho * rho * inner / double(n)), factor = float(rho);
            by_fours(n, [&](size_t i, size_t width) {
                Four straight = load(dzt + i, width) * load(w + i, width) * factor;
                Four back = straight - load(xt + i, width) * along;
                store(dx + t * n + i, load(dx + t * n + i, width) + back, width);
            });
        }
    });
}

// visit(i, j) of all (rows, columns), some rows together: a matrix and its transpose both stay in the
// caches.
template <class Visit>
static void each_of(size_t rows, size_t columns, const Visit& visit) {
    constexpr size_t TOGETHER = 16;
    for (size_t first = 0; first < rows; first += TOGETHER)
        for (size_t j = 0, end = std::min(rows, first + TOGETHER); j < columns; j++)
            for (size_t i = first; i < end; i++) visit(i, j);
}

// outᵀ = bᵀ a through the backend's product: calibration's b is the narrow factor, so that its
// transpose is the cheap one.
void CpuBackward::add_transposed_product(float* out, const float* a, const float* b, int T, int N,
                                         int K) {
    size_t t = size_t(T), n = size_t(N), k = size_t(K);
    turned.resize((t + n) * k);
    float *left = turned.data(), *product = turned.data() + t * k;
    each_of(t, k, [&](size_t i, size_t j) { left[j * t + i] = b[i * k + j]; });
    cpu.matmul_transposed(product, left, {a, DType::F32, T, N}, K);  // (K, N)
    each_of(n, k, [&](size_t i, size_t j) { out[i * k + j] += product[j * n + i]; });
}

void widen(float* out, const Weight& vector) {
    const char* from = static_cast<const char*>(vector.data);
    for (size_t i = 0; i < size_t(vector.N); i++) {
        uint16_t bits = 0;
        if (vector.dtype == DType::F32)
            std::memcpy(out + i, from + 4 * i, 4);
        else
            std::memcpy(&bits, from + 2 * i, 2);
        if (vector.dtype == DType::BF16) out[i] = to_float(bf16{bits});
        if (vector.dtype == DType::F16) out[i] = to_float(f16{bits});
    }
}

}  // namespace stief
