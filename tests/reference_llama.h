// A Llama in double precision, written from the equations, one token at a time: what the forward
// pass is compared with. Shared with the runtime are only config, tensors and rotary frequencies.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "base/bf16.h"
#include "model/weights.h"

namespace stief::testing {

using Vec = std::vector<double>;

inline double element(const Tensor& t, size_t i) {
    const char* at = static_cast<const char*>(t.data) + i * size_of(t.dtype);
    if (t.dtype == DType::F32) {
        float x;
        std::memcpy(&x, at, 4);
        return x;
    }
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return t.dtype == DType::BF16 ? double(to_float(bf16{bits})) : double(to_float(f16{bits}));
}

inline Vec product(const Tensor& w, const Vec& x) {           // w x
    Vec y(w.shape[0], 0.0);
    for (size_t n = 0; n < y.size(); n++)
        for (size_t k = 0; k < x.size(); k++) y[n] += element(w, n * x.size() + k) * x[k];
    return y;
}

inline Vec normed(const Vec& x, const Tensor& w, double eps) {
    double sum = 0;
    for (double one : x) sum += one * one;
    Vec y(x.size());
    for (size_t i = 0; i < x.size(); i++)
        y[i] = x[i] / std::sqrt(sum / double(x.size()) + eps) * element(w, i);
    return y;
}

// Rotates pairs (j, j + d/2) of every head of x.
inline void rotate(Vec& x, size_t d, size_t pos, const std::vector<double>& theta) {
    for (size_t head = 0; head < x.size(); head += d)
        for (size_t j = 0; j < d / 2; j++) {
            double angle = double(pos) * theta[j];
            double a = x[head + j], b = x[head + j + d / 2];
            x[head + j] = a * std::cos(angle) - b * std::sin(angle);
            x[head + j + d / 2] = b * std::cos(angle) + a * std::sin(angle);
        }
}

struct ReferenceLlama {
    const Config& c;
    const Weights& w;
    std::vector<double> theta;
    std::vector<std::vector<Vec>> keys, values;               // [layer][position] (G·d)

    ReferenceLlama(const Config& config, const Weights& weights)
        : c(config), w(weights), theta(rope_frequencies(config)), keys(size_t(c.L)), values(keys) {}

    Vec attention(const Vec& q, size_t l) const {
        size_t d = size_t(c.d), group = size_t(c.H / c.G), S = keys[l].size();
        Vec out(q.size(), 0.0);
        for (size_t h = 0; h < size_t(c.H); h++) {
            size_t at = h / group * d;
            Vec p(S);
            double sum = 0, most = -1e300;
            for (size_t s = 0; s < S; s++) {
                p[s] = 0;
                for (size_t i = 0; i < d; i++) p[s] += q[h * d + i] * keys[l][s][at + i];
                p[s] /= std::sqrt(double(d));
                most = std::max(most, p[s]);
            }
            for (double& one : p) sum += one = std::exp(one - most);
            for (size_t s = 0; s < S; s++)
                for (size_t i = 0; i < d; i++) out[h * d + i] += p[s] / sum * values[l][s][at + i];
        }
        return out;
    }

    Vec next(Token id) {                                      // logits after one more token
        Vec x(static_cast<size_t>(c.D));
        for (size_t i = 0; i < x.size(); i++)
            x[i] = element(w.embedding, size_t(id) * x.size() + i);
        for (size_t l = 0; l < size_t(c.L); l++) {
            const LayerWeights& layer = w.layer[l];
            Vec xn = normed(x, layer.attn_norm, double(c.norm_eps));
            Vec q = product(layer.wq, xn), k = product(layer.wk, xn);
            rotate(q, size_t(c.d), keys[l].size(), theta);
            rotate(k, size_t(c.d), keys[l].size(), theta);
            keys[l].push_back(k);
            values[l].push_back(product(layer.wv, xn));
            Vec att = product(layer.wo, attention(q, l));
            for (size_t i = 0; i < x.size(); i++) x[i] += att[i];

            xn = normed(x, layer.ffn_norm, double(c.norm_eps));
            Vec gate = product(layer.w_gate, xn), up = product(layer.w_up, xn);
            for (size_t i = 0; i < gate.size(); i++) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
            Vec down = product(layer.w_down, gate);
            for (size_t i = 0; i < x.size(); i++) x[i] += down[i];
        }
        return product(w.classifier, normed(x, w.norm, double(c.norm_eps)));
    }
};

}  // namespace stief::testing
