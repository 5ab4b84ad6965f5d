// Where descent starts, and the metric it works in: README.md §1. Everything is built from
// second moments, d x d sums over tokens; means are never subtracted.
//   identity metric   EigenAttention (arXiv 2408.05646): eigenvectors of Σ kᵀk
//   query metric      eigenvectors of S (Σ kᵀk) S, what the layer does not look at is cut first
//   output metric     the same with sums that the layer's own way back weighs (output_metric.h)
#pragma once
#include "base/linalg.h"

namespace stief {

// Smallest eigenvalue of S over its largest: S⁻¹ stays tame where no query ever looks.
constexpr double METRIC_FLOOR = 1e-4;

// S symmetric positive definite, eigenvalues of mean 1 (only its shape matters).
struct Metric {
    Matrix S;          // (d, d)
    Matrix S_inverse;  // (d, d)
};

Metric identity_metric(size_t d);

// Keys before rotation: S² = diag(λ), λ_j = λ_j+d/2 = ½(E[q_j²] + E[q_j+d/2²]), since rotation
// turns each such pair. Any multiple of E[q²] will do.
Metric pre_rotation_metric(const std::vector<double>& square);  // (d) E[q²] over the query group

// Keys after rotation: S² = E[qᵀq] over rotated queries. Values: S² = Σ_h W_o,hᵀ W_o,h (add_gram
// over the columns of each head of the group). Any multiple will do; zero gives the identity.
Metric metric_of(const Matrix& energy);  // (d, d)

// Eigenvectors of S Σ S, most energy first, and its spectrum. One basis a layer: pass the sum of
// the heads' moments. Σ = 0 gives the identity.
EigenPairs warm_start(const Matrix& moment,  // (d, d) Σ kᵀk
                      const Metric& metric);

Matrix encode(const Matrix& Q, const Metric& metric);  // E = S Q
Matrix decode(const Matrix& Q, const Metric& metric);  // D = Qᵀ S⁻¹

// Smallest multiple of step (or d) whose leading share of the spectrum Σ_i<r λ_i / Σ λ_i reaches
// share: EigenAttention's rank by threshold.
int rank_of_share(const std::vector<double>& spectrum,  // (d) descending
                  double share, int step);

}  // namespace stief
