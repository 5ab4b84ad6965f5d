#include "calibrate/compare.h"

#include <algorithm>
#include <memory>

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

// moment (d, d) += what the mean had of it: μᵀμ, or of rotated keys the mean of (R_s μ)ᵀ(R_s μ), where
// angles (d, d) are the mean of (cos, sin)_sᵀ(cos, sin)_s.
static void add_mean_again(Matrix& moment, const std::vector<float>& mean, const Matrix* angles) {
    size_t d = mean.size(), half = d / 2;
    Matrix W(d, d);  // (cos, sin)_s W = R_s μ
    for (size_t j = 0; j < half; j++) {
        double a = double(mean[j]), b = double(mean[j + half]);
        W(j, j) = a, W(j + half, j) = -b, W(j, j + half) = b, W(j + half, j + half) = a;
    }
    Matrix shared = angles ? times(transpose(W), times(*angles, W)) : Matrix(d, d);
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++)
            moment(i, j) += angles ? shared(i, j) : double(mean[i]) * double(mean[j]);
}

// Over the positions that keys were learned at.
static Matrix angle_moment(const CalibrationRun& run) {
    size_t d = size_t(run.model.config.d), T = size_t(run.learn.T), count = run.learn.count();
    Matrix angles(d, d);
    for (int pos : run.learn.pos) {
        const float* from = run.rotation.data() + size_t(pos) * d;
        add_gram(angles, from, d, from, d, T);
    }
    for (double& x : angles.data) x /= double(T * count);
    return angles;
}

std::vector<LearnedLayer> eigen_layers(const CalibrationRun& run, const Units& units,
                                       const std::vector<PricedUnit>& unit) {
    const Config& c = run.model.config;
    std::vector<LearnedLayer> layers(size_t(c.L));
    bool any = std::any_of(unit.begin(), unit.end(), [](const PricedUnit& one) { return one.rotated; });
    Matrix angles = any ? angle_moment(run) : Matrix();
    run.model.threads->run(layers.size(), [&](size_t l) {
        std::vector<Matrix> k, v;
        bool rotated = unit[units.of(int(l), 0, false)].rotated;
        for (int g = 0; g < c.G; g++)
            for (bool values : {false, true}) {
                size_t u = units.of(int(l), g, values), d = size_t(c.d);
                size_t at = (size_t(g) - size_t(units.at(u).g)) * d;  // its block
                Matrix& own = (values ? v : k).emplace_back(d, d);
                for (size_t i = 0; i < d; i++)
                    std::copy_n(unit[u].moment.row(at + i) + at, d, own.row(i));
                if (!unit[u].mean.empty())  // EigenAttention subtracts none
                    add_mean_again(own, unit[u].mean, rotated ? &angles : nullptr);
            }
        layers[l] = eigen_attention(c, k, v, rotated, run.options.cache);
    });
    return layers;
}

std::vector<LayerCuts> cuts_of(const Bases& bases, const Config& c, int sinks, DType cache) {
    std::vector<LayerCuts> cuts;
    for (const Bases::Layer& from : bases.layer) {
        LayerCuts& layer = cuts.emplace_back(c, from.rotated, from.joint);
        layer.sinks = sinks, layer.dtype = cache;
        for (bool values : {false, true})
            for (size_t g = 0; g < (values ? from.v : from.k).size(); g++) {
                const HeadBasis& head = (values ? from.v : from.k)[g];
                (values ? layer.v : layer.k)[g] = {head.encode, head.decode, head.weight,
                                                   head.format, head.mean};
            }
    }
    return cuts;
}

std::vector<Measured> measure_caches(CalibrationRun& run, const std::vector<Bases>& ways) {
    Model& model = run.model;
    Backend& ops = *model.backend;
    const Config& c = model.config;
    const CalibrationOptions& o = run.options;
    bool exact = ops.exact;
    Transformer transformer(model, o.sequence);
    transformer.exact = exact;
    KvCache full(ops, c, o.sequence, o.cache);
    std::vector<std::unique_ptr<KvCache>> cut;
    for (const Bases& one : ways)
        cut.push_back(std::make_unique<KvCache>(ops, c, o.sequence, o.cache, &one));
    size_t V = size_t(c.V), scored = size_t(o.sequence) - 1;
    size_t piece = rows_together(c, std::min(scored, size_t(transformer.batch)));
    Buffer logits(ops, piece * V * sizeof(float), "logits");
    Buffer reference(ops, piece * V * sizeof(float), "the full cache's logits");
    std::vector<RowScore> scores(piece);
    std::vector<Tally> tally(ways.size());
    for (size_t s = 0; s < run.compared_windows(); s++) {
        const std::vector<Token>& ids = run.windows.ids[s];
        full.used = 0;
        for (auto& one : cut) one->used = 0;
        for (size_t at = 0; at < scored; at += piece) {
            std::span<const Token> part(ids.data() + at, std::min(piece, scored - at));
            int rows = int(part.size());
            transformer.forward_on_backend(full, part, reference.f32(), rows);
            for (size_t w = 0; w < ways.size(); w++) {
                transformer.forward_on_backend(*cut[w], part, logits.f32(), rows);
                ops.score(scores.data(), logits.f32(), reference.f32(), ids.data() + at + 1, rows, c.V);
                for (int i = 0; i < rows; i++) tally[w].add(scores[size_t(i)], true);
            }
        }
    }
    ops.exact = exact;
    std::vector<Measured> all;
    for (Tally& one : tally) all.push_back(one.result());
    return all;
}

void fill_in(std::vector<CalibrationResult::Point>& points, const std::vector<Measured>& measured) {
    for (size_t i = 0; i < points.size(); i++) {
        points[i].perplexity = measured[i].loss.perplexity;
        points[i].divergence = measured[i].divergence.mean;
    }
}

void compare(const CalibrationRun& run, const std::vector<LearnedLayer>& eigen,
             const MeasureWays& measure_ways, CalibrationResult& result) {
    const Config& c = run.model.config;
    double full = double(result.full_bytes_per_token);
    CalibrationOptions how = run.options;
    how.method = "eigen";
    std::vector<CalibrationResult::Point> points;
    std::vector<Bases> ways;
    auto add = [&](double keep, size_t bytes, Bases bases) {
        bases.sinks = how.sinks, bases.recent = how.recent;
        ways.push_back(std::move(bases)), points.push_back({keep, bytes, 0, 0});
    };
    auto finish = [&](const char* name) {
        if (!ways.empty()) fill_in(points, measure_ways(ways));
        result.compared.push_back({name, points});
        points.clear(), ways.clear();
    };
    for (double keep : {0.125, 0.25, 0.375, 0.5}) {
        Ranks ranks = ranks_within(c, eigen, how, size_t(keep * full + 1e-9));
        size_t bytes = coordinates(ranks) * size_of(how.cache);
        if (bytes == 0 || double(bytes) > keep * full) continue;  // the least threshold is too much
        Bases bases;
        for (int l = 0; l < c.L; l++)
            bases.layer.push_back(finished_layer(c, eigen[size_t(l)], l, ranks[size_t(l)]));
        add(keep, bytes, std::move(bases));
    }
    finish("EigenAttention's thresholds");
    for (int bits : {2, 3, 4, 8}) {
        if (c.d % ROW_GROUP) break;
        Bases bases = Bases::uniform(c, {}, {bits});
        size_t bytes = bases.bytes_per_token(how.cache);
        add(double(bytes) / full, bytes, std::move(bases));
    }
    finish("rotated uniform");
}

}  // namespace stief
