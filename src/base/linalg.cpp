// Small matrices, their LU factorisation and their QR factorisation.
#include "base/linalg.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/linalg_kernels.h"

namespace stief {

Matrix identity(size_t n) {
    return diagonal(std::vector<double>(n, 1.0));
}

Matrix diagonal(const std::vector<double>& entries) {
    Matrix A(entries.size(), entries.size());
    for (size_t i = 0; i < entries.size(); i++) A(i, i) = entries[i];
    return A;
}

Matrix transpose(const Matrix& A) {
    Matrix B(A.cols, A.rows);
    for (size_t i = 0; i < A.rows; i++)
        for (size_t j = 0; j < A.cols; j++) B(j, i) = A(i, j);
    return B;
}

Matrix first_columns(const Matrix& A, size_t r) {
    assert(r <= A.cols);
    Matrix B(A.rows, r);
    for (size_t i = 0; i < A.rows; i++) std::copy_n(A.row(i), r, B.row(i));
    return B;
}

std::vector<float> to_floats(const Matrix& A) {
    return {A.data.begin(), A.data.end()};
}

double norm(const Matrix& A) {
    double sum = 0;
    for (double a : A.data) sum += a * a;
    return std::sqrt(sum);
}

void add_scaled(Matrix& Y, double a, const Matrix& X) {
    assert(Y.rows == X.rows && Y.cols == X.cols);
    kernels::axpy(Y.data.data(), X.data.data(), a, Y.data.size());
}

void require_finite(const Matrix& A, const char* what) {
    for (size_t i = 0; i < A.rows; i++)
        for (size_t j = 0; j < A.cols; j++)
            if (!std::isfinite(A(i, j)))
                fail("%s: entry (%zu, %zu) of (%zu, %zu) is %g, expected a finite number", what, i,
                     j, A.rows, A.cols, A(i, j));
}

// ---- LU ---------------------------------------------------------------------------------------

namespace {

constexpr size_t BLOCK = 32;  // columns eliminated together; the rest of the work is one gemm

// Columns k0 … k1−1 of W = [A | B], rows k0 …: pivots, and multipliers below the diagonal.
void factor_panel(Matrix& W, size_t k0, size_t k1, double tiny) {
    size_t n = W.rows;
    for (size_t j = k0; j < k1; j++) {
        size_t pivot = j;
        for (size_t i = j + 1; i < n; i++)
            if (std::abs(W(i, j)) > std::abs(W(pivot, j))) pivot = i;
        if (!(std::abs(W(pivot, j)) > tiny))
            fail("solve: the (%zu, %zu) matrix is singular (column %zu has pivot %g)", n, n, j,
                 W(pivot, j));
        if (pivot != j) std::swap_ranges(W.row(j), W.row(j) + W.cols, W.row(pivot));
        for (size_t i = j + 1; i < n; i++) {
            double multiplier = W(i, j) /= W(j, j);
            kernels::axpy(W.row(i) + j + 1, W.row(j) + j + 1, -multiplier, k1 - j - 1);
        }
    }
}

// U X = B in place of B, the columns from n on; U is the upper triangle of the first n.
void back_substitute(Matrix& W) {
    size_t n = W.rows, k = W.cols - n;
    for (size_t k1 = n; k1 > 0;) {
        size_t k0 = (k1 - 1) / BLOCK * BLOCK;
        for (size_t j = k1; j-- > k0;) {
            double* x = W.row(j) + n;
            for (size_t c = 0; c < k; c++) x[c] /= W(j, j);
            for (size_t i = k0; i < j; i++) kernels::axpy(W.row(i) + n, x, -W(i, j), k);
        }
        kernels::gemm(W.row(0) + n, W.cols, -1.0, {W.row(0) + k0, W.cols, 1},
                      {W.row(k0) + n, W.cols, 1}, k0, k, k1 - k0);
        k1 = k0;
    }
}

}  // namespace

// P A = L U by blocks of columns on W = [A | B], so that the elimination carries B along.
Matrix solve(const Matrix& A, const Matrix& B) {
    assert(A.rows == A.cols && A.rows == B.rows);
    require_finite(A, "solve: left side");
    require_finite(B, "solve: right side");
    size_t n = A.rows, k = B.cols;
    Matrix W(n, n + k), X(n, k);
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        std::copy_n(A.row(i), n, W.row(i));
        std::copy_n(B.row(i), k, W.row(i) + n);
        for (size_t j = 0; j < n; j++) largest = std::max(largest, std::abs(A(i, j)));
    }
    double tiny = largest * double(n) * std::numeric_limits<double>::epsilon();

    for (size_t k0 = 0; k0 < n; k0 += BLOCK) {
        size_t k1 = std::min(n, k0 + BLOCK), rest = W.cols - k1;
        factor_panel(W, k0, k1, tiny);
        for (size_t j = k0; j < k1; j++)  // U₁₂ ← L₁₁⁻¹ A₁₂
            for (size_t i = j + 1; i < k1; i++)
                kernels::axpy(W.row(i) + k1, W.row(j) + k1, -W(i, j), rest);
        if (k1 < n)  // A₂₂ ← A₂₂ − L₂₁ U₁₂
            kernels::gemm(W.row(k1) + k1, W.cols, -1.0, {W.row(k1) + k0, W.cols, 1},
                          {W.row(k0) + k1, W.cols, 1}, n - k1, rest, k1 - k0);
    }
    back_substitute(W);
    for (size_t i = 0; i < n; i++) std::copy_n(W.row(i) + n, k, X.row(i));
    return X;
}

// With X = τ/2 W:  (I + X)⁻¹ (I − X) Q = 2 (I + X)⁻¹ Q − Q, which saves a product.
Matrix cayley(const Matrix& Q, const Matrix& W, double tau) {
    Matrix left = identity(Q.rows);
    add_scaled(left, 0.5 * tau, W);
    Matrix half = solve(left, Q);
    for (size_t i = 0; i < half.data.size(); i++) half.data[i] = 2 * half.data[i] - Q.data[i];
    return half;
}

// ---- QR ---------------------------------------------------------------------------------------

namespace {

// A ← (I − β v vᵀ) A on rows j … and columns j … of A; v (m − j)
void reflect(Matrix& A, const std::vector<double>& v, double beta, size_t j) {
    std::vector<double> w(A.cols - j);  // vᵀA
    for (size_t i = j; i < A.rows; i++) kernels::axpy(w.data(), A.row(i) + j, v[i - j], w.size());
    for (size_t i = j; i < A.rows; i++)
        kernels::axpy(A.row(i) + j, w.data(), -beta * v[i - j], w.size());
}

}  // namespace

QrFactors qr(const Matrix& A) {
    assert(A.rows >= A.cols);
    require_finite(A, "qr");
    size_t m = A.rows, n = A.cols;
    Matrix work = A;
    std::vector<std::vector<double>> reflector(n);
    std::vector<double> beta(n, 0.0);
    for (size_t j = 0; j < n; j++) {
        std::vector<double>& v = reflector[j];
        v.resize(m - j);
        double largest = 0, sum = 0;  // scaled: no overflow of squares
        for (size_t i = j; i < m; i++) largest = std::max(largest, std::abs(work(i, j)));
        if (largest == 0) continue;  // H_j = I, R_jj = 0
        for (size_t i = j; i < m; i++) v[i - j] = work(i, j) / largest, sum += v[i - j] * v[i - j];
        v[0] += std::copysign(std::sqrt(sum), v[0]);  // away from cancellation
        double square = 0;
        for (double x : v) square += x * x;
        beta[j] = 2 / square;
        reflect(work, v, beta[j], j);
    }
    QrFactors f = {Matrix(m, n), Matrix(n, n)};
    for (size_t j = 0; j < n; j++) f.Q(j, j) = 1;
    for (size_t j = n; j-- > 0;) reflect(f.Q, reflector[j], beta[j], j);  // Q = H₀ H₁ … H_n−1 I
    for (size_t i = 0; i < n; i++) {
        double sign = work(i, i) < 0 ? -1 : 1;  // R_ii ≥ 0
        for (size_t j = i; j < n; j++) f.R(i, j) = sign * work(i, j);
        for (size_t y = 0; y < m; y++) f.Q(y, i) *= sign;
    }
    return f;
}

}  // namespace stief
