#include "calibrate/star.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/random.h"
#include "cache/basis.h"

namespace stief {

constexpr double STEEP = 50;  // s

StarGate star_gate(double x, double alpha) {
    if (!(x > alpha)) return {0, 0};
    double gate = std::tanh(STEEP * (x - alpha));
    return {gate, -STEEP * (1 - gate * gate)};
}

RowFormat star_format(int r, bool coded) {
    if (!coded) return RowFormat::whole(r);
    RowFormat format;
    for (size_t w = 0; w < RowFormat::WIDTHS; w++) {
        int first = (r / 5 + ROW_GROUP / 2) / ROW_GROUP * ROW_GROUP;
        if (RowFormat::BITS[w] == 4) format.count[w] = uint16_t(first);
        if (RowFormat::BITS[w] == 3) format.count[w] = uint16_t(r - first);
    }
    return format;
}

// What an error in a coordinate costs is the error of the row itself.
static void price_by_spread(PricedUnit& unit) {
    unit.compressed.noise.clear();
    for (double sigma : unit.spread) unit.compressed.noise.push_back(sigma * sigma);
}

Star::Star(const Units& of, std::vector<Matrix> moment, bool with_codes)
    : units(of),
      coded(with_codes),
      unit(moment.size()),
      x(moment.size()),
      alpha(size_t(of.L) * size_t(of.G + 1)) {
    std::vector<double> sum(alpha.size()), count(alpha.size());
    for (size_t u = 0; u < moment.size(); u++) {
        PricedUnit& one = unit[u];
        one.coded = coded;
        one.metric = identity_metric(units.width(u));
        one.moment = std::move(moment[u]);
        EigenPairs pairs = warm_start(one.moment, one.metric);
        one.turn_to(pairs.vectors);
        price_by_spread(one);
        for (double value : pairs.values) {
            x[u].push_back(std::sqrt(std::max(value, 0.0)));
            sum[threshold_of(u)] += x[u].back(), count[threshold_of(u)]++;
        }
    }
    for (size_t u = 0; u < unit.size(); u++)
        for (double& one : x[u]) {
            double mean = sum[threshold_of(u)] / count[threshold_of(u)];
            one = mean > 0 ? one / mean : 0;
        }
}

void Star::start_at(double share) {
    std::vector<std::vector<double>> all(alpha.size());
    for (size_t u = 0; u < unit.size(); u++)
        all[threshold_of(u)].insert(all[threshold_of(u)].end(), x[u].begin(), x[u].end());
    std::vector<double> most = limits();
    for (size_t a = 0; a < alpha.size(); a++) {
        std::sort(all[a].begin(), all[a].end(), std::greater<double>());
        size_t n = size_t(share * double(all[a].size()));
        alpha[a] = n >= all[a].size() ? 0 : n == 0 ? most[a] : (all[a][n - 1] + all[a][n]) / 2;
        alpha[a] = std::min(alpha[a], most[a]);
    }
}

std::vector<double> Star::limits() const {
    std::vector<double> most(alpha.size(), INFINITY);
    size_t step = coded ? ROW_GROUP : RANK_STEP;
    for (size_t u = 0; u < unit.size(); u++) {
        double open = x[u][std::min(step, x[u].size()) - 1] - 1 / STEEP;
        double& a = most[threshold_of(u)];
        a = std::max(0.0, std::min(a, open));
    }
    return most;
}

size_t Star::threshold_of(size_t u) const {
    Units::Unit at = units.at(u);
    return size_t(at.l) * size_t(units.G + 1) + size_t(at.values ? units.G : at.g);
}

std::vector<double> Star::gates(size_t u) const {
    std::vector<double> all;
    for (double one : x[u]) all.push_back(star_gate(one, alpha[threshold_of(u)]).value);
    return all;
}

Cut Star::gated_cut(size_t u) const {
    Cut cut = cut_of(unit[u], {});
    std::vector<double> gate = gates(u);
    size_t d = gate.size(), kept = 0;
    for (size_t i = 0; i < d; i++) {
        kept += gate[i] > 0;
        for (size_t j = 0; j < d; j++) cut.decode[i * d + j] *= float(gate[i]);
    }
    cut.format = {RowFormat::whole(int(kept))}, cut.lossless = false;
    return cut;
}

std::vector<LayerCuts> Star::gated_cuts(const Config& c, bool rotated, int sinks,
                                        DType dtype) const {
    std::vector<LayerCuts> cuts(size_t(c.L), LayerCuts(c, rotated, units.joint));
    for (LayerCuts& one : cuts) one.sinks = sinks, one.dtype = dtype;
    for (size_t u = 0; u < unit.size(); u++) {
        Units::Unit at = units.at(u);
        LayerCuts& layer = cuts[size_t(at.l)];
        (at.values ? layer.v : layer.k)[size_t(at.g)] = gated_cut(u);
    }
    return cuts;
}

void Star::add_gradient(std::vector<double>& gradient, size_t u, const Matrix& of_stored) const {
    const PricedUnit& one = unit[u];
    size_t d = one.Q.rows, a = threshold_of(u);
    for (size_t i = 0; i < d; i++) {
        double by_gate = 0;
        for (size_t j = 0; j < d; j++) by_gate += of_stored(i, j) * double(one.decode[i * d + j]);
        gradient[a] += by_gate * star_gate(x[u][i], alpha[a]).by_alpha;
    }
}

size_t Star::bytes(DType dtype) const {
    size_t sum = 0;
    for (size_t u = 0; u < unit.size(); u++) {
        int r = 0, step = coded ? ROW_GROUP : 1;
        for (double gate : gates(u)) r += gate > 0;
        sum += star_format((r + step / 2) / step * step, coded).bytes(dtype);
    }
    return sum;
}

std::vector<RowFormat> Star::formats_within(size_t budget, DType dtype) const {
    struct Group {
        double margin;
        size_t u;
        int end;  // the rank with this group
    };
    std::vector<Group> groups;
    int step = coded ? ROW_GROUP : RANK_STEP;
    for (size_t u = 0; u < unit.size(); u++)
        for (int first = 0, d = int(x[u].size()); first < d; first += step) {
            int end = std::min(first + step, d);
            if (coded && end - first < step) break;
            double mean = 0;
            for (int i = first; i < end; i++) mean += x[u][size_t(i)] / (end - first);
            groups.push_back({mean - alpha[threshold_of(u)], u, end});
        }
    std::stable_sort(groups.begin(), groups.end(),
                     [](const Group& a, const Group& b) { return a.margin > b.margin; });
    std::vector<int> rank(unit.size()), next(unit.size(), step);
    size_t sum = 0;
    for (const Group& one : groups) {
        size_t before = star_format(rank[one.u], coded).bytes(dtype);
        size_t after = star_format(one.end, coded).bytes(dtype);
        bool follows = one.end <= next[one.u];  // none was left out before it
        if (!follows || sum - before + after > budget) continue;
        sum += after - before, rank[one.u] = one.end, next[one.u] = one.end + step;
    }
    std::vector<RowFormat> formats;
    for (int r : rank) formats.push_back(star_format(r, coded));
    return formats;
}

PricedUnit Star::stored(size_t u, const RowFormat& format) const {
    PricedUnit one = unit[u];
    if (!coded) return one;
    Matrix Q = one.Q;
    size_t d = Q.rows, first = 0;
    Random random(u + 1);
    for (uint16_t count : format.count)
        for (size_t end = first + count; first < end;) {
            size_t n = std::bit_floor(end - first);  // 24 = 16 + 8
            Matrix block(d, n);
            for (size_t i = 0; i < d; i++) std::copy_n(one.Q.row(i) + first, n, block.row(i));
            block = times(block, random_rotation(n, random));
            for (size_t i = 0; i < d; i++)
                for (size_t j = 0; j < n; j++) Q(i, first + j) = block(i, j);
            first += n;
        }
    one.turn_to(Q);
    price_by_spread(one);
    return one;
}

}  // namespace stief
