#include "calibrate/end_to_end.h"

#include <algorithm>
#include <cmath>

#include "calibrate/elementwise.h"
#include "calibrate/vectors.h"

namespace stief {

namespace {

// ln Σ e^z and the index of the largest.
struct Row {
    double log_sum;
    size_t top;
};

// Sums of at most 1024 terms in float, those in double: V = 128,256 terms.
template <class F>
double blocked_sum(size_t n, const F& term) {
    double total = 0;
    for (size_t begin = 0; begin < n; begin += 1024) {
        vectors::Four sums = {};
        size_t count = std::min<size_t>(1024, n - begin);
        vectors::by_fours(count, [&](size_t i, size_t width) {
            vectors::Four one = term(begin + i, width);
            for (size_t j = width; j < 4; j++) one[j] = 0;
            sums += one;
        });
        total += double(vectors::sum(sums));
    }
    return total;
}

Row read_row(const float* z, size_t V) {
    size_t top = size_t(std::max_element(z, z + V) - z);
    float most = z[top];
    double sum = blocked_sum(V, [&](size_t i, size_t width) {
        return vectors::exp(vectors::load(z + i, width) - most);
    });
    return {double(most) + std::log(sum), top};
}

// Σ p (ln p − ln q) = Σ p (z_p − z_q) − (ln Σ e^z_p − ln Σ e^z_q)
double divergence_of(const float* zp, const Row& p, const float* zq, const Row& q, size_t V) {
    float log_sum = float(p.log_sum);
    double sum = blocked_sum(V, [&](size_t i, size_t width) {
        vectors::Four a = vectors::load(zp + i, width);
        return vectors::exp(a - log_sum) * (a - vectors::load(zq + i, width));
    });
    return std::max(0.0, sum - p.log_sum + q.log_sum);
}

double mean(const std::vector<double>& all) {
    double sum = 0;
    for (double one : all) sum += one;
    return all.empty() ? 0 : sum / double(all.size());
}

Loss loss_of(const std::vector<double>& all) {
    double average = mean(all), squares = 0;
    for (double one : all) squares += (one - average) * (one - average);
    double n = double(all.size()), perplexity = std::exp(average);
    double deviation = n > 1 ? std::sqrt(squares / (n - 1)) : 0;
    return {perplexity, n > 0 ? perplexity * deviation / std::sqrt(n) : 0, all.size()};
}

}  // namespace

EndToEnd::EndToEnd(LayerPass& over, const Sequences& held_out, size_t at_most)
    : pass(over), sequences(held_out), count(std::min(at_most, held_out.count())) {
    size_t each = size_t(sequences.T) * size_t(pass.c.D);
    x.resize(each);
    xn.resize(each);
    full.resize(count * each);
    for (size_t s = 0; s < count; s++) {
        pass.model.backend->embed(x.data(), pass.model.embedding,
                                  {0, sequences.T, sequences.ids[s].data()});
        run(s, 0, nullptr);
        std::copy_n(x.data(), each, full.data() + s * each);
    }
}

// x: in the input of layer `first`, out the output of the last. Without cuts nothing is cut.
void EndToEnd::run(size_t s, int first, const std::vector<LayerCuts>* cuts) {
    LayerCuts whole(pass.c, false);
    for (int l = first; l < pass.c.L; l++) {
        pass.begin(l, x.data(), sequences.step(s));
        pass.forward(cuts ? (*cuts)[size_t(l)] : whole);
        std::copy_n(pass.out.data(), x.size(), x.data());
    }
}

// Of x against the full model's output of the same sequence; the last token predicts nothing known.
void EndToEnd::score(size_t s, std::vector<double>& loss, std::vector<double>& loss_full,
                     std::vector<double>& divergence, size_t& same_top) {
    Model& model = pass.model;
    size_t V = size_t(pass.c.V), D = size_t(pass.c.D), scored = size_t(sequences.T) - 1;
    size_t piece = std::clamp<size_t>((size_t(16) << 20) / (V * 4), 1, 512);
    const float* reference = full.data() + s * x.size();
    for (size_t at = 0; at < scored; at += piece) {
        size_t rows = std::min(piece, scored - at);
        logits.resize(piece * V);
        logits_full.resize(piece * V);
        const float* mine = x.data();
        for (auto [from, to] : {std::pair{mine, &logits}, std::pair{reference, &logits_full}}) {
            model.backend->rmsnorm(xn.data(), from + at * D, model.norm, pass.c.norm_eps,
                                   int(rows));
            model.backend->matmul(to->data(), xn.data(), model.classifier, int(rows), false);
        }
        std::vector<double> l(rows), f(rows), kl(rows);
        std::vector<char> same(rows);
        pass.threads.run(rows, [&](size_t i) {
            const float *zq = logits.data() + i * V, *zp = logits_full.data() + i * V;
            size_t next = size_t(sequences.ids[s][at + i + 1]);
            Row q = read_row(zq, V), p = read_row(zp, V);
            l[i] = q.log_sum - double(zq[next]), f[i] = p.log_sum - double(zp[next]);
            kl[i] = divergence_of(zp, p, zq, q, V);
            same[i] = p.top == q.top;
        });
        loss.insert(loss.end(), l.begin(), l.end());
        loss_full.insert(loss_full.end(), f.begin(), f.end());
        divergence.insert(divergence.end(), kl.begin(), kl.end());
        same_top += size_t(std::count(same.begin(), same.end(), char(1)));
    }
}

Measured EndToEnd::measure(const std::vector<LayerCuts>& cuts) {
    std::vector<double> loss, loss_full, kl;
    size_t same_top = 0;
    for (size_t s = 0; s < count; s++) {
        pass.model.backend->embed(x.data(), pass.model.embedding,
                                  {0, sequences.T, sequences.ids[s].data()});
        run(s, 0, &cuts);
        score(s, loss, loss_full, kl, same_top);
    }
    Measured all{loss_of(loss), loss_of(loss_full), {}};
    double average = mean(kl), n = double(kl.size());
    std::sort(kl.begin(), kl.end());
    size_t rank = size_t(std::ceil(0.99 * n)) - 1;
    all.divergence = {average, kl[rank], kl.back(), double(same_top) / n};
    return all;
}

double EndToEnd::sensitivity(const LayerInputs& inputs, int l, const LayerCuts& cuts) {
    std::vector<double> loss, loss_full, kl;
    size_t same_top = 0;
    double error = 0, energy = 0;
    for (size_t s = 0; s < count; s++) {
        pass.begin(l, inputs.held_x(s), sequences.step(s));
        pass.forward(cuts);
        error += squared_distance(pass.threads, pass.out.data(), inputs.held_y(s), x.size());
        energy += squared_norm(pass.threads, inputs.held_y(s), x.size());
        std::copy_n(pass.out.data(), x.size(), x.data());
        run(s, l + 1, nullptr);
        score(s, loss, loss_full, kl, same_top);
    }
    double delta = error / energy;
    return delta > 0 ? mean(kl) / delta : 0;
}

}  // namespace stief
