#include "calibrate/calibrate.h"

#include <chrono>

#include "base/hash.h"
#include "calibrate/calibration_run.h"
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
    std::vector<int> whole(size_t(c.G), c.d);
    double error_pre = 0, error_post = 0;
    for (int r : {c.d / 4, c.d / 2}) {
        std::vector<int> ranks(size_t(c.G), r);
        error_pre += held_out_error(run.pass, inputs, l, cuts_at(c, pre, ranks, whole));
        error_post += held_out_error(run.pass, inputs, l, cuts_at(c, post, ranks, whole));
    }
    return error_post < error_pre ? post : pre;
}

// One layer, from its inputs to its error curves.
LearnedLayer learn_layer(CalibrationRun& run, const LayerInputs& inputs, const Moments& moments,
                       int l, EndToEnd& end_to_end) {
    const Config& c = run.model.config;
    const CalibrationOptions& o = run.options;
    LearnedLayer bases = warm_start(run, inputs, moments, l);
    run.ticker.phase = format("layer %d of %d, descent", l + 1, c.L);
    if (o.method == "stiefel") descend(run.pass, inputs, bases, l, o, [&] { run.ticker(2); });

    run.ticker.phase = format("layer %d of %d, error against rank", l + 1, c.L);
    profile(run.pass, inputs, bases, l, [&] { run.ticker(PASSES_OF_A_CURVE); });
    std::vector<int> middle(size_t(c.G), c.d / 2);
    bases.weight = end_to_end.sensitivity(inputs, l, cuts_at(c, bases, middle, middle));
    if (o.error_budget > 0) meet_error_budget(run.pass, inputs, bases, l, o);
    return bases;
}

// Layers do not depend on one another, but the inputs of each are the outputs of the one before.
void learn_layers(CalibrationRun& run, const Partial& partial, CalibrationResult& result) {
    const Config& c = run.model.config;
    LayerInputs inputs(run.model, run.learn, run.held_out, partial.folder);
    EndToEnd end_to_end(run.pass, run.held_out, SENSITIVITY_SEQUENCES);
    for (int l = 0; l < c.L; l++, inputs.next()) {
        run.ticker.phase = format("layer %d of %d, inputs", l + 1, c.L);
        Moments moments = collect(run.pass, inputs, l);
        run.ticker(run.learn.count());
        LearnedLayer bases;
        if (run.options.resume && partial.load(l, c, bases)) {
            result.resumed++;
        } else {
            bases = learn_layer(run, inputs, moments, l, end_to_end);
            partial.save(l, bases);
        }
        run.ticker.done = size_t(l + 1) * run.passes_of_a_layer();
        result.layer.push_back(std::move(bases));
    }
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

void require_compression(const CalibrationOptions& o) {
    check(o.sequence >= shortest_sequence(o),
          "sequences of %d tokens with an exact window of the first %d and the last %d: %s of the "
          "cache would be read compressed and measured; give --context %d or more, or a smaller "
          "--window",
          o.sequence, o.sinks, o.recent,
          o.sequence < o.sinks + o.recent + 2 ? "nothing" : "less than a quarter",
          shortest_sequence(o));
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
    CalibrationRun run(model, text, options, progress);
    partial.begin(run.key(), options.resume);
    result.sequences = run.learn.count(), result.held_out = run.windows.count();
    auto seconds = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    if (options.objective == "model") {
        calibrate_model(run, result, partial.folder);
        result.seconds = seconds();
        return result;
    }

    learn_layers(run, partial, result);  // each: collect → warm start → descend → profile
    run.ticker.phase = "ranks and what they cost";
    run.ticker(0);
    result.ranks = allocate(run, result);
    verify(run, result);

    result.bases = bases_at(run, result, result.ranks);
    result.bytes_per_token = result.ranks.coordinates() * size_of(options.cache);
    result.seconds = seconds();
    return result;
}

static uint64_t hash_of(const std::vector<Token>& ids) {
    Hash hash;
    hash.add_bytes(ids.data(), ids.size() * sizeof(Token));
    return hash.value();
}

void write_bases(const CalibrationResult& result, const Model& model, const CalibrationText& text,
                 Partial& partial) {
    Bases bases = result.bases;
    const CalibrationOptions& o = result.options;
    bases.metadata["model"] = model.config.folder;
    bases.metadata["text"] = text.name;
    bases.metadata["text_tokens"] = std::to_string(text.learn.size());
    bases.metadata["text_hash"] = format("%016llx", (unsigned long long)hash_of(text.learn));
    bases.metadata["options"] = format("tokens %d, sequence %d, steps %d, keys %s", o.tokens, o.sequence,
                                       o.steps, o.keys.c_str());
    bases.metadata["method"] = o.method;
    bases.metadata["key_basis"] = o.key_basis_per_layer ? "layer" : "head";
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
