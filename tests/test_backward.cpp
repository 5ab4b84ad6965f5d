// Every operation of the second seam (backend/backward.h) on every backend that this machine runs,
// against the same in double and against central differences.
#include "backward_lab.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

namespace {

constexpr struct {
    int T, m, S, first, d;
    const char* why;
} ROWS[] = {
    {1, 1, 1, 0, 1, "the smallest"},
    {1, 3, 9, 8, 5, "one token that sees all"},
    {3, 2, 7, 4, 8, "tails of fours"},
    {5, 1, 300, 295, 64, "longer than a block of threads"},
    {13, 4, 70, 57, 70, "heads of a group, one past a warp"},
};

size_t visible(int first, size_t row, int m) {
    return size_t(first) + row / size_t(m) + 1;
}

// Rows of softmax weights, 0 where they are not visible.
Floats some_weights(size_t rows, int m, size_t S, int first, uint64_t seed) {
    Floats p = normals(rows * S, seed);
    for (size_t row = 0; row < rows; row++) {
        float sum = 0;
        for (size_t s = 0; s < S; s++) {
            float& one = p[row * S + s];
            sum += one = s < visible(first, row, m) ? std::exp(one) : 0;
        }
        for (size_t s = 0; s < S; s++) p[row * S + s] /= sum;
    }
    return p;
}

}  // namespace

TEST_CASE("causal softmax is softmax over what a token sees, and zero beyond") {
    for (auto c : ROWS) {
        CAPTURE(c.why);
        size_t rows = size_t(c.T * c.m), S = size_t(c.S);
        Floats scores = normals(rows * S, 1);
        double scale = double(0.3f);
        Doubles want(rows * S);
        for (size_t row = 0; row < rows; row++) {
            double sum = 0;
            for (size_t s = 0; s < visible(c.first, row, c.m); s++)
                sum += want[row * S + s] = std::exp(double(scores[row * S + s]) * scale);
            for (size_t s = 0; s < S; s++) want[row * S + s] /= sum;
        }
        check_backward(want, TOL_F32, scores, [&](Lab&, Backward& ops, float* out) {
            ops.causal_softmax(out, c.T, c.m, c.S, c.first, 0.3f);
        });
    }
}

TEST_CASE("causal softmax's way back is its Jacobian's transpose") {
    for (auto c : ROWS) {
        CAPTURE(c.why);
        size_t rows = size_t(c.T * c.m), S = size_t(c.S), d = size_t(c.d);
        Floats p = some_weights(rows, c.m, S, c.first, 2), dp = normals(rows * S, 3);
        Floats out = normals(rows * d, 4), dout = normals(rows * d, 5);
        Doubles want(rows * S);
        for (size_t row = 0; row < rows; row++) {
            double inner = 0;
            for (size_t i = 0; i < d; i++)
                inner += double(out[row * d + i]) * double(dout[row * d + i]);
            for (size_t s = 0; s < visible(c.first, row, c.m); s++)
                want[row * S + s] =
                    double(p[row * S + s]) * (double(dp[row * S + s]) - inner) * double(0.3f);
        }
        check_backward(want, TOL_F32, dp, [&](Lab& lab, Backward& ops, float* ds) {
            ops.causal_softmax_backward(ds, lab.in(p), lab.in(out), lab.in(dout), c.T, c.m, c.S,
                                        c.first, c.d, 0.3f);
        });
    }
}

TEST_CASE("scores are copied where keys are at a distance, between blocks of different keys") {
    constexpr int T = 5, m = 2, FIRST = 40;
    struct Range { int first, count; };
    for (Range to : {Range{0, 45}, {30, 11}})
        for (Range from : {Range{0, 45}, {33, 9}, {44, 1}})
            for (Range distance : {Range{0, 3}, {2, 7}, {5, 1000}, {4, 0}, {50, 9}})
                for (bool zero_others : {false, true}) {
                    CAPTURE(to.first);
                    CAPTURE(from.first);
                    CAPTURE(distance.first);
                    CAPTURE(zero_others);
                    Floats before = normals(size_t(T * m * to.count), 1);
                    Floats source = normals(size_t(T * m * from.count), 2);
                    Doubles want;
                    for (int row = 0; row < T * m; row++)
                        for (int i = 0; i < to.count; i++) {
                            int key = to.first + i, away = FIRST + row / m - key, at = key - from.first;
                            bool taken = away >= distance.first && at >= 0 && at < from.count &&
                                         away < distance.first + distance.count;
                            double kept = zero_others ? 0 : before[size_t(row * to.count + i)];
                            want.push_back(taken ? source[size_t(row * from.count + at)] : kept);
                        }
                    check_backward(want, 0, before, [&](Lab& lab, Backward& ops, float* out) {
                        float* rows = const_cast<float*>(lab.in(source));
                        ops.copy_distances({out, to.first, to.count}, {rows, from.first, from.count}, T, m,
                                           FIRST, distance.first, distance.first + distance.count,
                                           zero_others);
                    });
                }
}

TEST_CASE("swiglu's way back is its central difference") {
    int T = 3, F = 107;
    size_t n = size_t(T * F);
    Floats z = normals(n, 1), u = normals(n, 2), upstream = normals(n, 3);
    Doubles want_z, want_u;
    auto silu = [](double a) { return a / (1 + std::exp(-a)); };
    for (size_t i = 0; i < n; i++) {
        double h = 1e-5, a = double(z[i]), b = double(u[i]), g = double(upstream[i]);
        want_z.push_back(g * b * (silu(a + h) - silu(a - h)) / (2 * h));
        want_u.push_back(g * silu(a));
    }
    for (bool up : {false, true})
        check_backward(up ? want_u : want_z, TOL_F32, {}, [&](Lab& lab, Backward& ops, float* out) {
            Output other(lab, n);
            ops.swiglu_backward(up ? other.data() : out, up ? out : other.data(), lab.in(upstream),
                                lab.in(z), lab.in(u), T, F);
        });
}

TEST_CASE("the norm's way back is its central difference, added to what is there") {
    for (DType dtype : {DType::F32, DType::F16, DType::BF16})
        for (int D : {7, 300}) {
            CAPTURE(std::string(name_of(dtype)));
            CAPTURE(D);
            size_t T = 3, n = size_t(D);
            Floats x = normals(T * n, 1), upstream = normals(T * n, 3), before(T * n, 1.0f);
            Elements w(normals(n, 4), dtype);
            double eps = double(1e-5f), h = 1e-5;
            Doubles want(T * n, 1.0);
            for (size_t t = 0; t < T; t++)
                for (size_t i = 0; i < n; i++)
                    for (double step : {h, -h}) {
                        double squares = 0, value = 0;
                        auto at = [&](size_t j) {
                            return double(x[t * n + j]) + (j == i ? step : 0);
                        };
                        for (size_t j = 0; j < n; j++) squares += at(j) * at(j);
                        for (size_t j = 0; j < n; j++)
                            value += double(upstream[t * n + j]) * w.values[j] * at(j) /
                                     std::sqrt(squares / double(n) + eps);
                        want[t * n + i] += value / (2 * step);
                    }
            check_backward(want, 1e-11, before, [&](Lab& lab, Backward& ops, float* dx) {
                ops.rmsnorm_backward(dx, lab.in(upstream), lab.in(x), lab.weight(w, D, 1), 1e-5f,
                                     int(T));
            });  // the difference itself: h² ≈ 1e-10 relative
        }
}

TEST_CASE("a product of a transpose is added") {
    const struct { int T, N, K; } cases[] = {{1, 1, 1}, {5, 70, 3}, {33, 17, 65}, {130, 40, 8}};
    for (auto c : cases) {
        CAPTURE(c.T);
        Floats a = normals(size_t(c.T * c.N), 1), b = normals(size_t(c.T * c.K), 2);
        Floats before = normals(size_t(c.N * c.K), 3);
        Doubles want(before.begin(), before.end());
        for (int t = 0; t < c.T; t++)
            for (int i = 0; i < c.N; i++)
                for (int j = 0; j < c.K; j++)
                    want[size_t(i * c.K + j)] +=
                        double(a[size_t(t * c.N + i)]) * double(b[size_t(t * c.K + j)]);
        check_backward(want, TOL_F32, before, [&](Lab& lab, Backward& ops, float* out) {
            ops.add_transposed_product(out, lab.in(a), lab.in(b), c.T, c.N, c.K);
        });
    }
}

TEST_SUITE_END();
