// Metrics and eigenbases from second moments: README.md §1.
#include "calibrate/warm_start.h"

#include <algorithm>
#include <cassert>

#include "base/check.h"

namespace stief {

Metric identity_metric(size_t d) {
    return {identity(d), identity(d)};
}

Metric pre_rotation_metric(const std::vector<double>& square) {
    size_t d = square.size(), half = d / 2;
    assert(d % 2 == 0);
    std::vector<double> lambda(d);
    for (size_t j = 0; j < half; j++) {
        if (!(square[j] >= 0) || !(square[j + half] >= 0))
            fail("metric: E[q^2] of coordinates %zu and %zu is %g and %g, expected >= 0", j,
                 j + half, square[j], square[j + half]);
        lambda[j] = lambda[j + half] = 0.5 * square[j] + 0.5 * square[j + half];
    }
    return metric_of(diagonal(lambda));
}

Metric metric_of(const Matrix& energy) {
    assert(energy.rows == energy.cols);
    require_finite(energy, "metric");
    if (norm(energy) == 0) return identity_metric(energy.rows);
    SymmetricRoots roots = symmetric_roots(energy, METRIC_FLOOR);
    double trace = 0;
    for (size_t i = 0; i < energy.rows; i++) trace += roots.root(i, i);
    double mean = trace / double(energy.rows);
    for (double& s : roots.root.data) s /= mean;
    for (double& s : roots.inverse.data) s *= mean;
    return {roots.root, roots.inverse};
}

EigenPairs warm_start(const Matrix& moment, const Metric& metric) {
    return eigen_symmetric(times(metric.S, times(moment, metric.S)));
}

Matrix encode(const Matrix& Q, const Metric& metric) {
    return times(metric.S, Q);
}

Matrix decode(const Matrix& Q, const Metric& metric) {
    return transposed_times(Q, metric.S_inverse);
}

int rank_of_share(const std::vector<double>& spectrum, double share, int step) {
    assert(step > 0);
    double total = 0, leading = 0;
    for (double value : spectrum) total += std::max(value, 0.0);  // rounding leaves −1e-16 behind
    int d = int(spectrum.size()), r = 0;
    while (r < d && leading < share * total) leading += std::max(spectrum[size_t(r++)], 0.0);
    return std::min(d, (r + step - 1) / step * step);
}

}  // namespace stief
