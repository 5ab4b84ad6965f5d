// Metrics and eigenbases: encode and decode are inverse, and the basis is the best for its metric.
#include <algorithm>
#include <limits>

#include "calibrate/warm_start.h"
#include "matrices.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

double mean_eigenvalue(const Matrix& S) {
    double trace = 0;
    for (size_t i = 0; i < S.rows; i++) trace += S(i, i);
    return trace / double(S.rows);
}

Matrix random_moment(size_t d, size_t T, Random& random) {  // rank min(d, T)
    Matrix K = random_matrix(T, d, random);
    return transposed_times(K, K);
}

}  // namespace

TEST_SUITE_BEGIN("calibrate");

TEST_CASE("E D = I for every metric, full or deficient") {
    Random random(1);
    const size_t d = 32;
    std::vector<double> square(d), narrow(d, 0.0);
    for (double& s : square) s = random.uniform() + 0.01;
    narrow[3] = 1;  // queries look along one frequency only
    const struct {
        Metric metric;
        const char* why;
    } cases[] = {{identity_metric(d), "identity"},
                 {pre_rotation_metric(square), "before rotation"},
                 {pre_rotation_metric(narrow), "one frequency: all others at the floor"},
                 {metric_of(random_moment(d, 100, random)), "after rotation"},
                 {metric_of(random_moment(d, 5, random)), "fewer tokens than coordinates"},
                 {metric_of(Matrix(d, d)), "no energy at all: identity"}};
    for (const auto& c : cases) {
        CAPTURE(c.why);
        EigenPairs start = warm_start(random_moment(d, 200, random), c.metric);
        Matrix E = encode(start.vectors, c.metric), D = decode(start.vectors, c.metric);
        CHECK(from_identity(times(E, D)) <= 1e-10);
        CHECK(from_identity(times(D, E)) <= 1e-10);
        CHECK(std::abs(mean_eigenvalue(c.metric.S) - 1) <= 1e-12);
        std::vector<double> spectrum = eigen_symmetric(c.metric.S).values;
        CHECK(spectrum.back() >= 0.999 * METRIC_FLOOR * spectrum.front());
        CHECK(std::is_sorted(start.values.rbegin(), start.values.rend()));
    }
}

TEST_CASE("before rotation both coordinates of a frequency weigh the same, at any scale") {
    std::vector<double> square = {4, 1, 9, 0, 2, 3, 1, 0};  // pairs (0, 4), (1, 5), (2, 6), (3, 7)
    Metric metric = pre_rotation_metric(square);
    const Matrix& S = metric.S;
    for (size_t j = 0; j < 4; j++) CHECK(S(j, j) == S(j + 4, j + 4));
    CHECK(std::abs(S(0, 0) * S(0, 0) / (S(1, 1) * S(1, 1)) - 3.0 / 2.0) <= 1e-14);
    CHECK(std::abs(S(3, 3) / S(2, 2) - METRIC_FLOOR) <= 1e-16);
    for (double& s : square) s *= 1e6;
    CHECK(distance(pre_rotation_metric(square).S, S) <= 1e-14);
    square[2] = -1;
    CHECK_THROWS_WITH_AS(pre_rotation_metric(square), doctest::Contains("coordinates 2 and 6"),
                         Error);
    square[2] = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_AS(pre_rotation_metric(square), Error);
}

TEST_CASE("the warm start keeps more of the metric's energy than any other basis of its rank") {
    Random random(2);
    const size_t d = 16;
    Matrix moment = random_moment(d, 20, random);
    Metric metric = metric_of(random_moment(d, 40, random));
    EigenPairs start = warm_start(moment, metric);
    // ‖(k − k̃_r) S‖² summed over tokens: k S (I − Q_r Q_rᵀ)
    auto lost = [&](const Matrix& Q, size_t r) {
        Matrix Qr = first_columns(Q, r), rest = identity(d);
        add_scaled(rest, -1.0, times_transposed(Qr, Qr));
        Matrix whitened = times(metric.S, times(moment, metric.S));
        return mean_eigenvalue(times(rest, times(whitened, rest))) * double(d);
    };
    for (size_t r : {1, 4, 12}) {
        CAPTURE(r);
        double tail = 0;
        for (size_t i = r; i < d; i++) tail += start.values[i];
        CHECK(std::abs(lost(start.vectors, r) - tail) <= 1e-10 * (1 + tail));
        for (int trial = 0; trial < 20; trial++)
            CHECK(lost(random_orthogonal(d, random), r) >= tail * (1 - 1e-12));
    }
}

TEST_CASE("the identity metric gives EigenAttention's eigenvectors; no keys give the identity") {
    Random random(3);
    Matrix moment = random_moment(12, 50, random);
    EigenPairs start = warm_start(moment, identity_metric(12)), plain = eigen_symmetric(moment);
    CHECK(distance(start.vectors, plain.vectors) <= 1e-12);
    CHECK(from_identity(warm_start(Matrix(12, 12), identity_metric(12)).vectors) == 0);
    moment(1, 1) = std::numeric_limits<double>::infinity();
    CHECK_THROWS_AS(warm_start(moment, identity_metric(12)), Error);
    CHECK_THROWS_AS(metric_of(moment), Error);
}

TEST_CASE("the rank by threshold is the smallest that reaches its share, rounded up") {
    std::vector<double> spectrum = {8, 4, 2, 1, 1, 0, 0, -1e-17};
    CHECK(rank_of_share(spectrum, 0.5, 1) == 1);
    CHECK(rank_of_share(spectrum, 0.51, 1) == 2);
    CHECK(rank_of_share(spectrum, 0.51, 4) == 4);
    CHECK(rank_of_share(spectrum, 1.0, 1) == 5);
    CHECK(rank_of_share(spectrum, 1.0, 4) == 8);
    CHECK(rank_of_share(spectrum, 1.0, 6) == 6);
    CHECK(rank_of_share(spectrum, 0.0, 4) == 0);
    CHECK(rank_of_share({0, 0}, 0.9, 4) == 0);
}

TEST_SUITE_END();
