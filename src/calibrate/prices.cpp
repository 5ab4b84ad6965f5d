#include "calibrate/prices.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <unordered_map>

#include "base/limits.h"

namespace stief {

static bool too_large(size_t floats) {
    return floats * sizeof(float) > available_memory() / 2;
}

PriceSamples::PriceSamples(const Config& c, size_t of_tokens, const std::string& folder)
    : units(2 * size_t(c.L) * size_t(c.G)),
      tokens(of_tokens),
      d(size_t(c.d)),
      data(units * 2 * tokens * d, folder, too_large(units * 2 * tokens * d)) {}

// The first layer's keys before rotation and its values are functions of the token alone: equal
// tokens of a sequence are rounded to the same error, and what is asked of it is the sum of what is
// asked of each. It goes to the first of them.
static void join_equal_tokens(float* g, const std::vector<Token>& ids, size_t first, size_t d) {
    std::unordered_map<Token, size_t> seen;
    for (size_t t = 0; t + first < ids.size(); t++) {
        size_t one = seen.emplace(ids[t + first], t).first->second;
        if (one == t) continue;
        for (size_t i = 0; i < d; i++) g[one * d + i] += g[t * d + i];
        std::fill_n(g + t * d, d, 0.0f);
    }
}

void collect_samples(ModelBackward& model, const Sequences& sequences, PriceSamples& samples,
                     const std::vector<LayerCuts>& cuts, int sinks, uint64_t seed,
                     const std::function<void()>& progress) {
    LayerPass& pass = model.pass;
    const Config& c = pass.c;
    size_t T = size_t(sequences.T), first = size_t(sinks), each = T * samples.d, at = 0;
    std::vector<float> rows(size_t(c.G) * each);
    Random seeds(seed);
    for (size_t s = 0; s < sequences.count(); s++, at += T - first) {
        auto keep = [&](const float* from, int l, bool values, bool gradient) {
            pass.model.backend->download(rows.data(), from, rows.size() * sizeof(float));
            for (int g = 0; g < c.G; g++) {
                size_t unit = unit_of(c, l, g, values);
                float* to = (gradient ? samples.g(unit) : samples.k(unit)) + at * samples.d;
                std::copy_n(rows.data() + size_t(g) * each + first * samples.d,
                            (T - first) * samples.d, to);
                bool of_the_token = l == 0 && (values || !cuts[0].rotated);
                if (gradient && of_the_token)
                    join_equal_tokens(to, sequences.ids[s], first, samples.d);
            }
        };
        model.run(sequences.ids[s], sequences.step(s), cuts, seeds.next(), [&](int l) {
            keep(cuts[size_t(l)].rotated ? pass.k_rotated : pass.k, l, false, false);
            keep(pass.v, l, true, false);
            keep(pass.dk, l, false, true);
            keep(pass.dv, l, true, true);
        });
        progress();
    }
}

namespace {

// rows M, in double inside
std::vector<float> product(const float* rows, size_t n, const Matrix& M) {
    size_t d = M.rows;
    std::vector<float> out(n * d), m = to_floats(M);
    for (size_t t = 0; t < n; t++) {
        float* to = out.data() + t * d;
        for (size_t i = 0; i < d; i++) {
            float x = rows[t * d + i];
            for (size_t j = 0; j < d; j++) to[j] += x * m[i * d + j];
        }
    }
    return out;
}

Matrix from_floats(const std::vector<float>& floats, size_t d) {
    Matrix M(d, d);
    M.data.assign(floats.begin(), floats.end());
    return M;
}

Matrix moment_of(const float* g, const float* k, size_t n, size_t d, Covariance which) {
    Matrix C(d, d);
    if (which == Covariance::Plain) {
        add_gram(C, k, d, k, d, n);
        return C;
    }
    std::vector<float> weighted(n * d);
    for (size_t t = 0; t < n; t++) {
        double weight = 0;
        for (size_t i = t * d; i < (t + 1) * d; i++) weight += double(g[i]) * double(g[i]);
        for (size_t i = t * d; i < (t + 1) * d; i++) weighted[i] = float(weight) * k[i];
    }
    add_gram(C, weighted.data(), d, k, d, n);
    return C;
}

// a_i and n_i += share / n × those of rows of c (unit spread) and of g · D.
void add_prices(PricedUnit& unit, const std::vector<float>& c, const std::vector<float>& gD,
                size_t n, size_t d, double share) {
    for (size_t t = 0; t < n; t++) {
        const float *ct = c.data() + t * d, *gt = gD.data() + t * d;
        double rho2 = 0;
        for (size_t i = 0; i < d; i++) rho2 += double(ct[i]) * double(ct[i]) / double(d);
        for (size_t i = 0; i < d; i++) {
            double g2 = 0.5 * share * double(gt[i]) * double(gt[i]) / double(n);
            unit.dropped[i] += g2 * double(ct[i]) * double(ct[i]);
            unit.noise[i] += g2 * rho2;
        }
    }
}

std::vector<double> in_order(const std::vector<double>& from, const std::vector<size_t>& order) {
    std::vector<double> to;
    for (size_t i : order) to.push_back(from[i]);
    return to;
}

// The most dearly priced coordinate first.
void sort_by_price(PricedUnit& unit) {
    size_t d = unit.Q.rows;
    std::vector<size_t> order(d);
    std::iota(order.begin(), order.end(), 0);
    const std::vector<double>& price = unit.how.coded ? unit.noise : unit.dropped;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return price[a] > price[b]; });
    Matrix Q(d, d);
    for (size_t j = 0; j < d; j++)
        for (size_t i = 0; i < d; i++) Q(i, j) = unit.Q(i, order[j]);
    unit.dropped = in_order(unit.dropped, order), unit.noise = in_order(unit.noise, order);
    unit.turn_to(Q);
}

}  // namespace

void PricedUnit::turn_to(const Matrix& to) {
    Q = to;
    size_t d = Q.rows;
    Matrix E = stief::encode(Q, metric), D = stief::decode(Q, metric), C = times(moment, E);
    spread.assign(d, 1);
    for (size_t i = 0; i < d; i++) {
        double square = 0;
        for (size_t j = 0; j < d; j++) square += E(j, i) * C(j, i);
        if (square > 0) spread[i] = std::sqrt(square);
        for (size_t j = 0; j < d; j++) E(j, i) /= spread[i], D(i, j) *= spread[i];
    }
    encode = to_floats(E), decode = to_floats(D);
}

void price_again(PricedUnit& unit, const PriceSamples& samples, size_t index, double share) {
    size_t n = samples.tokens, d = samples.d;
    Matrix E = from_floats(unit.encode, d), D = from_floats(unit.decode, d);
    for (std::vector<double>* prices : {&unit.dropped, &unit.noise})
        for (double& one : *prices) one *= 1 - share;
    add_prices(unit, product(samples.k(index), n, E), product(samples.g(index), n, transpose(D)), n,
               d, share);
    sort_by_price(unit);
}

PricedUnit price_unit(const PriceSamples& samples, size_t index, const Pricing& how) {
    size_t n = samples.tokens, d = samples.d;
    const float *k = samples.k(index), *g = samples.g(index);
    Matrix energy(d, d), moment = moment_of(g, k, n, d, how.covariance);
    add_gram(energy, g, d, g, d, n);
    require_finite(moment, "second moments");
    PricedUnit unit;
    unit.how = how;
    unit.metric = metric_of(energy);
    unit.moment = Matrix(d, d);
    add_gram(unit.moment, k, d, k, d, n);
    for (double& x : unit.moment.data) x /= double(n);
    unit.turn_to(warm_start(moment, unit.metric).vectors);
    unit.dropped.assign(d, 0), unit.noise.assign(d, 0);
    price_again(unit, samples, index, 1);
    return unit;
}

std::vector<float> weights_of(const PricedUnit& unit) {
    std::vector<float> weight;
    double most = unit.noise.empty() || unit.noise[0] <= 0 ? 1 : unit.noise[0];
    for (double n : unit.noise) weight.push_back(float(std::max(n / most, 1e-6)));
    return weight;
}

namespace {

constexpr size_t ROUNDED = 1024;  // rows that the quantiser is measured on

// D_i at every width: Σ e² / Σ ρ² of coordinate i, all coordinates at that width.
std::vector<std::vector<double>> distortions(const std::vector<float>& c, size_t n, size_t d,
                                             const std::vector<float>& weight, DType dtype) {
    std::vector<std::vector<double>> all(RowFormat::WIDTHS, std::vector<double>(d));
    double energy = 0;
    for (size_t i = 0; i < n * d; i++) energy += double(c[i]) * double(c[i]) / double(d);
    std::vector<float> back(d);
    for (size_t w = 0; w < size_t(RowFormat::WIDTHS); w++) {
        RowFormat format;
        format.count[w] = uint16_t(w ? d / ROW_GROUP * ROW_GROUP : d);
        std::vector<unsigned char> row(format.bytes(dtype));
        for (size_t t = 0; t < n; t++) {
            const float* from = c.data() + t * d;
            pack_row(row.data(), from, weight.data(), format, dtype);
            unpack_row(back.data(), row.data(), format, dtype);
            for (size_t i = 0; i < size_t(format.kept()); i++) {
                double e = double(back[i]) - double(from[i]);
                all[w][i] += e * e / energy;
            }
        }
    }
    return all;
}

std::vector<float> sampled_rows(const PricedUnit& unit, const float* k, size_t tokens, size_t d,
                                size_t& n) {
    n = std::min(tokens, ROUNDED);
    std::vector<float> rows(n * d);
    for (size_t t = 0; t < n; t++) std::copy_n(k + t * tokens / n * d, d, rows.data() + t * d);
    return product(rows.data(), n, from_floats(unit.encode, d));
}

RowFormat format_at(const std::vector<int>& widths, size_t d) {
    RowFormat format;
    for (int w : widths)
        if (w < RowFormat::WIDTHS) format.count[size_t(w)] += ROW_GROUP;
    // Coordinates beyond the last whole group are stored with whole rows alone.
    if (size_t(format.count[0]) == d / ROW_GROUP * ROW_GROUP) format.count[0] = uint16_t(d);
    return format;
}

}  // namespace

static Choices ranks_of(const PricedUnit& unit, int d, DType dtype) {
    Choices all;
    for (int r = 0; r < d + RANK_STEP; r += RANK_STEP) {
        RowFormat format = RowFormat::whole(std::min(r, d));
        double error = 0;
        for (size_t i = size_t(format.kept()); i < size_t(d); i++) error += unit.dropped[i];
        all.push_back({format.bytes(dtype), error, format});
    }
    return all;
}

Choices formats_of(const PricedUnit& unit, const PriceSamples& samples, size_t index, DType dtype) {
    if (!unit.how.coded) return ranks_of(unit, int(samples.d), dtype);
    size_t d = samples.d, n, groups = d / ROW_GROUP;
    std::vector<float> c = sampled_rows(unit, samples.k(index), samples.tokens, d, n);
    auto D = distortions(c, n, d, weights_of(unit), dtype);
    constexpr int NONE = RowFormat::WIDTHS;
    auto price = [&](size_t group, int width) {
        double sum = 0;
        for (size_t i = group * ROW_GROUP; i < (group + 1) * ROW_GROUP; i++)
            sum += width == NONE ? unit.dropped[i] : unit.noise[i] * D[size_t(width)][i];
        return sum;
    };
    std::vector<int> widths(groups, NONE);
    double error = 0;
    for (double a : unit.dropped) error += a;
    double rest = error;
    for (size_t i = 0; i < groups; i++) rest -= price(i, NONE);
    Choices path = {{0, error, {}}};
    for (;;) {
        double best = 0;
        size_t best_group = 0;
        int best_width = NONE;
        RowFormat now = format_at(widths, d);
        for (size_t i = 0; i < groups; i++) {
            int most = i ? widths[i - 1] : 0;  // no wider than the group before it
            for (int w = widths[i] - 1; w >= most; w--) {
                std::vector<int> next = widths;
                next[i] = w;
                double bytes = double(format_at(next, d).bytes(dtype)) - double(now.bytes(dtype));
                double drop = (price(i, widths[i]) - price(i, w)) / bytes;
                if (drop > best) best = drop, best_group = i, best_width = w;
            }
        }
        if (best_width == NONE) break;
        widths[best_group] = best_width;
        RowFormat format = format_at(widths, d);
        error = size_t(format.kept()) == d ? 0 : rest;
        for (size_t i = 0; i < groups; i++) error += price(i, widths[i]);
        path.push_back({format.bytes(dtype), error, format});
    }
    return path;
}

double price_of(const PricedUnit& unit, const PriceSamples& samples, size_t index,
                const RowFormat& format, DType dtype) {
    size_t n = samples.tokens, d = samples.d;
    std::vector<float> c = product(samples.k(index), n, from_floats(unit.encode, d));
    std::vector<float> gD = product(samples.g(index), n, transpose(from_floats(unit.decode, d)));
    std::vector<float> weight = weights_of(unit), back(d);
    std::vector<unsigned char> row(format.bytes(dtype));
    double sum = 0;
    for (size_t t = 0; t < n; t++) {
        pack_row(row.data(), c.data() + t * d, weight.data(), format, dtype);
        unpack_row(back.data(), row.data(), format, dtype);
        std::fill(back.begin() + format.kept(), back.end(), 0.0f);
        double ge = 0;
        for (size_t i = 0; i < d; i++)
            ge += double(gD[t * d + i]) * (double(back[i]) - double(c[t * d + i]));
        sum += 0.5 * ge * ge;
    }
    return sum / double(n);
}

Cut cut_of(const PricedUnit& unit, const RowFormat& format) {
    return {unit.encode, unit.decode, weights_of(unit), format};
}

}  // namespace stief
