// Matrix products: C += scale · A B from packed panels of 4 rows of A and 4 columns of B, a 4 x 4
// tile of C in registers (Goto and van de Geijn 2008, Anatomy of High-Performance Matrix
// Multiplication). Packing also turns floats into doubles and makes a transpose cost nothing.
#include <algorithm>
#include <cassert>

#include "base/linalg.h"
#include "base/linalg_kernels.h"

namespace stief {

using kernels::Pair;
using kernels::View;

namespace {

constexpr size_t TILE = 4;     // 4 x 4 doubles: 8 of the 16 vector registers of SSE2
constexpr size_t DEPTH = 256;  // a panel of A and one of B, 4 · 256 · 8 bytes each, stay in L1

// packed[p · 4 + i] = X[first + i][p], zero beyond the last row: tails run through the same kernel.
template <class T>
void pack(double* packed, View<T> X, size_t first, size_t rows, size_t depth) {
    size_t here = std::min(TILE, rows - first);
    for (size_t p = 0; p < depth; p++, packed += TILE) {
        const T* x = X.at + first * X.row + p * X.column;
        for (size_t i = 0; i < here; i++) packed[i] = double(x[i * X.row]);
        for (size_t i = here; i < TILE; i++) packed[i] = 0;
    }
}

// tile[i][j] = Σ_p a[p][i] b[p][j]
void multiply_panels(double* tile, const double* a, const double* b, size_t depth) {
    Pair c00{}, c01{}, c10{}, c11{}, c20{}, c21{}, c30{}, c31{};
    for (size_t p = 0; p < depth; p++, a += TILE, b += TILE) {
        Pair b0 = kernels::load(b), b1 = kernels::load(b + 2);
        c00 += a[0] * b0, c01 += a[0] * b1;
        c10 += a[1] * b0, c11 += a[1] * b1;
        c20 += a[2] * b0, c21 += a[2] * b1;
        c30 += a[3] * b0, c31 += a[3] * b1;
    }
    const Pair rows[8] = {c00, c01, c10, c11, c20, c21, c30, c31};
    for (size_t i = 0; i < 8; i++) kernels::store(tile + 2 * i, rows[i]);
}

template <class A, class B>
void gemm_any(double* C, size_t stride, double scale, View<A> a, View<B> b, size_t m, size_t n,
              size_t k) {
    size_t panels_a = (m + TILE - 1) / TILE, panels_b = (n + TILE - 1) / TILE;
    std::vector<double> packed_a(panels_a * TILE * std::min(k, DEPTH));
    std::vector<double> packed_b(panels_b * TILE * std::min(k, DEPTH));
    for (size_t p = 0; p < k; p += DEPTH) {
        size_t depth = std::min(DEPTH, k - p), panel = TILE * depth;
        View<A> a_block = {a.at + p * a.column, a.row, a.column};
        View<B> b_block = {b.at + p * b.row, b.column, b.row};  // transposed: columns are packed
        for (size_t i = 0; i < panels_a; i++)
            pack(&packed_a[i * panel], a_block, i * TILE, m, depth);
        for (size_t j = 0; j < panels_b; j++)
            pack(&packed_b[j * panel], b_block, j * TILE, n, depth);
        for (size_t i = 0; i < panels_a; i++)
            for (size_t j = 0; j < panels_b; j++) {
                double tile[TILE * TILE];
                multiply_panels(tile, &packed_a[i * panel], &packed_b[j * panel], depth);
                double* c = C + i * TILE * stride + j * TILE;
                size_t rows = std::min(TILE, m - i * TILE), cols = std::min(TILE, n - j * TILE);
                for (size_t y = 0; y < rows; y++)
                    for (size_t x = 0; x < cols; x++)
                        c[y * stride + x] += scale * tile[y * TILE + x];
            }
    }
}

View<double> plain(const Matrix& A) {
    return {A.data.data(), A.cols, 1};
}
View<double> transposed(const Matrix& A) {
    return {A.data.data(), 1, A.cols};
}

}  // namespace

void kernels::gemm(double* C, size_t stride, double scale, View<double> A, View<double> B, size_t m,
                   size_t n, size_t k) {
    gemm_any(C, stride, scale, A, B, m, n, k);
}

Matrix times(const Matrix& A, const Matrix& B) {
    assert(A.cols == B.rows);
    Matrix C(A.rows, B.cols);
    gemm_any(C.data.data(), C.cols, 1.0, plain(A), plain(B), A.rows, B.cols, A.cols);
    return C;
}

Matrix transposed_times(const Matrix& A, const Matrix& B) {
    assert(A.rows == B.rows);
    Matrix C(A.cols, B.cols);
    gemm_any(C.data.data(), C.cols, 1.0, transposed(A), plain(B), A.cols, B.cols, A.rows);
    return C;
}

Matrix times_transposed(const Matrix& A, const Matrix& B) {
    assert(A.cols == B.cols);
    Matrix C(A.rows, B.rows);
    gemm_any(C.data.data(), C.cols, 1.0, plain(A), transposed(B), A.rows, B.rows, A.cols);
    return C;
}

std::vector<float> times(const float* rows, size_t T, const Matrix& M) {
    constexpr size_t TOGETHER = 512;   // rows whose sums are in double
    std::vector<float> out;
    std::vector<double> sums;
    out.reserve(T * M.cols);
    for (size_t t = 0; t < T; t += TOGETHER) {
        size_t count = std::min(TOGETHER, T - t);
        sums.assign(count * M.cols, 0);
        View<float> some = {rows + t * M.rows, M.rows, 1};
        gemm_any(sums.data(), M.cols, 1.0, some, plain(M), count, M.cols, M.rows);
        out.insert(out.end(), sums.begin(), sums.end());
    }
    return out;
}

void add_gram(Matrix& C, const float* A, size_t stride_a, const float* B, size_t stride_b,
              size_t T) {
    assert(T <= 1 || (stride_a >= C.rows && stride_b >= C.cols));
    View<float> a = {A, 1, stride_a}, b = {B, stride_b, 1};
    gemm_any(C.data.data(), C.cols, 1.0, a, b, C.rows, C.cols, T);
}

}  // namespace stief
