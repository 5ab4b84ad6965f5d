#include "calibrate/learned_layer.h"

#include <algorithm>

#include "base/bf16.h"
#include "calibrate/stiefel.h"

namespace stief {

const BasisUnit& LearnedLayer::unit(bool values, int g) const {
    for (const BasisUnit& one : units)
        if (one.values == values && g >= one.first && g < one.first + one.count) return one;
    fail("no basis of head %d", g);
}

// Along the straight line between the points of a curve.
static double error_at(const std::vector<RankPoint>& curve, int rank) {
    size_t i = 1;
    while (i < curve.size() && curve[i].rank < rank) i++;
    if (i == curve.size()) return curve.back().error;
    const RankPoint &a = curve[i - 1], &b = curve[i];
    double along = double(rank - a.rank) / (b.rank - a.rank);
    return (1 - along) * a.error + along * b.error;
}

const Matrix& LearnedLayer::best(const BasisUnit& unit, const LayerRanks& at) const {
    if (!descended) return unit.warm;
    double warm = 0, learned = 0;
    for (int g = unit.first; g < unit.first + unit.count; g++) {
        warm += error_at((unit.values ? warm_v : warm_k)[size_t(g)], at.at(unit.values, g));
        learned += error_at((unit.values ? v : k)[size_t(g)], at.at(unit.values, g));
    }
    return learned < warm ? unit.Q : unit.warm;
}

std::vector<RankPoint> LearnedLayer::curve(bool values, int g) const {
    std::vector<RankPoint> lower = (values ? warm_v : warm_k)[size_t(g)];
    for (size_t i = 0; descended && i < lower.size(); i++)
        lower[i].error = std::min(lower[i].error, (values ? v : k)[size_t(g)][i].error);
    return lower;
}

double LearnedLayer::error_of(bool values, int g, const LayerRanks& at) const {
    return error_at(curve(values, g), at.at(values, g));
}

LayerCuts cuts_at(const Config& config, const LearnedLayer& bases, const LayerRanks& ranks,
                  Which which) {
    LayerCuts cuts(config, bases.rotated);
    cuts.dtype = bases.cache;
    for (int g = 0; g < config.G; g++)
        for (bool values : {false, true}) {
            const BasisUnit& unit = bases.unit(values, g);
            const Matrix& Q = which == Which::Warm      ? unit.warm
                              : which == Which::Learned ? unit.Q
                                                        : bases.best(unit, ranks);
            (values ? cuts.v : cuts.k)[size_t(g)] =
                cut_to_rank(Q, unit.metric, size_t(ranks.at(values, g)));
        }
    return cuts;
}

Bases::Layer finished_layer(const Config& config, const LearnedLayer& bases, int l,
                            const LayerRanks& ranks) {
    Bases::Layer layer{bases.rotated, {}, {}};
    for (bool values : {false, true})
        for (int g = 0; g < config.G; g++) {
            const BasisUnit& unit = bases.unit(values, g);
            std::string name = format("layers.%d head %d %s", l, g, values ? "values" : "keys");
            Matrix Q = finished(bases.kept_warm ? unit.warm : bases.best(unit, ranks),
                                name.c_str());
            (values ? layer.v : layer.k)
                .push_back(HeadBasis::whole(ranks.at(values, g), to_floats(Q),
                                            to_floats(encode(Q, unit.metric)),
                                            to_floats(decode(Q, unit.metric))));
        }
    return layer;
}

// S² = Σ_{h in group} W_o,hᵀ W_o,h
static Matrix output_energy(const Model& model, int l, int g) {
    const Config& c = model.config;
    const Tensor& wo = model.weights.layer[size_t(l)].wo;  // (D, H·d)  the checkpoint's, on the host
    size_t d = size_t(c.d), m = size_t(c.H / c.G), width = wo.shape[1];
    std::vector<float> row(width);
    Matrix energy(d, d);
    for (int i = 0; i < c.D; i++) {
        const char* from =
            static_cast<const char*>(wo.data) + size_t(i) * width * size_of(wo.dtype);
        widen(row.data(), {from, wo.dtype, int(width), 1});
        const float* group = row.data() + size_t(g) * m * d;
        add_gram(energy, group, d, group, d, m);
    }
    return energy;
}

static Metric query_metric(const Matrix& queries, bool rotated) {
    if (rotated) return metric_of(queries);
    std::vector<double> square;  // a pair's sum is the same before and after rotation
    for (size_t i = 0; i < queries.rows; i++) square.push_back(queries(i, i));
    return pre_rotation_metric(square);
}

static Matrix sum_over(const BasisUnit& unit, const std::vector<Matrix>& heads) {
    Matrix sum(heads[0].rows, heads[0].cols);
    for (int g = unit.first; g < unit.first + unit.count; g++) add_scaled(sum, 1, heads[size_t(g)]);
    return sum;
}

static ProbedSide sum_over(const BasisUnit& unit, const std::vector<ProbedSide>& heads) {
    ProbedSide sum = heads[size_t(unit.first)];
    for (int g = unit.first + 1; g < unit.first + unit.count; g++) {
        add_scaled(sum.energy, 1, heads[size_t(g)].energy);
        add_scaled(sum.moment, 1, heads[size_t(g)].moment);
    }
    return sum;
}

static void find_warm(BasisUnit& unit, const Matrix& moment, const CalibrationOptions& options) {
    require_finite(moment, "second moments");
    EigenPairs pairs = warm_start(moment, unit.metric);
    unit.spectrum = pairs.values;
    unit.warm = options.method == "identity" ? identity(moment.rows) : pairs.vectors;
    unit.Q = unit.warm;
}

LearnedLayer warm_start_layer(Model& model, const Moments& moments, const OutputMoments& probed,
                            int l, bool rotated, const CalibrationOptions& options) {
    const Config& c = model.config;
    LearnedLayer bases;
    bases.rotated = rotated, bases.cache = options.cache;
    std::string metric = options.method == "identity" ? "identity" : options.metric;
    int shared = options.key_basis_per_layer ? c.G : 1;
    for (bool values : {false, true})
        for (int g = 0; g < c.G; g += values ? 1 : shared)
            bases.units.push_back({values, g, values ? 1 : shared, {}, {}, {}, {}});
    model.threads->run(bases.units.size(), [&](size_t i) {
        BasisUnit& unit = bases.units[i];
        auto of_side = [&](const auto& sums) -> const auto& {
            return unit.values ? sums.v : rotated ? sums.k_rotated : sums.k;
        };
        if (metric == "output") {
            ProbedSide side = sum_over(unit, of_side(probed));
            unit.metric = metric_of(side.energy);
            find_warm(unit, side.moment, options);
            return;
        }
        unit.metric = identity_metric(size_t(c.d));
        if (metric == "query")
            unit.metric = unit.values ? metric_of(output_energy(model, l, unit.first))
                                      : query_metric(sum_over(unit, moments.q), rotated);
        find_warm(unit, sum_over(unit, of_side(moments)), options);
    });
    return bases;
}

}  // namespace stief
