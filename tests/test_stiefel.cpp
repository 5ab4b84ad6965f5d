// Descent on the Stiefel manifold: gradient, retraction, feasibility, and a known optimum.
#include <limits>

#include "calibrate/stiefel.h"
#include "matrices.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

Matrix random_skew(size_t n, Random& random) {
    Matrix A = random_matrix(n, n, random), W = A;
    add_scaled(W, -1.0, transpose(A));
    return W;
}

// X with columns r … zeroed: X J_r
Matrix cut(const Matrix& X, size_t r) {
    Matrix Y = X;
    for (size_t i = 0; i < Y.rows; i++)
        for (size_t j = r; j < Y.cols; j++) Y(i, j) = 0;
    return Y;
}

// Δ(Q) = ‖A Q J_r Qᵀ S⁻¹ − target‖²_F, defined for every Q, and ∂Δ/∂k̃ at it
struct Toy {
    Matrix A, S_inverse, target;
    size_t r;

    Matrix miss(const Matrix& Q) const {
        Matrix k = times(times_transposed(times(A, cut(Q, r)), Q), S_inverse);
        add_scaled(k, -1.0, target);
        return k;
    }
    double loss(const Matrix& Q) const { return norm(miss(Q)) * norm(miss(Q)); }
    Matrix gradient(const Matrix& Q) const {
        Matrix B = times(miss(Q), S_inverse);  // B = ∂Δ/∂k̃ S⁻¹, ∂Δ/∂k̃ = 2 (k̃ − target)
        for (double& b : B.data) b *= 2;
        return stiefel_gradient(Q, transposed_times(A, B), r);
    }
};

Toy random_toy(size_t d, size_t T, size_t r, Random& random) {
    std::vector<double> inverse_metric(d);
    for (double& s : inverse_metric) s = 0.5 + random.uniform();
    return {random_matrix(T, d, random), with_spectrum(inverse_metric, random),
            random_matrix(T, d, random), r};
}

double energy_kept(const Matrix& Sigma, const Matrix& Q, size_t r) {  // tr(Q_rᵀ Σ Q_r)
    Matrix Qr = first_columns(Q, r);
    Matrix inner = transposed_times(Qr, times(Sigma, Qr));
    double sum = 0;
    for (size_t i = 0; i < r; i++) sum += inner(i, i);
    return sum;
}

}  // namespace

TEST_SUITE_BEGIN("calibrate");

TEST_CASE("the gradient formula is the derivative, by central differences at every rank") {
    Random random(1);
    const size_t d = 8, T = 13;
    for (size_t r : {0, 1, 3, 7, 8}) {
        CAPTURE(r);
        Toy toy = random_toy(d, T, r, random);
        Matrix Q = random_orthogonal(d, random), G = toy.gradient(Q), numeric(d, d);
        const double h = 1e-5;
        for (size_t i = 0; i < d * d; i++) {
            Matrix up = Q, down = Q;
            up.data[i] += h, down.data[i] -= h;
            numeric.data[i] = (toy.loss(up) - toy.loss(down)) / (2 * h);
        }
        CHECK(distance(G, numeric) <= 1e-7 * (1 + norm(numeric)));
    }
}

TEST_CASE("the short tangent direction is the long one, and skew") {
    Random random(3);
    Matrix Q = random_orthogonal(24, random), M = cut(random_matrix(24, 24, random), 9);
    Matrix MQt = times_transposed(M, Q), W_hat = MQt;  // Ŵ = M̂Qᵀ − ½ Q(QᵀM̂Qᵀ)
    add_scaled(W_hat, -0.5, times(Q, transposed_times(Q, MQt)));
    Matrix want = W_hat, W = tangent(Q, M);
    add_scaled(want, -1.0, transpose(W_hat));
    CHECK(distance(W, want) <= 1e-13 * norm(want));
    Matrix sum = W;
    add_scaled(sum, 1.0, transpose(W));
    CHECK(norm(sum) == 0);
}

TEST_CASE("Cayley keeps Q orthonormal for any step, and its slope at 0 is −W Q") {
    Random random(4);
    Matrix Q = random_orthogonal(32, random), W = random_skew(32, random);
    for (double tau : {0.0, 1e-3, 0.05, 1.0, 1e3}) {
        CAPTURE(tau);
        CHECK(infeasibility(cayley(Q, W, tau)) <= 1e-11);
    }
    CHECK(distance(cayley(Q, W, 0), Q) == 0);
    const double h = 1e-5;
    Matrix slope = cayley(Q, W, h);
    add_scaled(slope, -1.0, cayley(Q, W, -h));
    for (double& s : slope.data) s /= -2 * h;
    CHECK(distance(slope, times(W, Q)) <= 1e-7 * norm(W));
}

TEST_CASE("Cayley in full is Cayley in low rank (Sherman, Morrison, Woodbury)") {
    Random random(5);
    const size_t d = 40;
    for (size_t r : {1, 5, 20}) {
        CAPTURE(r);
        Matrix Q = random_orthogonal(d, random), P = first_columns(Q, r);
        Matrix G = random_matrix(d, r, random);
        Matrix W = times_transposed(G, P);  // W = G Pᵀ − P Gᵀ = U Vᵀ
        add_scaled(W, -1.0, times_transposed(P, G));
        Matrix U(d, 2 * r), V(d, 2 * r);  // U = [G P], V = [P −G]
        for (size_t i = 0; i < d; i++)
            for (size_t j = 0; j < r; j++) {
                U(i, j) = G(i, j), U(i, r + j) = P(i, j);
                V(i, j) = P(i, j), V(i, r + j) = -G(i, j);
            }
        const double tau = 0.3;
        Matrix inner = identity(2 * r);
        add_scaled(inner, tau / 2, transposed_times(V, U));
        Matrix Y = P;  // P − τ U (I + τ/2 VᵀU)⁻¹ Vᵀ P
        add_scaled(Y, -tau, times(U, solve(inner, transposed_times(V, P))));
        CHECK(distance(first_columns(cayley(Q, W, tau), r), Y) <= 1e-12);
    }
}

TEST_CASE("a step goes down: dΔ/dτ = −‖W‖² along the tangent direction") {
    Random random(6);
    for (size_t r : {2, 6, 11}) {
        CAPTURE(r);
        Toy toy = random_toy(12, 30, r, random);
        Matrix Q = random_orthogonal(12, random), W = tangent(Q, toy.gradient(Q));
        const double h = 1e-6 / norm(W);
        double slope = (toy.loss(cayley(Q, W, h)) - toy.loss(cayley(Q, W, -h))) / (2 * h);
        CHECK(std::abs(slope + norm(W) * norm(W)) <= 1e-6 * norm(W) * norm(W));
    }
}

TEST_CASE("five steps are section 3, line by line, bias correction and all") {
    Random random(11);
    const size_t d = 12;
    const double tau = 0.2;
    StiefelState state(random_orthogonal(d, random));
    Matrix Q = state.Q, M(d, d);
    double nu = 0;
    for (int t = 1; t <= 5; t++) {
        Matrix G = cut(random_matrix(d, d, random), 7);
        stiefel_step(state, G, tau);

        for (size_t i = 0; i < d * d; i++) M.data[i] = 0.9 * M.data[i] + 0.1 * G.data[i];
        nu = 0.99 * nu + 0.01 * norm(G) * norm(G);
        Matrix MQt = times_transposed(M, Q), W_hat = MQt;
        add_scaled(W_hat, -0.5, times(Q, transposed_times(Q, MQt)));
        Matrix W = W_hat, left = identity(d), right = identity(d);
        add_scaled(W, -1.0, transpose(W_hat));
        double scale = 1 / (1 - std::pow(0.9, t)) / std::sqrt(nu / (1 - std::pow(0.99, t)));
        add_scaled(left, tau / 2 * scale, W);
        add_scaled(right, -tau / 2 * scale, W);
        Q = solve(left, times(right, Q));
        CHECK(distance(state.Q, Q) <= 1e-13);
    }
}

TEST_CASE("Q is orthonormal after 2,000 noisy steps") {
    Random random(7);
    const size_t d = 32;
    StiefelState state(random_orthogonal(d, random));
    for (int step = 0; step < 2000; step++)
        stiefel_step(state, cut(random_matrix(d, d, random), 4 * (1 + random.below(7))), 0.05);
    CHECK(state.t == 2000);
    CHECK(infeasibility(state.Q) <= 1e-11);  // the bound that matters is 1e-5
    Matrix Q = finished(state.Q, "test");
    CHECK(distance(Q, state.Q) <= 1e-11);  // QR flips no sign
    CHECK(infeasibility(Q) <= 1e-13);
}

TEST_CASE("descent over nested random ranks finds principal components, in order") {
    Random random(8);
    const size_t d = 16;
    std::vector<double> values(d);
    for (size_t i = 0; i < d; i++) values[i] = std::pow(0.8, double(i));
    Matrix Sigma = with_spectrum(values, random);
    StiefelState state(random_orthogonal(d, random));
    const int steps = 3000;
    for (int step = 0; step < steps; step++) {
        size_t r = 1 + random.below(d - 1);
        Matrix kept = cut(state.Q, r);  // ‖X − X Q_r Q_rᵀ‖²: AᵀB = 2 Σ (Q_r Q_rᵀ − I)
        Matrix P = times_transposed(kept, kept);
        add_scaled(P, -1.0, identity(d));
        stiefel_step(state, stiefel_gradient(state.Q, times(Sigma, P), r),
                     annealed(0.1, step, steps));
    }
    double best = 0;
    for (size_t r = 1; r < d; r++) {
        CAPTURE(r);
        best += values[r - 1];
        CHECK(energy_kept(Sigma, state.Q, r) >= best * (1 - 1e-4));
    }
    Matrix V = eigen_symmetric(Sigma).vectors, overlap = transposed_times(V, state.Q);
    for (size_t i = 0; i < 8; i++) {
        CAPTURE(i);
        CHECK(std::abs(overlap(i, i)) >= 0.99);
    }
}

TEST_CASE("descent lowers the toy's loss over its grid of ranks, and twice the same way") {
    const size_t d = 16;
    auto learn = [&](Random random, double* before, double* after) {
        Toy toy = random_toy(d, 64, 0, random);
        toy.target = times(toy.A, toy.S_inverse);  // the uncompressed k
        StiefelState state(random_orthogonal(d, random));
        auto total = [&](const Matrix& Q) {
            double sum = 0;
            for (toy.r = 2; toy.r < d; toy.r += 2) sum += toy.loss(Q);
            return sum;
        };
        *before = total(state.Q);
        for (int step = 0; step < 300; step++) {
            toy.r = 2 * (1 + random.below(7));
            stiefel_step(state, toy.gradient(state.Q), annealed(0.05, step, 300));
        }
        *after = total(state.Q);
        return state.Q;
    };
    double before = NaN, after = NaN;
    Matrix Q = learn(Random(9), &before, &after);
    CHECK(after <= 0.9 * before);
    CHECK(learn(Random(9), &before, &after).data == Q.data);
}

TEST_CASE("no gradient, no step; a bad gradient is an error and leaves Q alone") {
    Random random(10);
    Matrix Q = random_orthogonal(8, random), G(8, 8);
    StiefelState state(Q);
    stiefel_step(state, G, 0.05);
    CHECK(state.Q.data == Q.data);
    G(3, 4) = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_AS(stiefel_step(state, G, 0.05), Error);
    G(3, 4) = 1e200;  // its square is infinite
    CHECK_THROWS_AS(stiefel_step(state, G, 0.05), Error);
    CHECK(state.Q.data == Q.data);
    Matrix with_nan = Q;
    with_nan(0, 0) = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_AS(finished(with_nan, "keys"), Error);
}

TEST_CASE("the step size falls from τ to zero") {
    CHECK(annealed(0.05, 0, 100) == 0.05);
    CHECK(std::abs(annealed(0.05, 50, 100) - 0.025) <= 1e-15);
    CHECK(annealed(0.05, 99, 100) <= 2e-5);
    CHECK(annealed(0.05, 100, 100) <= 1e-17);
}

TEST_SUITE_END();
