// Dense linear algebra in double for matrices of a head's width, 64 … 256: what finds and learns
// the bases of the cache. Golub and Van Loan, Matrix Computations (4th ed. 2013), for all of it.
// Shapes are our own promises (assert); values come from models and text (check: NaN is an Error).
#pragma once
#include <cstddef>
#include <vector>

namespace stief {

struct Matrix {
    size_t rows = 0, cols = 0;
    std::vector<double> data;  // (rows, cols)

    Matrix() = default;
    Matrix(size_t m, size_t n) : rows(m), cols(n), data(m * n) {}  // zeros
    double* row(size_t i) { return data.data() + i * cols; }
    const double* row(size_t i) const { return data.data() + i * cols; }
    double& operator()(size_t i, size_t j) { return data[i * cols + j]; }
    double operator()(size_t i, size_t j) const { return data[i * cols + j]; }
};

Matrix identity(size_t n);
Matrix diagonal(const std::vector<double>& entries);
Matrix transpose(const Matrix& A);
Matrix first_columns(const Matrix& A, size_t r);  // A[:, :r]
std::vector<float> to_floats(const Matrix& A);

double norm(const Matrix& A);                            // ‖A‖_F
void add_scaled(Matrix& Y, double a, const Matrix& X);   // Y ← Y + a X
void require_finite(const Matrix& A, const char* what);  // Error with the first bad entry

// ---- products (linalg_product.cpp) ------------------------------------------------------------

Matrix times(const Matrix& A, const Matrix& B);             // A B
Matrix transposed_times(const Matrix& A, const Matrix& B);  // AᵀB
Matrix times_transposed(const Matrix& A, const Matrix& B);  // A Bᵀ

// The same, summed in double, for float rows: rows (T, M.rows) M.
std::vector<float> times(const float* rows, size_t T, const Matrix& M);

// C ← C + AᵀB, summed in double, for float rows inside wider rows: one head's keys in (T, G, d).
void add_gram(Matrix& C,                        // (m, n)
              const float* A, size_t stride_a,  // (T, m), rows stride_a floats apart
              const float* B, size_t stride_b,  // (T, n)
              size_t T);

// ---- factorisations (linalg.cpp) --------------------------------------------------------------

// X with A X = B, by LU with partial pivoting. Error where A is singular to working precision.
Matrix solve(const Matrix& A,   // (n, n)
             const Matrix& B);  // (n, k)

// (I + τ/2 W)⁻¹ (I − τ/2 W) Q for a skew W: turns an orthogonal Q (Cayley).
Matrix cayley(const Matrix& Q,  // (n, n)
              const Matrix& W,  // (n, n)
              double tau);

// A = Q R, QᵀQ = I, R upper triangular with R_ii ≥ 0, by Householder reflections: an A with
// orthonormal columns returns itself, not a copy with other signs. Its rank may be deficient.
struct QrFactors {
    Matrix Q;  // (m, n)
    Matrix R;  // (n, n)
};
QrFactors qr(const Matrix& A);  // (m, n), m ≥ n

// ---- spectra (linalg_eigen.cpp) ---------------------------------------------------------------

// A = V diag(values) Vᵀ for the symmetric part ½(A + Aᵀ), by cyclic Jacobi rotations.
struct EigenPairs {
    std::vector<double> values;  // (n) descending
    Matrix vectors;              // (n, n) column i belongs to values[i]; orthonormal
};
EigenPairs eigen_symmetric(const Matrix& A);  // (n, n)

// A^½ and A^-½ for A symmetric positive semi-definite and not zero. Eigenvalues of A^½ below floor
// times the largest are raised to it, so that cond(A^½) ≤ 1 / floor.
struct SymmetricRoots {
    Matrix root, inverse;  // (n, n) root · inverse = I
};
SymmetricRoots symmetric_roots(const Matrix& A, double floor);

}  // namespace stief
