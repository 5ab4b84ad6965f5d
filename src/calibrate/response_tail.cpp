#include "calibrate/response_tail.h"

#include <algorithm>
#include <cmath>

#include "calibrate/collect.h"

namespace stief {
namespace {

constexpr size_t K_TOKENS = 64;

// One head's rows on the host.
struct Head {
    size_t T, d;
    std::vector<float> q, k, v;    // (T, d)  q and k rotated

    double dot(const float* a, const float* b) const {
        double sum = 0;
        for (size_t i = 0; i < d; i++) sum += double(a[i]) * double(b[i]);
        return sum;
    }
};

double tail_of(const Head& head) {
    size_t T = head.T, d = head.d, K = std::min(K_TOKENS, T);
    auto token = [&](size_t j) { return j * T / K; };
    Matrix A(T, K), C(T, K), S(T, K);    // a_tj;  a_tj (v_j · o_t);  a_tj |o_t|²
    std::vector<double> a(T);
    std::vector<float> o(d);
    double scale = 1 / std::sqrt(double(d));
    for (size_t t = 0; t < T; t++) {
        double most = -INFINITY, Z = 0;
        for (size_t s = 0; s <= t; s++) {
            a[s] = scale * head.dot(&head.q[t * d], &head.k[s * d]);
            most = std::max(most, a[s]);
        }
        for (size_t s = 0; s <= t; s++) Z += a[s] = std::exp(a[s] - most);
        std::fill(o.begin(), o.end(), 0.0f);
        for (size_t s = 0; s <= t; s++)
            for (size_t i = 0; i < d; i++) o[i] += float(a[s] / Z) * head.v[s * d + i];
        double square = head.dot(o.data(), o.data());
        for (size_t j = 0; j < K && token(j) <= t; j++) {
            double p = a[token(j)] / Z;
            A(t, j) = p;
            C(t, j) = p * head.dot(&head.v[token(j) * d], o.data());
            S(t, j) = p * square;
        }
    }
    // r_i · r_j = Σ_t a_ti a_tj (v_i·v_j − v_i·o_t − v_j·o_t + |o_t|²)
    Matrix G = transposed_times(A, A), across = transposed_times(C, A);
    for (size_t i = 0; i < K; i++)
        for (size_t j = 0; j < K; j++)
            G(i, j) *= head.dot(&head.v[token(i) * d], &head.v[token(j) * d]);
    add_scaled(G, -1, across);
    add_scaled(G, -1, transpose(across));
    add_scaled(G, 1, transposed_times(S, A));
    double tail = 0;
    std::vector<double> values = eigen_symmetric(G).values;
    for (size_t i = K / 3; i < K; i++) tail += std::max(0.0, values[i]);
    return tail / double(K);
}

}  // namespace

double response_tail(LayerPass& pass, std::span<const Token> ids) {
    Backend& ops = *pass.model.backend;
    const Config& c = pass.c;
    size_t T = ids.size(), G = size_t(c.G), d = size_t(c.d), m = size_t(c.H / c.G);
    Buffer x(ops, T * size_t(c.D) * sizeof(float), "a window's residual stream");
    embed_sequence(pass.model, x.f32(), {ids.begin(), ids.end()});
    LayerCuts whole(c, false);
    std::vector<float> q(G * T * m * d), k(G * T * d), v(G * T * d);
    std::vector<double> tails(G);
    double sum = 0;
    for (int l = 0; l < c.L; l++) {
        pass.begin_on_backend(l, x.f32(), {0, int(T)});
        pass.forward(whole);
        ops.download(q.data(), pass.q, q.size() * sizeof(float));
        ops.download(k.data(), pass.k_rotated, k.size() * sizeof(float));
        ops.download(v.data(), pass.v, v.size() * sizeof(float));
        pass.ops_back->copy(x.f32(), pass.out, T * size_t(c.D));
        pass.threads.run(G, [&](size_t g) {
            Head head{T, d, std::vector<float>(T * d), {}, {}};
            for (size_t t = 0; t < T; t++)
                std::copy_n(&q[((g * T + t) * m) * d], d, &head.q[t * d]);
            head.k.assign(&k[g * T * d], &k[g * T * d] + T * d);
            head.v.assign(&v[g * T * d], &v[g * T * d] + T * d);
            tails[g] = tail_of(head);
        });
        for (double tail : tails) sum += tail / double(G * size_t(c.L));
    }
    return sum;
}

}  // namespace stief
