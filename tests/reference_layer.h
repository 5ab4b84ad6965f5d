// Decoder layer 0 in double precision by its equations, one token at a time, with keys and values
// changed on their way: what the layer loss and the output metric are compared with.
#pragma once
#include <functional>

#include "reference.h"
#include "reference_llama.h"

namespace stief::testing {

struct ReferenceLayer {
    const Config& c;
    const LayerWeights& w;
    std::vector<double> theta;
    bool rotated;  // keys are changed after rotation
    int pos;
    using Change = std::function<void(size_t t, Vec& k, Vec& v)>;

    std::vector<Vec> run(
        const std::vector<Vec>& x, const Change& change = [](size_t, Vec&, Vec&) {}) const {
        size_t d = size_t(c.d);
        std::vector<Vec> keys, values, out;
        for (size_t t = 0; t < x.size(); t++) {
            Vec xn = normed(x[t], w.attn_norm, double(c.norm_eps));
            Vec q = product(w.wq, xn), k = product(w.wk, xn), v = product(w.wv, xn);
            rotate(q, d, size_t(pos) + t, theta);
            if (rotated) rotate(k, d, size_t(pos) + t, theta);
            change(t, k, v);
            if (!rotated) rotate(k, d, size_t(pos) + t, theta);
            keys.push_back(k), values.push_back(v);
            out.push_back(finish(x[t], attend(q, keys, values)));
        }
        return out;
    }

  private:
    Vec attend(const Vec& q, const std::vector<Vec>& keys, const std::vector<Vec>& values) const {
        size_t d = size_t(c.d), group = size_t(c.H / c.G);
        Vec att(q.size(), 0.0);
        for (size_t h = 0; h < size_t(c.H); h++) {
            Vec p(keys.size());
            double sum = 0;
            for (size_t s = 0; s < p.size(); s++) {
                for (size_t i = 0; i < d; i++) p[s] += q[h * d + i] * keys[s][h / group * d + i];
                sum += p[s] = std::exp(p[s] / std::sqrt(double(d)));
            }
            for (size_t s = 0; s < p.size(); s++)
                for (size_t i = 0; i < d; i++)
                    att[h * d + i] += p[s] / sum * values[s][h / group * d + i];
        }
        return att;
    }

    Vec finish(const Vec& x, const Vec& att) const {
        Vec y = x, o = product(w.wo, att);
        for (size_t i = 0; i < y.size(); i++) y[i] += o[i];
        Vec yn = normed(y, w.ffn_norm, double(c.norm_eps));
        Vec gate = product(w.w_gate, yn), up = product(w.w_up, yn);
        for (size_t i = 0; i < gate.size(); i++) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
        Vec down = product(w.w_down, gate);
        for (size_t i = 0; i < y.size(); i++) y[i] += down[i];
        return y;
    }
};

}  // namespace stief::testing
