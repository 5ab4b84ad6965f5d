// The rest of the second seam on every backend that this machine runs: copies, sums, scores, and
// the turn of the bases.
#include <algorithm>

#include "backward_lab.h"
#include "matrices.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

TEST_CASE("copies, zeros, sums and differences of activations") {
    size_t n = 1037;
    Floats a = normals(n, 1), b = normals(n, 2);
    Doubles sum, difference;
    for (size_t i = 0; i < n; i++) {
        sum.push_back(double(a[i] + b[i]));
        difference.push_back((double(a[i]) - double(b[i])) * 0.25);
    }
    check_backward(sum, 0, a,
                   [&](Lab& lab, Backward& ops, float* out) { ops.add(out, lab.in(b), n); });
    check_backward(difference, TOL_F32, {}, [&](Lab& lab, Backward& ops, float* out) {
        ops.scaled_difference(out, lab.in(a), lab.in(b), 0.25f, n);
    });
    check_backward(Doubles(n), 0, a, [&](Lab&, Backward& ops, float* out) { ops.zero(out, n); });
    check_backward({a.begin(), a.end()}, 0, {},
                   [&](Lab& lab, Backward& ops, float* out) { ops.copy(out, lab.in(a), n); });
    // Columns 2 … 4 of rows of 7 into columns 1 … 3 of rows of 5.
    Floats before(20, 9.0f);
    Doubles want(20, 9.0);
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 3; j++) want[i * 5 + 1 + j] = double(a[i * 7 + 2 + j]);
    check_backward(want, 0, before, [&](Lab& lab, Backward& ops, float* out) {
        ops.copy_rows(out + 1, 5, lab.in(a) + 2, 7, 4, 3);
    });
    // The same row again and again.
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 3; j++) want[i * 5 + 1 + j] = double(a[2 + j]);
    check_backward(want, 0, before, [&](Lab& lab, Backward& ops, float* out) {
        ops.copy_rows(out + 1, 5, lab.in(a) + 2, 0, 4, 3);
    });
}

TEST_CASE("squared norms and distances are sums in double, the same every time") {
    for (size_t n : {1, 63, 4097, 100003}) {
        CAPTURE(n);
        Floats a = normals(n, 1), b = normals(n, 2);
        double norm = 0, distance = 0;
        for (size_t i = 0; i < n; i++) {
            norm += double(a[i]) * double(a[i]);
            distance += std::pow(double(a[i]) - double(b[i]), 2);
        }
        double first[2] = {};
        std::string group;
        for (const Variant& variant : variants()) {
            CAPTURE(variant.group);
            Lab lab(variant);
            auto ops = make_backward(*lab.backend);
            double got[2] = {ops->squared_norm(lab.in(a), n),
                             ops->squared_distance(lab.in(a), lab.in(b), n)};
            CHECK(std::abs(got[0] - norm) <= 1e-13 * norm);
            CHECK(std::abs(got[1] - distance) <= 1e-13 * distance);
            if (group != variant.group) first[0] = got[0], first[1] = got[1], group = variant.group;
            CHECK(got[0] == first[0]);
            CHECK(got[1] == first[1]);
        }
    }
}

TEST_CASE("gram products of rows are summed in double") {
    for (int d : {1, 8, 70})
        for (const Variant& variant : variants()) {
            CAPTURE(d);
            CAPTURE(variant.group);
            Lab lab(variant);
            size_t n = size_t(d);
            std::vector<Floats> a, b;
            std::vector<Matrix> sums(3, Matrix(n, n)), want = sums;
            std::vector<Gram> all;
            int rows[] = {1, 33, 100};
            for (size_t g = 0; g < 3; g++) {
                a.push_back(normals(size_t(rows[g]) * n, g)),
                    b.push_back(normals(a[g].size(), 9 + g));
                sums[g](0, 0) = want[g](0, 0) = 2;
                add_gram(want[g], a[g].data(), n, b[g].data(), n, size_t(rows[g]));
            }
            for (size_t g = 0; g < 3; g++)
                all.push_back({&sums[g], lab.in(a[g]), lab.in(b[g]), rows[g], d});
            make_backward(*lab.backend)->add_grams(all);
            for (size_t g = 0; g < 3; g++) CHECK(nmse(sums[g].data, want[g].data) <= 1e-28);
        }
}

TEST_CASE("bases turn by Cayley's transform, all at once, and stay orthonormal") {
    for (size_t d : {1, 8, 33, 128})
        for (const Variant& variant : variants()) {
            CAPTURE(d);
            CAPTURE(variant.group);
            Lab lab(variant);
            Random random(d);
            std::vector<Matrix> Q, W, want;
            std::vector<Turn> all;
            for (double tau : {0.05, 2.0}) {
                Matrix A = random_matrix(d, d, random), skew = A;
                add_scaled(skew, -1.0, transpose(A));
                Q.push_back(random_orthogonal(d, random)), W.push_back(skew);
                want.push_back(cayley(Q.back(), skew, tau));
            }
            all.push_back({&Q[0], &W[0], 0.05}), all.push_back({&Q[1], &W[1], 2.0});
            make_backward(*lab.backend)->cayley(all);
            for (size_t u = 0; u < 2; u++) {
                CHECK(nmse(Q[u].data, want[u].data) <= TOL_F32);
                Matrix E = transposed_times(Q[u], Q[u]);
                add_scaled(E, -1.0, identity(d));
                CHECK(norm(E) <= 1e-6);
            }
        }
}

namespace {

// cuda/cayley.cu's arithmetic in plain loops: f32, no pivots, then Newton-Schulz by QᵀQ in double.
void cayley_in_floats(Matrix& Q, const Matrix& W, double tau) {
    size_t d = Q.rows;
    Floats A(d * d), B = to_floats(Q), before = B;
    for (size_t i = 0; i < d * d; i++)
        A[i] = float(0.5 * tau * W.data[i]) + (i % (d + 1) == 0 ? 1.0f : 0.0f);
    auto reduce = [&](Floats& X, size_t i, size_t j, float factor) {
        for (size_t c = 0; c < d; c++) X[i * d + c] = std::fma(-factor, X[j * d + c], X[i * d + c]);
    };
    for (size_t j = 0; j < d; j++)
        for (size_t i = j + 1; i < d; i++) {
            float factor = A[i * d + j] * (1.0f / A[j * d + j]);
            reduce(B, i, j, factor), reduce(A, i, j, factor);
        }
    for (size_t j = d; j-- > 0;)
        for (size_t i = 0; i < j; i++) reduce(B, i, j, A[i * d + j] * (1.0f / A[j * d + j]));
    for (size_t i = 0; i < d * d; i++) B[i] = 2 * (B[i] / A[i / d * (d + 1)]) - before[i];
    Matrix turned(d, d);
    turned.data.assign(B.begin(), B.end());
    Matrix E = transposed_times(turned, turned);
    add_scaled(E, -1.0, identity(d));
    Matrix step = times(turned, E);
    for (size_t i = 0; i < d * d; i++) Q.data[i] = double(B[i] - 0.5f * float(step.data[i]));
}

// The largest ‖QᵀQ − I‖ on the way of noisy steps of 0.05, turned by turn(Q, W, tau).
template <class F>
double drift(size_t d, int steps, const F& turn) {
    Random random(7);
    Matrix Q = random_orthogonal(d, random);
    double worst = 0;
    for (int step = 0; step < steps; step++) {
        Matrix A = random_matrix(d, d, random), W = A;
        add_scaled(W, -1.0, transpose(A));
        double scale = 1 / norm(W);
        for (double& w : W.data) w *= scale;
        turn(Q, W, 0.05);
        worst = std::max(worst, from_identity(transposed_times(Q, Q)));
    }
    return worst;
}

}  // namespace

TEST_CASE("bases are orthonormal to 1e-5 after thousands of noisy turns") {
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Lab lab(variant);
        auto ops = make_backward(*lab.backend);
        CHECK(drift(12, 500, [&](Matrix& Q, const Matrix& W, double tau) {
                  Turn one{&Q, &W, tau};
                  ops->cayley({&one, 1});
              }) <= 1e-5);
    }
    CHECK(drift(32, 2000, cayley_in_floats) <= 1e-5);
}

TEST_CASE("rows are rounded to what a cache of their format would give back") {
    const struct {
        std::array<uint16_t, RowFormat::WIDTHS> count;
        int rows, d;
        const char* why;
    } cases[] = {{{0, 8, 8, 8, 8, 8, 8, 8}, 70, 64, "every width, more rows than a block"},
                 {{4, 0, 0, 0, 0, 0, 8, 8}, 5, 24, "elements, codes, and coordinates that are cut"},
                 {{8, 0, 0, 0, 0, 0, 0, 0}, 3, 8, "whole rows"},
                 {{0, 0, 0, 0, 0, 0, 0, 0}, 3, 8, "nothing is stored"},
                 {{0, 0, 0, 0, 0, 0, 0, 8}, 1, 8, "one row of one bit"},
                 {{16, 24, 40, 40, 80, 104, 72, 64}, 3, 480, "joint values"}};
    for (auto& c : cases)
        for (DType dtype : {DType::F16, DType::BF16, DType::F32})
            for (bool weighted : {false, true}) {
                CAPTURE(c.why);
                CAPTURE(std::string(name_of(dtype)));
                RowFormat format;
                format.count = c.count;
                size_t d = size_t(c.d), kept = size_t(format.kept());
                Floats x = normals(size_t(c.rows) * d, 6), weight(d);
                for (size_t i = 0; i < d; i++) weight[i] = 1 / float(1 + i);
                const float* w = weighted ? weight.data() : nullptr;
                Doubles want(x.size());
                std::vector<unsigned char> row(format.bytes(dtype) + 1);
                Floats back(d);
                for (size_t t = 0; t < size_t(c.rows); t++) {
                    pack_row(row.data(), &x[t * d], w, format, dtype);
                    unpack_row(back.data(), row.data(), format, dtype);
                    for (size_t i = 0; i < kept; i++) want[t * d + i] = double(back[i]);
                }
                check_backward(want, TOL_F32, x, [&](Lab&, Backward& ops, float* out) {
                    ops.round_rows(out, w, format, dtype, c.rows, c.d);
                });
            }
}

TEST_SUITE_END();
