// Descent on the Stiefel manifold for one unit, the keys or the values of one head: README.md §3.
// Adam whose second moment is a scalar (Li, Fuxin, Todorovic 2020, Efficient Riemannian
// Optimization on the Stiefel Manifold via the Cayley Transform), retraction of Wen and Yin 2013.
// Units do not share anything: the caller runs them on as many threads as it likes.
#pragma once
#include "base/linalg.h"

namespace stief {

constexpr double BETA1 = 0.9, BETA2 = 0.99;  // decay of the moments
constexpr double FEASIBLE = 1e-5;  // largest ‖QᵀQ − I‖_F of a basis that may be written

struct StiefelState {
    Matrix Q;       // (d, d) in O(d); the first r columns are the basis of rank r
    Matrix M;       // (d, d) running mean of G
    double nu = 0;  // running mean of ‖G‖²_F
    int t = 0;      // steps taken

    explicit StiefelState(const Matrix& warm_start);
};

// ∂Δ/∂Q = (AᵀB + BᵀA) Q J_r  for  k̃ = A Q J_r Qᵀ S⁻¹,  A = k S,  B = ∂Δ/∂k̃ S⁻¹
Matrix stiefel_gradient(const Matrix& Q,    // (d, d)
                        const Matrix& AtB,  // (d, d) AᵀB = S (kᵀ ∂Δ/∂k̃) S⁻¹: no token needs S
                        size_t r);

// Ŵ − Ŵᵀ with Ŵ = M̂Qᵀ − ½ Q(QᵀM̂Qᵀ): the gradient's part in the tangent space, W = (Ŵ − Ŵᵀ)/√ν̂
Matrix tangent(const Matrix& Q, const Matrix& M_hat);

// Takes a fresh gradient G into the moments and says how a step of size tau turns Q (linalg.h's
// cayley): all but the retraction, which a backend does for many units at once. Error where G is
// not finite; the state is then as before. tau = 0: Δ is flat so far, Q stays.
struct StiefelTurn {
    Matrix W;        // (d, d) skew
    double tau = 0;  // τ / √ν̂, and the bias of M taken out
};
StiefelTurn stiefel_turn(StiefelState& state, const Matrix& G, double tau);
// The whole step.
void stiefel_step(StiefelState& state, const Matrix& G, double tau);

// tau annealed to zero: τ₀ ½ (1 + cos πt/n) for step t = 0 … n−1
double annealed(double tau, int step, int steps);

double infeasibility(const Matrix& Q);  // ‖QᵀQ − I‖_F

// Q with its rounding taken out by one QR. Error where that is not feasible; what names it, such as
// "layers.3 head 1 keys".
Matrix finished(const Matrix& Q, const char* what);

}  // namespace stief
