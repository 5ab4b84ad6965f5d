#include "calibrate/compare.h"

namespace stief {

LearnedLayer eigen_attention(const Config& c, const std::vector<Matrix>& k,
                             const std::vector<Matrix>& v, bool rotated, DType cache) {
    LearnedLayer layer;
    layer.rotated = rotated, layer.cache = cache;
    auto add = [&](bool values, int first, int count, const Matrix& moment) {
        BasisUnit unit{values, first, count, identity_metric(size_t(c.d)), {}, {}, {}};
        EigenPairs pairs = warm_start(moment, unit.metric);
        unit.spectrum = pairs.values, unit.warm = unit.Q = pairs.vectors;
        layer.units.push_back(std::move(unit));
    };
    Matrix keys = k[0];
    for (size_t g = 1; g < k.size(); g++) add_scaled(keys, 1, k[g]);
    add(false, 0, c.G, keys);
    for (int g = 0; g < c.G; g++) add(true, g, 1, v[size_t(g)]);
    return layer;
}

std::vector<LayerCuts> cuts_of(const Bases& bases, const Config& c, int sinks, DType cache) {
    std::vector<LayerCuts> cuts;
    for (const Bases::Layer& from : bases.layer) {
        LayerCuts& layer = cuts.emplace_back(c, from.rotated);
        layer.sinks = sinks, layer.dtype = cache;
        for (size_t g = 0; g < size_t(c.G); g++)
            for (bool values : {false, true}) {
                const HeadBasis& head = (values ? from.v : from.k)[g];
                (values ? layer.v : layer.k)[g] = {head.encode, head.decode, head.weight,
                                                   head.format[0]};
            }
    }
    return cuts;
}

using Point = CalibrationResult::Point;

static void measure_into(std::vector<Point>& points, EndToEnd& windows,
                         const std::vector<std::vector<LayerCuts>>& ways) {
    std::vector<Measured> all = windows.measure(ways);
    for (size_t i = 0; i < all.size(); i++) {
        points[i].perplexity = all[i].loss.perplexity;
        points[i].divergence = all[i].divergence.mean;
    }
}

void compare(const CalibrationRun& run, EndToEnd& windows, const std::vector<LearnedLayer>& eigen,
             int sinks, CalibrationResult& result) {
    const Config& c = run.model.config;
    double full = double(result.full_bytes_per_token);
    CalibrationOptions how = run.options;
    how.method = "eigen";
    std::vector<Point> points;
    std::vector<std::vector<LayerCuts>> ways;
    for (double keep : {0.125, 0.25, 0.375, 0.5}) {
        Ranks ranks = ranks_within(c, eigen, how, size_t(keep * full + 1e-9));
        size_t bytes = coordinates(ranks) * size_of(how.cache);
        if (bytes == 0 || double(bytes) > keep * full) continue;  // not even the least threshold fits
        std::vector<LayerCuts>& cuts = ways.emplace_back();
        for (size_t l = 0; l < eigen.size(); l++) {
            cuts.push_back(cuts_at(c, eigen[l], ranks[l], Which::Warm));
            cuts.back().sinks = sinks;
        }
        points.push_back({keep, bytes, 0, 0});
    }
    measure_into(points, windows, ways);
    result.compared.push_back({"EigenAttention's thresholds", points});

    points.clear(), ways.clear();
    for (int bits : {2, 3, 4, 8}) {
        if (c.d % ROW_GROUP) break;
        Bases bases = Bases::uniform(c, {}, {bits});
        size_t bytes = bases.bytes_per_token(how.cache);
        points.push_back({double(bytes) / full, bytes, 0, 0});
        ways.push_back(cuts_of(bases, c, sinks, how.cache));
    }
    measure_into(points, windows, ways);
    result.compared.push_back({"rotated uniform", points});
}

}  // namespace stief
