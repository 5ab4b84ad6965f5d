// The score of rows of logits, on every backend, against the definition in double precision.
#include <algorithm>
#include <cmath>

#include "backends.h"

using namespace stief;
using namespace stief::testing;

namespace {

// ln softmax(z)_j of one row.
Doubles log_softmax(const float* z, size_t V) {
    double sum = 0, most = double(*std::max_element(z, z + V));
    for (size_t j = 0; j < V; j++) sum += std::exp(double(z[j]) - most);
    Doubles all;
    for (size_t j = 0; j < V; j++) all.push_back(double(z[j]) - most - std::log(sum));
    return all;
}

RowScore want_of(const float* zq, const float* zp, size_t V, size_t next) {
    Doubles q = log_softmax(zq, V), p = log_softmax(zp, V);
    RowScore want;
    want.loss = -q[next], want.loss_full = -p[next];
    for (size_t j = 0; j < V; j++) want.divergence += std::exp(p[j]) * (p[j] - q[j]);
    size_t top = size_t(std::max_element(zq, zq + V) - zq), t = size_t(std::max_element(zp, zp + V) - zp);
    want.same_top = top == t, want.top_full = int32_t(t);
    want.swing = p[t] - p[top] - (q[t] - q[top]);
    want.swing_next = p[t] - p[next] - (q[t] - q[next]);
    return want;
}

std::vector<RowScore> score(const Variant& variant, const Floats& q, const Floats& p,
                            const std::vector<int32_t>& next, int V) {
    Lab lab(variant);
    RowScore unset;
    unset.loss = unset.loss_full = unset.divergence = double(NaN), unset.same_top = -1;
    unset.swing = unset.swing_next = double(NaN), unset.top_full = -1;
    std::vector<RowScore> got(next.size(), unset);
    lab.backend->score(got.data(), lab.in(q), p.empty() ? nullptr : lab.in(p), next.data(),
                       int(next.size()), V);
    return got;
}

}  // namespace

TEST_SUITE_BEGIN("backend");

TEST_CASE("a row's score is its loss, its divergence, and whether both agree") {
    for (int V : {3, 64, 3001})
        for (float spread : {1.0f, 30.0f}) {  // 30: e^(z − most) underflows on the way
            CAPTURE(V);
            CAPTURE(spread);
            size_t n = size_t(V), rows = 4;
            Floats q = normals(rows * n, 1), p = normals(rows * n, 2);
            for (float& z : q) z *= spread;
            for (float& z : p) z = z * spread + 20;
            std::copy_n(q.begin(), n, p.begin());              // row 0: the same model
            q[n + 1] = q[n + 2] = p[n + 1] = 9 * spread + 20;  // row 1: the first of two equals
            std::vector<int32_t> next = {0, 1, 2, V - 1};
            for (const Variant& variant : variants()) {
                CAPTURE(variant.group);
                std::vector<RowScore> got = score(variant, q, p, next, V),
                                      alone = score(variant, q, {}, next, V);
                for (size_t i = 0; i < rows; i++) {
                    RowScore want = want_of(&q[i * n], &p[i * n], n, size_t(next[i]));
                    CHECK(std::abs(got[i].loss - want.loss) <= 1e-6);
                    CHECK(std::abs(got[i].loss_full - want.loss_full) <= 1e-6);
                    CHECK(std::abs(got[i].divergence - want.divergence) <= 1e-6 * want.divergence);
                    CHECK(got[i].same_top == want.same_top);
                    CHECK(got[i].top_full == want.top_full);
                    CHECK(std::abs(got[i].swing - want.swing) <= 1e-6);
                    CHECK(std::abs(got[i].swing_next - want.swing_next) <= 1e-6);
                    CHECK(alone[i].loss == got[i].loss);
                    CHECK(alone[i].divergence == 0);
                }
            }
        }
}

// Errors ε of ln Σ e^z, some units of f32's last place, cost ε² / 2: less than 1e-13.
TEST_CASE("the divergence of two models that hardly differ keeps five digits") {
    constexpr int V = 3001;
    constexpr size_t rows = 3, n = V;
    const float scale[rows] = {1e-2f, 1e-3f, 1e-5f};
    Floats p = normals(rows * n, 3), change = normals(rows * n, 4), q = p;
    for (size_t i = 0; i < q.size(); i++) q[i] += scale[i / n] * change[i];
    std::vector<int32_t> next(rows, 7);
    for (const Variant& variant : variants()) {
        CAPTURE(variant.group);
        std::vector<RowScore> got = score(variant, q, p, next, V);
        for (size_t i = 0; i < rows; i++) {
            double want = want_of(&q[i * n], &p[i * n], n, 7).divergence;
            CHECK(want > 1e-11);
            CHECK(std::abs(got[i].divergence - want) <= 1e-5 * want + 1e-13);
        }
    }
}

TEST_CASE("a NaN anywhere in a row makes its score NaN") {
    for (const Variant& variant : variants()) {
        CAPTURE(variant.group);
        for (size_t at : {0, 5, 69}) {
            Floats p = normals(70, 5), q = p;
            q[at] = NaN;
            RowScore tested = score(variant, q, p, {3}, 70)[0];
            RowScore reference = score(variant, p, q, {3}, 70)[0];
            CHECK(std::isnan(tested.loss));
            CHECK(std::isnan(tested.divergence));
            CHECK(std::isnan(reference.loss_full));
            CHECK(std::isnan(reference.divergence));
            CHECK(std::isfinite(reference.loss));
        }
    }
}

TEST_SUITE_END();
