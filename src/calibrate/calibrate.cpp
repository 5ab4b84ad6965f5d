#include "calibrate/calibrate.h"


#include "base/hash.h"
#include "base/seconds.h"
#include "calibrate/compare.h"
#include "calibrate/partial.h"
#include "forward/audit_log.h"

namespace stief {

namespace {

constexpr size_t SENSITIVITY_SEQUENCES = 4;

// --keys auto: after rotation where the eigenbases lose less there, keys alone at d/4 and d/2 on
// held-out sequences; before it otherwise.
LearnedLayer warm_start(CalibrationRun& run, const LayerInputs& inputs, const Moments& moments,
                      int l) {
    const CalibrationOptions& o = run.options;
    OutputMoments probed(run.model.config);
    if (o.metric == "output" && o.method != "identity")
        probed = probe_output(run.pass, inputs, l, o.seed, [&] { run.ticker(2); });
    LearnedLayer pre = warm_start_layer(run.model, moments, probed, l, false, o);
    if (o.keys == "pre") return pre;
    LearnedLayer post = warm_start_layer(run.model, moments, probed, l, true, o);
    if (o.keys == "post") return post;
    const Config& c = run.model.config;
    auto error = [&](const LearnedLayer& by, int r) {
        LayerCuts cuts = cuts_at(c, by, LayerRanks::all(c, r, c.d), Which::Warm);
        return held_out_error(run.pass, inputs, l, cuts);
    };
    double error_pre = error(pre, c.d / 4) + error(pre, c.d / 2);
    double error_post = error(post, c.d / 4) + error(post, c.d / 2);
    return error_post < error_pre ? post : pre;
}

// One sweep over the layers, of so many passes a layer. They do not depend on one another, but the
// inputs of each are the outputs of the one before. What an interrupted run has done is read, as
// layers `first` … of the folder.
void sweep(CalibrationRun& run, const Partial& partial, int first, size_t passes,
           CalibrationResult& result,
           const std::function<LearnedLayer(LayerInputs&, const Moments&, int)>& work,
           const std::function<void(const Moments&)>& seen = {}) {
    const Config& c = run.model.config;
    LayerInputs inputs(run.model, run.learn, run.held_out, partial.folder);
    std::vector<LearnedLayer> layers(size_t(c.L));
    size_t before = run.ticker.done;
    for (int l = 0; l < c.L; l++, inputs.next()) {
        run.ticker.phase = format("layer %d of %d, inputs", l + 1, c.L);
        Moments moments = collect(run.pass, inputs, l);
        run.ticker(run.learn.count());
        if (seen) seen(moments);
        LearnedLayer& bases = layers[size_t(l)];
        if (run.options.resume && partial.load(first + l, c, bases)) {
            bases.cache = run.options.cache;
            result.resumed++;
        } else {
            bases = work(inputs, moments, l);
            partial.save(first + l, bases);
        }
        run.ticker.done = before + size_t(l + 1) * passes;
    }
    result.layer = std::move(layers);
}

// Eigenbases, their error curves, and what the layer's error costs the model. Returns those of
// EigenAttention, to compare with.
std::vector<LearnedLayer> warm_starts(CalibrationRun& run, const Partial& partial,
                                      CalibrationResult& result) {
    const Config& c = run.model.config;
    std::vector<LearnedLayer> eigen;
    EndToEnd end_to_end(run.pass, run.held_out, SENSITIVITY_SEQUENCES);
    size_t passes = run.passes_of_the_warm_start();
    auto seen = [&](const Moments& moments) {
        eigen.push_back(eigen_attention(c, moments.k, moments.v, false, run.options.cache));
    };
    auto work = [&](LayerInputs& inputs, const Moments& moments, int l) {
        LearnedLayer bases = warm_start(run, inputs, moments, l);
        run.ticker.phase = format("layer %d of %d, error against rank", l + 1, c.L);
        profile(run.pass, inputs, bases, l, [&] { run.ticker(PASSES_OF_A_CURVE); });
        LayerRanks middle = LayerRanks::all(c, c.d / 2, c.d / 2);
        bases.weight =
            end_to_end.sensitivity(inputs, l, cuts_at(c, bases, middle, Which::Warm));
        if (run.options.error_budget > 0)
            meet_error_budget(run.pass, inputs, bases, l, run.options);
        return bases;
    };
    sweep(run, partial, 0, passes, result, work, seen);
    return eigen;
}

// Descent at the ranks that the eigenbases' curves give.
void descents(CalibrationRun& run, const Partial& partial, CalibrationResult& result) {
    const Config& c = run.model.config;
    std::vector<LearnedLayer> warm = result.layer;
    size_t passes = run.passes_of_the_descent();
    sweep(run, partial, c.L, passes, result, [&](LayerInputs& inputs, const Moments&, int l) {
        LearnedLayer bases = warm[size_t(l)];
        run.ticker.phase = format("layer %d of %d, descent", l + 1, c.L);
        descend(run.pass, inputs, bases, l, result.ranks[size_t(l)], run.options,
                [&] { run.ticker(2); });
        run.ticker.phase = format("layer %d of %d, error of the learned bases", l + 1, c.L);
        profile(run.pass, inputs, bases, l, [&] { run.ticker(PASSES_OF_A_CURVE); });
        if (run.options.error_budget > 0)
            meet_error_budget(run.pass, inputs, bases, l, run.options);
        return bases;
    });
}

size_t full_bytes(const Config& c, const CalibrationOptions& options) {
    return 2 * size_t(c.L) * size_t(c.G) * size_t(c.d) * size_of(options.cache);
}

// Said before any work. A threshold on the spectra, however low, keeps something of every head.
void require_budget(const CalibrationResult& result, const Config& c) {
    const CalibrationOptions& o = result.options;
    bool eigen = o.method == "eigen";
    int heads = eigen ? 2 * c.L * c.G : 1;
    double least = double(heads) * std::min(RANK_STEP, c.d) * double(size_of(o.cache));
    double bytes = o.keep * double(result.full_bytes_per_token);
    check(o.keep == 0 || bytes >= least,
          "--keep %g is %.1f bytes a token, too few for the smallest rank of %s (%.0f); use "
          "a larger one",
          o.keep, bytes, eigen ? "every head, the least of --method eigen" : "one head", least);
}

// As long as rows are that may be stored in codes.
void require_widths(const CalibrationOptions& o, const Config& c) {
    if (o.objective != "model" || o.bits != "mixed") return;
    check(c.d <= MOST_KEPT, "heads of %d coordinates: rows of codes have at most %d; give --bits 16",
          c.d, MOST_KEPT);
    check(!o.joint_values || c.G * c.d <= MOST_KEPT,
          "joint values of %d heads of %d are rows of %d coordinates, rows of codes have at most %d; "
          "give --value-basis head, or --bits 16",
          c.G, c.d, c.G * c.d, MOST_KEPT);
}

void require_compression(const CalibrationOptions& o) {
    check(o.sequence >= shortest_sequence(o),
          "sequences of %d tokens with a whole window of the first %d and the last %d: %s of the "
          "cache would be read compressed and measured; give --context %lld or more, or a smaller "
          "--window",
          o.sequence, o.sinks, o.recent,
          o.sequence < int64_t(o.sinks) + o.recent + 2 ? "nothing" : "less than a quarter",
          static_cast<long long>(shortest_sequence(o)));
}

}  // namespace

CalibrationResult calibrate(Model& model, const CalibrationText& text,
                            const CalibrationOptions& options, Partial& partial,
                            const CalibrationProgress& progress) {
    auto begin = std::chrono::steady_clock::now();
    CalibrationResult result;
    result.options = options;
    result.full_bytes_per_token = full_bytes(model.config, options);
    require_budget(result, model.config);
    require_compression(options);
    require_widths(options, model.config);
    CalibrationRun run(model, text, options, progress);
    partial.begin(run.key(), options.resume);
    result.sequences = run.learn.count(), result.held_out = run.windows.count();
    if (options.objective == "model") {
        (options.method == "star" ? calibrate_star : calibrate_model)(run, result, partial);
        result.by_text = by_text(result.measured, run.windows, text.held_out);
        result.seconds = seconds_since(begin);
        return result;
    }

    Clock clock{result};
    std::vector<LearnedLayer> eigen = warm_starts(run, partial, result);
    result.ranks = allocate(run, result);
    clock.phase("eigenbases and curves");
    if (options.method == "stiefel" && options.steps > 0) {
        descents(run, partial, result);
        result.ranks = allocate(run, result);
        clock.phase("descent and curves");
    }
    run.ticker.begin("what it costs", 0);
    verify(run, eigen, result);
    clock.phase("verification", true);
    result.by_text = by_text(result.measured, run.windows, text.held_out);

    result.bases = bases_at(run, result, result.ranks);
    result.bytes_per_token = coordinates(result.ranks) * size_of(options.cache);
    result.seconds = seconds_since(begin);
    return result;
}

static uint64_t hash_of(const std::vector<NamedText>& texts, size_t& tokens) {
    Hash hash;
    for (const NamedText& one : texts) {
        hash.add_bytes(one.ids.data(), one.ids.size() * sizeof(Token));
        tokens += one.ids.size();
    }
    return hash.value();
}

void write_bases(const CalibrationResult& result, const Model& model, const CalibrationText& text,
                 Partial& partial) {
    Bases bases = result.bases;
    const CalibrationOptions& o = result.options;
    bases.metadata["model"] = model.config.folder;
    size_t tokens = 0;
    uint64_t hash = hash_of(text.learn, tokens);
    bases.metadata["text"] = names_of(text.learn);
    bases.metadata["text_tokens"] = std::to_string(tokens);
    bases.metadata["text_hash"] = format("%016llx", (unsigned long long)hash);
    bases.metadata["options"] = format("tokens %d, sequence %d, steps %d, keys %s", o.tokens, o.sequence,
                                       o.steps, o.keys.c_str());
    bases.metadata["method"] = o.method;
    bases.metadata["key_basis"] = o.key_basis_per_layer ? "layer" : "head";
    bases.metadata["value_basis"] = o.joint_values ? "joint" : "head";
    bases.metadata["metric"] = o.metric;
    bases.metadata["objective"] = o.objective;
    bases.metadata["bits"] = o.bits;
    bases.metadata["seed"] = std::to_string(o.seed);
    bases.metadata["perplexity_full"] = format("%.6g", result.measured.reference.perplexity);
    bases.metadata["perplexity"] = format("%.6g", result.measured.loss.perplexity);
    bases.metadata["risk_levels"] =
        risk_levels(result.measured.step, size_t(o.sequence) - 1);
    bases.metadata["risk_flags"] = risk_flags(result.measured.swing, result.measured.swing_next);
    bases.metadata["kld_mean"] = format("%.6g", result.measured.divergence.mean);
    uint64_t fingerprint = model.weights.fingerprint(model.config);
    bases.save(partial.output, fingerprint);
    partial.remove();
}

}  // namespace stief
