// The spectrum of a symmetric matrix by cyclic Jacobi rotations (Golub and Van Loan, section 8.5;
// Rutishauser 1966), and the square roots that come from it. Jacobi needs no special case for
// equal or zero eigenvalues, and its vectors are orthonormal to rounding whatever the spectrum.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/linalg.h"
#include "base/linalg_kernels.h"

namespace stief {

namespace {

constexpr int MAX_SWEEPS = 50;  // convergence is quadratic: 128 x 128 needs about 10

// Rows are a cache line longer than n: the elements of a column would be 2ᵏ bytes apart and fall
// into a few sets of L1.
constexpr size_t PAD = 8;

// A ← JᵀAJ with the rotation J of the plane (p, q) that makes A_pq zero; rows of Vt turn with it.
void annihilate(Matrix& A, Matrix& Vt, size_t p, size_t q) {
    double theta = (A(q, q) - A(p, p)) / (2 * A(p, q));  // cot 2φ; ±∞ gives t = 0
    double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
    double c = 1 / std::sqrt(1 + t * t), s = t * c;
    double app = A(p, p) - t * A(p, q), aqq = A(q, q) + t * A(p, q);
    kernels::rotate(A.row(p), A.row(q), c, s, A.rows);
    for (size_t k = 0; k < A.rows; k++) A(k, p) = A(p, k), A(k, q) = A(q, k);
    A(p, p) = app, A(q, q) = aqq, A(p, q) = A(q, p) = 0;
    kernels::rotate(Vt.row(p), Vt.row(q), c, s, Vt.cols);
}

// Rotations until every |A_pq| ≤ tiny.
void diagonalise(Matrix& A, Matrix& Vt, double tiny) {
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        bool rotated = false;
        for (size_t p = 0; p + 1 < A.rows; p++)
            for (size_t q = p + 1; q < A.rows; q++)
                if (std::abs(A(p, q)) > tiny) annihilate(A, Vt, p, q), rotated = true;
        if (!rotated) return;
    }
    fail("eigen_symmetric: no convergence after %d sweeps of a (%zu, %zu) matrix", MAX_SWEEPS,
         A.rows, A.cols);
}

}  // namespace

EigenPairs eigen_symmetric(const Matrix& A) {
    assert(A.rows == A.cols);
    require_finite(A, "eigen_symmetric");
    size_t n = A.rows;
    double largest = 0;
    for (double a : A.data) largest = std::max(largest, std::abs(a));
    int exponent = 0;
    std::frexp(largest, &exponent);

    Matrix B(n, n + PAD), Vt = identity(n);
    // B = ½(A + Aᵀ) scaled by a power of two to entries of size ≤ 1, exactly: squares are safe.
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            B(i, j) = 0.5 * (std::ldexp(A(i, j), -exponent) + std::ldexp(A(j, i), -exponent));
    constexpr double EPSILON = std::numeric_limits<double>::epsilon();
    diagonalise(B, Vt, EPSILON * norm(B) / double(std::max<size_t>(n, 1)));

    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t i, size_t j) { return B(i, i) > B(j, j); });
    EigenPairs pairs = {std::vector<double>(n), Matrix(n, n)};
    for (size_t j = 0; j < n; j++) {
        pairs.values[j] = std::ldexp(B(order[j], order[j]), exponent);
        for (size_t i = 0; i < n; i++) pairs.vectors(i, j) = Vt(order[j], i);
    }
    return pairs;
}

SymmetricRoots symmetric_roots(const Matrix& A, double floor) {
    assert(floor > 0 && floor <= 1);
    EigenPairs spectrum = eigen_symmetric(A);
    const Matrix& V = spectrum.vectors;
    double largest = spectrum.values.empty() ? 0 : spectrum.values[0];
    check(largest > 0, "symmetric_roots: the largest eigenvalue is %g, expected more than 0",
          largest);
    Matrix scaled = V, inversely = V;  // V Λ^¼, V Λ^-¼: the roots are X Xᵀ, exactly symmetric
    for (size_t j = 0; j < V.cols; j++) {
        double root = std::sqrt(std::max(spectrum.values[j], 0.0));
        root = std::max(root, floor * std::sqrt(largest));
        for (size_t i = 0; i < V.rows; i++) {
            scaled(i, j) *= std::sqrt(root);
            inversely(i, j) /= std::sqrt(root);
        }
    }
    return {times_transposed(scaled, scaled), times_transposed(inversely, inversely)};
}

}  // namespace stief
