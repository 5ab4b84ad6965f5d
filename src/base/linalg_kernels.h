// The loops that src/base/linalg*.cpp spend their time in, two doubles at a time: 128-bit vectors
// are in every x86-64 and aarch64, so that none has to be chosen. Private to these files.
#pragma once
#include <cstddef>
#include <cstring>

namespace stief::kernels {

typedef double Pair __attribute__((vector_size(16)));

inline Pair load(const double* x) {
    Pair p;
    std::memcpy(&p, x, sizeof p);  // unaligned: rows of odd width start anywhere
    return p;
}
inline void store(double* x, Pair p) {
    std::memcpy(x, &p, sizeof p);
}

// y ← y + a x
inline void axpy(double* y, const double* x, double a, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        store(y + i, load(y + i) + a * load(x + i));
        store(y + i + 2, load(y + i + 2) + a * load(x + i + 2));
    }
    for (; i < n; i++) y[i] += a * x[i];
}

// (x, y) ← (c x − s y, s x + c y)
inline void rotate(double* x, double* y, double c, double s, size_t n) {
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        Pair a = load(x + i), b = load(y + i);
        store(x + i, c * a - s * b);
        store(y + i, s * a + c * b);
    }
    for (; i < n; i++) {
        double a = x[i], b = y[i];
        x[i] = c * a - s * b;
        y[i] = s * a + c * b;
    }
}

// Element (i, j) is at[i · row + j · column]: a matrix, its transpose, a block of either.
template <class T>
struct View {
    const T* at;
    size_t row, column;
};

// C ← C + scale · A B,  C (m, n) with rows stride doubles apart, A (m, k), B (k, n)
void gemm(double* C, size_t stride, double scale, View<double> A, View<double> B, size_t m,
          size_t n, size_t k);

}  // namespace stief::kernels
