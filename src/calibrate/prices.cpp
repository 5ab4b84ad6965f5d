#include "calibrate/prices.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace stief {

namespace {

Matrix from_floats(const std::vector<float>& floats, size_t d) {
    Matrix M(d, d);
    M.data.assign(floats.begin(), floats.end());
    return M;
}

// Pairs (j, j + d/2) of each row turned by its angles.
void turn(std::vector<float>& rows, const std::vector<float>& angles, size_t d) {
    size_t half = d / 2;
    for (size_t t = 0; t < angles.size(); t += d)
        for (size_t j = t; j < t + half; j++) {
            float a = rows[j], b = rows[j + half], cos = angles[j], sin = angles[j + half];
            rows[j] = a * cos - b * sin, rows[j + half] = b * cos + a * sin;
        }
}

// A unit's rows, or what is asked of them, as a unit of keys stored so has them.
std::vector<float> rows_of(const PriceSamples& samples, const PricedUnit& unit, std::vector<float> rows) {
    if (unit.rotated) turn(rows, samples.turns, unit.width());
    return rows;
}
std::vector<float> keys_of(const PriceSamples& samples, const PricedUnit& unit, size_t index) {
    const float* k = samples.k(index);
    return rows_of(samples, unit, {k, k + samples.tokens * unit.width()});
}

std::vector<float> mean_of(const float* k, size_t n, size_t d) {
    std::vector<double> sum(d);
    for (size_t i = 0; i < n * d; i++) sum[i % d] += double(k[i]);
    std::vector<float> mean;
    for (double x : sum) mean.push_back(float(x / double(n)));
    return mean;
}

// rows (tokens, d) − μ, or R_s μ
void subtract(std::vector<float>& rows, const PricedUnit& unit, const std::vector<float>& turns) {
    const std::vector<float>& mean = unit.mean;
    if (mean.empty()) return;
    std::vector<float> means(rows.size());
    for (size_t i = 0; i < rows.size(); i++) means[i] = mean[i % mean.size()];
    if (unit.rotated) turn(means, turns, mean.size());
    for (size_t i = 0; i < rows.size(); i++) rows[i] -= means[i];
}

// Σ ‖g‖^power kᵀk
Matrix moment_of(const float* g, const float* k, size_t n, size_t d, double power) {
    Matrix C(d, d);
    std::vector<float> weighted(n * d);
    for (size_t t = 0; t < n; t++) {
        double square = 0;
        for (size_t i = t * d; i < (t + 1) * d; i++) square += double(g[i]) * double(g[i]);
        float weight = float(std::pow(square, power / 2));
        for (size_t i = t * d; i < (t + 1) * d; i++) weighted[i] = weight * k[i];
    }
    add_gram(C, weighted.data(), d, k, d, n);
    return C;
}

// Of rows of c (unit spread) and of g · D.
Prices prices_of(const std::vector<float>& c, const std::vector<float>& gD, size_t n, size_t d) {
    Prices prices{std::vector<double>(d), std::vector<double>(d)};
    for (size_t t = 0; t < n; t++) {
        const float *ct = c.data() + t * d, *gt = gD.data() + t * d;
        double rho2 = 0;
        for (size_t i = 0; i < d; i++) rho2 += double(ct[i]) * double(ct[i]) / double(d);
        for (size_t i = 0; i < d; i++) {
            double g2 = 0.5 * double(gt[i]) * double(gt[i]) / double(n);
            prices.dropped[i] += g2 * double(ct[i]) * double(ct[i]);
            prices.noise[i] += g2 * rho2;
        }
    }
    return prices;
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
    const std::vector<double>& price =
        unit.coded ? unit.compressed.noise : unit.compressed.dropped;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return price[a] > price[b]; });
    Matrix Q(d, d);
    for (size_t j = 0; j < d; j++)
        for (size_t i = 0; i < d; i++) Q(i, j) = unit.Q(i, order[j]);
    auto sort = [&](Prices& one) {
        one.dropped = in_order(one.dropped, order), one.noise = in_order(one.noise, order);
    };
    sort(unit.compressed);
    for (Prices& one : unit.age) sort(one);
    unit.turn_to(Q);
}

constexpr double MOST_MEAN = 4096;  // spreads that a mean may be
constexpr size_t ROUNDED = 1024;    // rows that the quantiser is measured on

// Of some of k (tokens, d), the unit's rows less their mean.
std::vector<std::vector<double>> distortions(const PricedUnit& unit, const float* k, size_t tokens,
                                             DType dtype) {
    size_t d = unit.Q.rows, n = std::min(tokens, ROUNDED);
    std::vector<float> rows(n * d);
    for (size_t t = 0; t < n; t++)
        std::copy_n(k + t * tokens / n * d, d, rows.data() + t * d);
    std::vector<float> c = times(rows.data(), n, from_floats(unit.encode, d));
    std::vector<float> weight = weights_of(unit), back(d);
    std::vector<std::vector<double>> all(RowFormat::WIDTHS, std::vector<double>(d));
    double energy = 0;
    for (float x : c) energy += double(x) * double(x) / double(d);
    for (size_t w = 0; w < size_t(RowFormat::WIDTHS) && energy > 0; w++) {
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

}  // namespace

void PricedUnit::turn_to(const Matrix& to) {
    Q = to;
    size_t d = Q.rows;
    Matrix E = stief::encode(Q, metric), D = stief::decode(Q, metric), C = times(moment, E);
    spread.assign(d, 1);
    double mean_square = 0;
    for (float x : mean) mean_square += double(x) * double(x);
    for (size_t i = 0; i < d; i++) {
        double square = 0, column = 0;
        for (size_t j = 0; j < d; j++) square += E(j, i) * C(j, i), column += E(j, i) * E(j, i);
        // Whole rows keep the mean: in units of what is left of them it is to remain a 16-bit number.
        square = std::max(square, mean_square * column / (MOST_MEAN * MOST_MEAN));
        if (square > 0) spread[i] = std::sqrt(square);
        for (size_t j = 0; j < d; j++) E(j, i) /= spread[i], D(i, j) *= spread[i];
    }
    encode = to_floats(E), decode = to_floats(D);
}

// In the basis that the unit has, in the order of its coordinates. k: its rows less their mean
static void set_prices(PricedUnit& unit, const PriceSamples& samples, size_t index, const float* k) {
    size_t n = samples.tokens, d = unit.width();
    std::vector<float> c = times(k, n, from_floats(unit.encode, d));
    Matrix Dt = transpose(from_floats(unit.decode, d));
    auto by = [&](std::vector<float> g) {
        return prices_of(c, times(rows_of(samples, unit, std::move(g)).data(), n, Dt), n, d);
    };
    unit.age.clear();
    for (size_t age = 0; age < samples.ages; age++) {
        const float* g = samples.g_of_age(index, age);
        unit.age.push_back(by({g, g + n * d}));
    }
    unit.compressed = samples.ages > 1 ? by(samples.g_compressed(index)) : unit.age[0];
}

PricedUnit price_unit(const PriceSamples& samples, size_t index, bool coded, bool rotated,
                      DType dtype) {
    size_t n = samples.tokens, d = samples.units.width(index);
    bool values = samples.units.at(index).values;
    PricedUnit unit;
    unit.coded = coded, unit.rotated = rotated && !values, unit.Q = Matrix(d, d);
    if (coded && !values) unit.mean = mean_of(samples.k(index), n, d);
    std::vector<float> k = keys_of(samples, unit, index);
    std::vector<float> g = rows_of(samples, unit, samples.g_compressed(index));
    subtract(k, unit, samples.turns);
    Matrix energy(d, d), moment = moment_of(g.data(), k.data(), n, d, coded ? 1 : 2);
    add_gram(energy, g.data(), d, g.data(), d, n);
    require_finite(moment, "second moments");
    unit.metric = metric_of(energy);
    unit.moment = Matrix(d, d);
    add_gram(unit.moment, k.data(), d, k.data(), d, n);
    for (double& x : unit.moment.data) x /= double(n);
    unit.turn_to(warm_start(moment, unit.metric).vectors);
    set_prices(unit, samples, index, k.data());
    sort_by_price(unit);
    if (coded) unit.distortion = distortions(unit, k.data(), n, dtype);
    return unit;
}

void price_again(PricedUnit& unit, const PriceSamples& samples, size_t index, DType dtype) {
    std::vector<float> k = keys_of(samples, unit, index);
    subtract(k, unit, samples.turns);
    set_prices(unit, samples, index, k.data());
    if (unit.coded) unit.distortion = distortions(unit, k.data(), samples.tokens, dtype);
}

std::vector<float> weights_of(const PricedUnit& unit) {
    std::vector<float> weight;
    const std::vector<double>& noise = unit.compressed.noise;
    double most = noise.empty() ? 0 : *std::max_element(noise.begin(), noise.end());
    for (double n : noise) weight.push_back(float(most > 0 ? std::max(n / most, 1e-6) : 1e-6));
    return weight;
}

double price_of(const PricedUnit& unit, const Prices& prices, const RowFormat& format) {
    size_t d = prices.noise.size(), i = 0;
    double sum = 0;
    if (!unit.coded) {
        for (i = size_t(format.kept()); i < d; i++) sum += prices.dropped[i];
        return sum;
    }
    for (size_t w = 0; w < format.count.size(); w++)
        for (size_t end = i + format.count[w]; i < end; i++)
            sum += prices.noise[i] * unit.distortion[w][i];
    for (; i < d; i++) sum += prices.dropped[i];
    return sum;
}

static Choices ranks_of(const PricedUnit& unit, const Prices& prices, DType dtype) {
    Choices all;
    int d = int(prices.noise.size());
    for (int r = 0; r < d + RANK_STEP; r += RANK_STEP) {
        RowFormat format = RowFormat::whole(std::min(r, d));
        all.push_back({format.bytes(dtype), price_of(unit, prices, format), format});
    }
    return all;
}

static RowFormat format_at(const std::vector<int>& widths, size_t d) {
    RowFormat format;
    for (int w : widths)
        if (w < RowFormat::WIDTHS) format.count[size_t(w)] += ROW_GROUP;
    // Coordinates beyond the last whole group are stored with whole rows alone.
    if (size_t(format.count[0]) == d / ROW_GROUP * ROW_GROUP) format.count[0] = uint16_t(d);
    return format;
}

Choices formats_of(const PricedUnit& unit, const Prices& prices, DType dtype) {
    if (!unit.coded) return ranks_of(unit, prices, dtype);
    size_t d = prices.noise.size(), groups = d / ROW_GROUP;
    constexpr int NONE = RowFormat::WIDTHS;
    auto price = [&](size_t group, int width) {
        double sum = 0;
        for (size_t i = group * ROW_GROUP; i < (group + 1) * ROW_GROUP; i++)
            sum += width == NONE ? prices.dropped[i]
                                 : prices.noise[i] * unit.distortion[size_t(width)][i];
        return sum;
    };
    std::vector<int> widths(groups, NONE);
    Choices path = {{0, price_of(unit, prices, {}), {}}};
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
        if (best_width == NONE) return path;
        widths[best_group] = best_width;
        RowFormat format = format_at(widths, d);
        path.push_back({format.bytes(dtype), price_of(unit, prices, format), format});
    }
}

Cut cut_of(const PricedUnit& unit, const std::vector<RowFormat>& format) {
    return {unit.encode, unit.decode, weights_of(unit), format, unit.mean};
}

}  // namespace stief
