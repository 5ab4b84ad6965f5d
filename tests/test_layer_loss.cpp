// The layer loss and its way back, against the same equations in double precision and their central
// differences.
#include "calibrate/layer_loss.h"

#include "calibrate/elementwise.h"
#include "calibrate/stiefel.h"
#include "reference_layer.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Unit {  // one head's keys or values
    Matrix Q;
    Metric metric;
    size_t r;
};

Metric some_metric(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    Matrix energy = transposed_times(A, A);
    add_scaled(energy, double(d), identity(d));  // tame: S⁻¹ multiplies the rounding of f32
    return metric_of(energy);
}

Matrix some_basis(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    return qr(A).Q;
}

// k P with P = S Q J_r Qᵀ S⁻¹ in double, Q any matrix.
void cut(Vec& all, size_t at, const Unit& unit) {
    size_t d = unit.Q.rows;
    if (unit.r == d) return;
    Matrix Qr = first_columns(unit.Q, unit.r), row(1, d);
    for (size_t i = 0; i < d; i++) row(0, i) = all[at + i];
    row = times(
        times(times_transposed(times(times(row, unit.metric.S), Qr), Qr), unit.metric.S_inverse),
        identity(d));
    for (size_t i = 0; i < d; i++) all[at + i] = row(0, i);
}

double distance(const std::vector<Vec>& a, const std::vector<Vec>& b) {
    double sum = 0;
    for (size_t t = 0; t < a.size(); t++)
        for (size_t i = 0; i < a[t].size(); i++) sum += (a[t][i] - b[t][i]) * (a[t][i] - b[t][i]);
    return sum;
}

Floats flat(const std::vector<Vec>& rows) {
    Floats all;
    for (const Vec& row : rows) all.insert(all.end(), row.begin(), row.end());
    return all;
}

}  // namespace

TEST_CASE("matmul_transposed is x w for every shape, dtype and instruction set, exact and fast") {
    const struct {
        int T, N, K;
        const char* why;
    } cases[] = {{1, 1, 1, "the smallest"},           {1, 33, 70, "one row"},
                 {7, 31, 16, "an odd sum"},           {13, 129, 40, "a token past a tile"},
                 {33, 33, 65, "one past AMX tiles"},  {5, 1100, 50, "more than one chunk"},
                 {3, 4100, 33, "chunks of every set"}};
    for (auto c : cases)
        for (DType dtype : {DType::F32, DType::F16, DType::BF16})
            for (bool exact : {true, false}) {
                CAPTURE(c.why);
                CAPTURE(name_of(dtype));
                CAPTURE(exact);
                size_t T = size_t(c.T), N = size_t(c.N), K = size_t(c.K);
                Floats x = normals(T * N, 1);
                Elements w(normals(N * K, 2), dtype);
                Doubles want(T * K);
                for (size_t t = 0; t < T; t++)
                    for (size_t n = 0; n < N; n++)
                        for (size_t k = 0; k < K; k++)
                            want[t * K + k] += double(x[t * N + n]) * w.values[n * K + k];
                bool rounded = !exact && dtype == DType::BF16 && c.T > 1;
                check_everywhere(
                    want, rounded ? TOL_ROUNDED : TOL_F32, {}, [&](Backend& backend, float* out) {
                        backend.exact = exact;
                        backend.matmul_transposed(out, x.data(), w.matrix(c.N, c.K), c.T);
                    });
            }
}

TEST_CASE("swiglu's and the norm's way back are the central differences") {
    Threads threads(2);
    int T = 3, n = 7;
    Floats z = normals(21, 1), u = normals(21, 2), upstream = normals(21, 3), dz(21), du(21);
    swiglu_backward(threads, dz.data(), du.data(), upstream.data(), z.data(), u.data(), T, n);
    Doubles want_z, want_u;
    auto silu = [](double a) { return a / (1 + std::exp(-a)); };
    for (size_t i = 0; i < z.size(); i++) {
        double h = 1e-5, a = double(z[i]), b = double(u[i]), g = double(upstream[i]);
        want_z.push_back(g * b * (silu(a + h) - silu(a - h)) / (2 * h));
        want_u.push_back(g * silu(a));
    }
    CHECK(nmse(dz, want_z) <= TOL_F32);
    CHECK(nmse(du, want_u) <= TOL_F32);

    Floats w = normals(size_t(n), 4), dx(21, 1.0f);
    double eps = double(1e-5f);
    rmsnorm_backward(threads, dx.data(), upstream.data(), z.data(), w.data(), 1e-5f, T, n);
    Doubles want(21, 1.0);
    for (size_t t = 0; t < size_t(T); t++)
        for (size_t i = 0; i < size_t(n); i++)
            for (double h : {1e-5, -1e-5}) {
                double squares = 0, value = 0;
                auto at = [&](size_t j) { return double(z[t * size_t(n) + j]) + (j == i ? h : 0); };
                for (size_t j = 0; j < size_t(n); j++) squares += at(j) * at(j);
                for (size_t j = 0; j < size_t(n); j++)
                    value += double(upstream[t * size_t(n) + j]) * double(w[j]) * at(j) /
                             std::sqrt(squares / n + eps);
                want[t * size_t(n) + i] += value / (2 * h);
            }
    CHECK(nmse(dx, want) <= 1e-11);  // the difference itself: h² ≈ 1e-10 relative
}

TEST_CASE("the gradient of the layer's error in every basis is its central difference") {
    const struct {
        const char* why;
        bool rotated;
        size_t rk, rv;
        int T, H, G;
    } cases[] = {{"keys before rotation", false, 4, 4, 9, 4, 2},
                 {"keys after rotation", true, 4, 6, 9, 4, 2},
                 {"one kv head, small ranks", false, 2, 1, 5, 3, 1},
                 {"values whole", false, 3, 8, 9, 4, 4},
                 {"keys whole", true, 8, 3, 7, 2, 2},
                 {"two blocks of queries", false, 4, 4, 131, 2, 1}};
    for (auto& one : cases) {
        std::string why = one.why;
        CAPTURE(why);
        Scratch scratch;
        TinyModel tiny{.why = one.why, .L = 1, .D = 16, .F = 24, .V = 32, .H = one.H, .G = one.G};
        tiny.deviation = 0.4;
        write_tiny_model(tiny, scratch.path("."));
        Model model = Model::open(scratch.path("."), {.name = "cpu"}, 2);
        model.backend->exact = true;
        const Config& c = model.config;
        size_t d = size_t(c.d), G = size_t(c.G), T = size_t(one.T);
        int pos = 37;

        Floats x = normals(T * size_t(c.D), 5);
        std::vector<Vec> rows;
        for (size_t t = 0; t < T; t++)
            rows.emplace_back(x.begin() + ptrdiff_t(t) * c.D, x.begin() + ptrdiff_t(t + 1) * c.D);
        std::vector<Unit> k_units, v_units;
        LayerCuts cuts(c, one.rotated);
        for (size_t g = 0; g < G; g++) {
            k_units.push_back({some_basis(d, 10 + g), some_metric(d, 20 + g), one.rk});
            v_units.push_back({some_basis(d, 30 + g), some_metric(d, 40 + g), one.rv});
            cuts.k[g] = cut_to_rank(k_units[g].Q, k_units[g].metric, one.rk);
            cuts.v[g] = cut_to_rank(v_units[g].Q, v_units[g].metric, one.rv);
        }
        ReferenceLayer layer{c, model.weights.layer[0], rope_frequencies(c), one.rotated, pos};
        auto cut_all = [&](size_t, Vec& k, Vec& v) {
            for (size_t g = 0; g < G; g++) cut(k, g * d, k_units[g]), cut(v, g * d, v_units[g]);
        };
        std::vector<Vec> y = layer.run(rows), cut_y = layer.run(rows, cut_all);

        std::vector<float> rotation = rotation_table(c, pos + one.T);
        LayerPass pass(model, one.T, rotation);
        Floats y_float = flat(y), cut_float = flat(cut_y);
        pass.begin(0, x.data(), {pos, one.T});
        pass.forward(LayerCuts(c, one.rotated));
        CHECK(nmse(pass.out, y_float) <= TOL_F32);
        pass.forward(cuts);
        CHECK(nmse(pass.out, cut_float) <= TOL_F32);

        LayerGradient gradient(c);
        pass.backward(cuts, y_float.data(), 1.0, gradient);
        for (bool values : {false, true})
            for (size_t g = 0; g < G; g++) {
                CAPTURE(values);
                CAPTURE(g);
                std::vector<Unit>& units = values ? v_units : k_units;
                Unit& unit = units[g];
                if (unit.r == d) continue;
                const Matrix& moment = values ? gradient.v[g] : gradient.k[g];
                Matrix AtB = times(times(unit.metric.S, moment), unit.metric.S_inverse);
                Matrix got = stiefel_gradient(unit.Q, AtB, unit.r), want(d, d);
                for (size_t i = 0; i < d; i++)
                    for (size_t j = 0; j < unit.r; j++) {
                        double h = 1e-5, keep = unit.Q(i, j);
                        unit.Q(i, j) = keep + h;
                        double above = distance(y, layer.run(rows, cut_all));
                        unit.Q(i, j) = keep - h;
                        double below = distance(y, layer.run(rows, cut_all));
                        unit.Q(i, j) = keep;
                        want(i, j) = (above - below) / (2 * h);
                    }
                CAPTURE(norm(want));
                CHECK(nmse(got.data, want.data) <= 1e-9);  // f32 there and back, differences here
            }
    }
}

TEST_CASE("changing one head gives what a whole pass gives; threads do not matter") {
    Scratch scratch;
    write_tiny_model({.why = "change", .L = 1, .dtype = DType::BF16}, scratch.path("."));
    Floats first;
    for (int count : {1, 2, 3}) {
        Model model = Model::open(scratch.path("."), {.name = "cpu"}, count);
        const Config& c = model.config;
        int T = 150;
        Floats x = normals(size_t(T * c.D), 6), y = normals(size_t(T * c.D), 7);
        std::vector<float> rotation = rotation_table(c, T);
        LayerPass pass(model, T, rotation);
        pass.begin(0, x.data(), {0, T});
        LayerCuts cuts(c, false);
        pass.forward(cuts);
        cuts.k[1] = cut_to_rank(some_basis(size_t(c.d), 1), some_metric(size_t(c.d), 2), 3);
        pass.change(cuts, 1);
        Floats changed = pass.out;
        pass.forward(cuts);
        CHECK(same_bits(changed, pass.out));
        LayerGradient gradient(c);
        pass.backward(cuts, y.data(), 1, gradient);
        std::vector<float> all = to_floats(gradient.k[1]);
        all.insert(all.end(), changed.begin(), changed.end());
        if (count == 1) first = all;
        CHECK(same_bits(all, first));
    }
}

TEST_SUITE_END();
