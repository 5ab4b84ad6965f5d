// Linear algebra by its defining equations: no reference values, residuals alone.
#include <algorithm>
#include <limits>

#include "matrices.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// C = A B by the definition, in long double.
Matrix product_by_definition(const Matrix& A, const Matrix& B) {
    Matrix C(A.rows, B.cols);
    for (size_t i = 0; i < A.rows; i++)
        for (size_t j = 0; j < B.cols; j++) {
            long double sum = 0;
            for (size_t p = 0; p < A.cols; p++) sum += (long double)A(i, p) * B(p, j);
            C(i, j) = double(sum);
        }
    return C;
}

double eigen_residual(const Matrix& A, const EigenPairs& pairs) {  // ‖A − VΛVᵀ‖_F
    const Matrix& V = pairs.vectors;
    return distance(A, times(V, times_transposed(diagonal(pairs.values), V)));
}

}  // namespace

TEST_SUITE_BEGIN("base");

TEST_CASE("the three products are the definition, for whole tiles and for tails") {
    Random random(1);
    const struct {
        size_t m, n, k;
        const char* why;
    } cases[] = {{1, 1, 1, "one number"},        {4, 4, 4, "one tile"},
                 {3, 5, 7, "less than tiles"},   {64, 64, 64, "a head"},
                 {65, 63, 257, "past a panel"},  {128, 128, 512, "two panels"},
                 {5, 3, 0, "an empty sum is 0"}, {0, 3, 4, "no rows"},
                 {3, 0, 4, "no columns"}};
    for (auto c : cases) {
        CAPTURE(c.why);
        Matrix A = random_matrix(c.m, c.k, random), B = random_matrix(c.k, c.n, random);
        Matrix want = product_by_definition(A, B);
        double tolerance = 1e-15 * double(c.k) * (1 + norm(want));
        CHECK(distance(times(A, B), want) <= tolerance);
        CHECK(distance(transposed_times(transpose(A), B), want) <= tolerance);
        CHECK(distance(times_transposed(A, transpose(B)), want) <= tolerance);
    }
}

TEST_CASE("a gram of float rows inside wider rows adds AᵀB in double") {
    Random random(2);
    const size_t T = 301, m = 6, n = 10, stride_a = 13, stride_b = 10;
    std::vector<float> a(T * stride_a), b(T * stride_b);
    for (float& x : a) x = float(random.normal());
    for (float& x : b) x = float(random.normal());
    Matrix A(T, m), B(T, n);
    for (size_t t = 0; t < T; t++) {
        for (size_t i = 0; i < m; i++) A(t, i) = a[t * stride_a + 7 + i];  // the columns 7 … 12
        for (size_t i = 0; i < n; i++) B(t, i) = b[t * stride_b + i];
    }
    Matrix C = random_matrix(m, n, random), want = C;
    add_scaled(want, 1.0, product_by_definition(transpose(A), B));
    add_gram(C, a.data() + 7, stride_a, b.data(), stride_b, T);
    CHECK(distance(C, want) <= 1e-12 * norm(want));
}

TEST_CASE("float rows times a matrix is the product rounded to float, over more rows than one piece") {
    Random random(4);
    Matrix rows = random_matrix(1030, 20, random), M = random_matrix(20, 13, random);
    std::vector<float> x = to_floats(rows), got = times(x.data(), rows.rows, M);
    rows.data.assign(x.begin(), x.end());
    Matrix want = product_by_definition(rows, M), out(want.rows, want.cols);
    REQUIRE(got.size() == out.data.size());
    out.data.assign(got.begin(), got.end());
    CHECK(distance(out, want) <= 0x1p-24 * norm(want));
}

TEST_CASE("solve leaves a residual of rounding size") {
    Random random(3);
    for (size_t n : {1, 2, 31, 32, 33, 64, 100, 128})
        for (size_t k : {1, 5, 64}) {
            CAPTURE(n);
            CAPTURE(k);
            Matrix A = random_matrix(n, n, random), B = random_matrix(n, k, random);
            Matrix X = solve(A, B);
            CHECK(distance(times(A, X), B) <= 1e-14 * double(n) * norm(A) * norm(X));
        }
}

TEST_CASE("solve pivots, and refuses a singular matrix and NaN") {
    Matrix swap(2, 2), B = diagonal({3, 5});
    swap(0, 1) = swap(1, 0) = 1;  // the first pivot is zero
    Matrix X = solve(swap, B);
    CHECK(distance(times(swap, X), B) == 0);

    Random random(4);
    Matrix A = random_matrix(40, 40, random);
    for (size_t j = 0; j < 40; j++) A(39, j) = 2 * A(7, j) - A(3, j);
    CHECK_THROWS_WITH_AS(solve(A, identity(40)), doctest::Contains("singular"), Error);
    CHECK_THROWS_WITH_AS(solve(Matrix(3, 3), identity(3)), doctest::Contains("singular"), Error);
    A(5, 6) = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_WITH_AS(solve(A, identity(40)), doctest::Contains("entry (5, 6)"), Error);
    CHECK_THROWS_AS(solve(identity(40), A), Error);
}

TEST_CASE("QR: A = QR, QᵀQ = I, R upper triangular with R_ii ≥ 0") {
    Random random(5);
    const struct {
        size_t m, n;
        double scale;
        const char* why;
    } cases[] = {{1, 1, 1, "a number"},
                 {64, 64, 1, "a head"},
                 {128, 128, 1e-160, "squares vanish"},
                 {70, 33, 1, "tall, odd"},
                 {128, 16, 1e160, "squares overflow"}};
    for (auto c : cases) {
        CAPTURE(c.why);
        Matrix A = random_matrix(c.m, c.n, random);
        for (double& a : A.data) a *= c.scale;
        QrFactors f = qr(A);
        CHECK(from_identity(transposed_times(f.Q, f.Q)) <= 1e-13);
        Matrix back = times(f.Q, f.R), unit = A;
        for (double& x : back.data) x /= c.scale;
        for (double& x : unit.data) x /= c.scale;
        CHECK(distance(back, unit) <= 1e-14 * norm(unit) * double(c.n));
        bool triangular = true;
        for (size_t i = 0; i < c.n; i++) {
            triangular &= f.R(i, i) >= 0;
            for (size_t j = 0; j < i; j++) triangular &= f.R(i, j) == 0;
        }
        CHECK(triangular);
    }
}

TEST_CASE("QR returns an orthonormal matrix itself, and stays orthonormal where rank is missing") {
    Random random(6);
    Matrix Q = random_orthogonal(64, random);
    CHECK(distance(qr(Q).Q, Q) <= 1e-13);
    CHECK(distance(qr(identity(7)).Q, identity(7)) <= 1e-15);

    Matrix low = times(random_matrix(32, 5, random), random_matrix(5, 32, random));
    for (const Matrix& A : {low, Matrix(32, 32)}) {
        QrFactors f = qr(A);
        CHECK(from_identity(transposed_times(f.Q, f.Q)) <= 1e-13);
        CHECK(distance(times(f.Q, f.R), A) <= 1e-12);
    }
}

TEST_CASE("A = VΛVᵀ with VᵀV = I and values descending, on regular and degenerate spectra") {
    Random random(7);
    auto spectrum = [](size_t n, auto value) {
        std::vector<double> values(n);
        for (size_t i = 0; i < n; i++) values[i] = value(i);
        return values;
    };
    const struct {
        std::vector<double> values;
        const char* why;
    } cases[] = {
        {spectrum(1, [](size_t) { return -3.0; }), "a number"},
        {spectrum(64, [](size_t i) { return 64.0 - double(i); }), "evenly spaced"},
        {spectrum(64, [](size_t i) { return std::pow(0.5, double(i)); }), "nineteen decades"},
        {spectrum(32, [](size_t) { return 2.0; }), "all equal"},
        {spectrum(33, [](size_t i) { return i < 5 ? 1.0 : 0.0; }), "a projection, rank 5"},
        {spectrum(32, [](size_t i) { return i < 16 ? 1.0 : -1.0; }), "a reflection"},
        {spectrum(48, [](size_t i) { return 1.0 - 1e-15 * double(i); }), "equal but for rounding"},
        {spectrum(128, [](size_t i) { return 1e-300 * double(128 - i); }), "squares vanish"},
        {spectrum(16, [](size_t i) { return 1e300 * double(8 - int(i)); }), "squares overflow"}};
    for (const auto& c : cases) {
        CAPTURE(c.why);
        Matrix A = with_spectrum(c.values, random);
        EigenPairs pairs = eigen_symmetric(A);
        double largest = 0, worst = 0;
        for (double v : c.values) largest = std::max(largest, std::abs(v));
        for (size_t i = 0; i < A.rows; i++)
            worst = std::max(worst, std::abs(pairs.values[i] - c.values[i]) / largest);
        CHECK(worst <= 1e-13);
        for (double& a : A.data) a /= largest;
        for (double& v : pairs.values) v /= largest;
        CHECK(eigen_residual(A, pairs) <= 1e-12);
        CHECK(from_identity(transposed_times(pairs.vectors, pairs.vectors)) <= 1e-12);
        CHECK(std::is_sorted(pairs.values.rbegin(), pairs.values.rend()));
    }
}

TEST_CASE("eigen: zero and diagonal matrices need no rotation; NaN and infinity are errors") {
    EigenPairs zero = eigen_symmetric(Matrix(8, 8));
    CHECK(from_identity(zero.vectors) == 0);
    CHECK(norm(diagonal(zero.values)) == 0);
    EigenPairs sorted = eigen_symmetric(diagonal({1, 3, 2}));
    CHECK(sorted.values == std::vector<double>{3, 2, 1});
    CHECK(sorted.vectors(1, 0) == 1);
    CHECK(eigen_symmetric(Matrix()).values.empty());

    for (double bad : {std::numeric_limits<double>::quiet_NaN(), double(INFINITY)}) {
        Matrix A = identity(4);
        A(2, 1) = bad;
        CHECK_THROWS_WITH_AS(eigen_symmetric(A), doctest::Contains("entry (2, 1)"), Error);
    }
}

TEST_CASE("symmetric roots: square and inverse, with small eigenvalues raised to the floor") {
    Random random(8);
    Matrix A = with_spectrum({9, 4, 1, 0.25}, random);
    SymmetricRoots roots = symmetric_roots(A, 1e-4);
    CHECK(distance(times(roots.root, roots.root), A) <= 1e-13);
    CHECK(from_identity(times(roots.root, roots.inverse)) <= 1e-13);
    CHECK(distance(roots.root, transpose(roots.root)) == 0);

    Matrix low = with_spectrum({4, 1, 0, 0, -1e-17}, random);  // a moment with dead directions
    roots = symmetric_roots(low, 1e-4);
    CHECK(from_identity(times(roots.root, roots.inverse)) <= 1e-11);
    EigenPairs spectrum = eigen_symmetric(roots.root);
    CHECK(std::abs(spectrum.values[0] - 2) <= 1e-13);
    CHECK(std::abs(spectrum.values[4] - 2e-4) <= 1e-13);
    CHECK_THROWS_AS(symmetric_roots(Matrix(3, 3), 1e-4), Error);
}

TEST_SUITE_END();
