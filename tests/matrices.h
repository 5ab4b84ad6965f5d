// Random matrices and their distance, for the tests of linear algebra and of calibration.
#pragma once
#include "base/linalg.h"
#include "base/random.h"

namespace stief::testing {

inline Matrix random_matrix(size_t m, size_t n, Random& random) {
    Matrix A(m, n);
    for (double& a : A.data) a = random.normal();
    return A;
}

inline Matrix random_orthogonal(size_t n, Random& random) {
    return qr(random_matrix(n, n, random)).Q;
}

// V diag(values) Vᵀ with V from O(n)
inline Matrix with_spectrum(const std::vector<double>& values, Random& random) {
    Matrix V = random_orthogonal(values.size(), random);
    return times(V, times_transposed(diagonal(values), V));
}

inline double distance(const Matrix& A, const Matrix& B) {  // ‖A − B‖_F, NaN if shapes differ
    if (A.rows != B.rows || A.cols != B.cols) return double(NAN);
    Matrix difference = A;
    add_scaled(difference, -1.0, B);
    return norm(difference);
}

inline double from_identity(const Matrix& A) {
    return distance(A, identity(A.rows));
}

}  // namespace stief::testing
