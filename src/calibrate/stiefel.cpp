// README.md §3. Unlike Li et al., who iterate to a fixed point, we solve for the retraction; and
// the momentum is not moved along with Q, but projected on the tangent space anew in each step.
#include "calibrate/stiefel.h"

#include <cassert>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace stief {

StiefelState::StiefelState(const Matrix& warm_start)
    : Q(warm_start), M(warm_start.rows, warm_start.cols) {
    assert(Q.rows == Q.cols);
}

Matrix stiefel_gradient(const Matrix& Q, const Matrix& AtB, size_t r) {
    assert(Q.rows == Q.cols && AtB.rows == Q.rows && AtB.cols == Q.rows && r <= Q.cols);
    Matrix symmetric = transpose(AtB);
    add_scaled(symmetric, 1.0, AtB);
    Matrix kept = times(symmetric, first_columns(Q, r));  // (d, r)
    Matrix G(Q.rows, Q.cols);                             // J_r: zero from column r on
    for (size_t i = 0; i < G.rows; i++)
        for (size_t j = 0; j < r; j++) G(i, j) = kept(i, j);
    return G;
}

// Q is square, QQᵀ = I, so that Q(QᵀM̂Qᵀ) = M̂Qᵀ and Ŵ = ½ M̂Qᵀ.
Matrix tangent(const Matrix& Q, const Matrix& M_hat) {
    assert(Q.rows == Q.cols);
    Matrix MQt = times_transposed(M_hat, Q), W(Q.rows, Q.rows);
    for (size_t i = 0; i < W.rows; i++)
        for (size_t j = 0; j < W.cols; j++) W(i, j) = 0.5 * (MQt(i, j) - MQt(j, i));
    return W;
}

StiefelTurn stiefel_turn(StiefelState& state, const Matrix& G, double tau) {
    assert(G.rows == state.Q.rows && G.cols == state.Q.cols);
    require_finite(G, "stiefel_turn: gradient");
    double square = norm(G) * norm(G);
    check(std::isfinite(square),
          "stiefel_turn: the gradient's norm is %g, expected a finite number", square);
    state.t++;
    for (double& m : state.M.data) m *= BETA1;
    add_scaled(state.M, 1 - BETA1, G);
    state.nu = BETA2 * state.nu + (1 - BETA2) * square;
    if (state.nu == 0) return {};  // no gradient yet: Δ is flat

    double nu_hat = state.nu / (1 - std::pow(BETA2, state.t));
    double scale = 1 / (1 - std::pow(BETA1, state.t)) / std::sqrt(nu_hat);
    return {tangent(state.Q, state.M), tau * scale};  // linear in M: scaled afterwards
}

void stiefel_step(StiefelState& state, const Matrix& G, double tau) {
    StiefelTurn turn = stiefel_turn(state, G, tau);
    if (turn.tau != 0) state.Q = cayley(state.Q, turn.W, turn.tau);
}

double annealed(double tau, int step, int steps) {
    return tau * 0.5 * (1 + std::cos(std::numbers::pi * step / steps));
}

double infeasibility(const Matrix& Q) {
    Matrix E = transposed_times(Q, Q);
    for (size_t i = 0; i < E.rows; i++) E(i, i) -= 1;
    return norm(E);
}

Matrix finished(const Matrix& Q, const char* what) {
    Matrix orthonormal = qr(Q).Q;
    double left = infeasibility(orthonormal);
    check(left <= FEASIBLE, "%s: |Q'Q - I| is %g, expected at most %g: the basis is not written",
          what, left, FEASIBLE);
    return orthonormal;
}

}  // namespace stief
