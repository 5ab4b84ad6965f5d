#include "calibrate/calibration_run.h"

#include <algorithm>

#include "base/hash.h"

namespace stief {

int64_t shortest_sequence(const CalibrationOptions& options) {
    int64_t window = int64_t(options.sinks) + options.recent;
    return options.ppl_budget > 0 ? 2 * window + 2 : window + 2;
}

// Every text holds a sequence; from a single one two are learned.
static void require_texts(const CalibrationText& text, const CalibrationOptions& how) {
    check(!text.learn.empty() && !text.held_out.empty(), "no text to learn from or to measure on");
    const NamedText* least = nullptr;
    size_t T = size_t(how.sequence), times = text.learn.size() > 1 ? 1 : 2, fits = T, needed = T;
    bool held_out = false;
    for (const std::vector<NamedText>* side : {&text.learn, &text.held_out})
        for (const NamedText& one : *side) {
            size_t of = side == &text.learn ? times : 1;
            if (one.ids.size() / of >= fits) continue;
            least = &one, fits = one.ids.size() / of, needed = of * T;
            held_out = side == &text.held_out;
        }
    if (!least) return;
    fail("%s: %zu tokens %s, expected at least %zu (sequences of %zu tokens); give more text%s",
         least->name.c_str(), least->ids.size(), held_out ? "held out" : "to learn from", needed, T,
         int64_t(fits) >= std::max(shortest_sequence(how), how.least_advised)
             ? format(", or shorter sequences with --context %zu", fits).c_str()
             : "");
}

CalibrationRun::CalibrationRun(Model& owner, const CalibrationText& of,
                               const CalibrationOptions& how, const CalibrationProgress& progress)
    : model(owner),
      text(of),
      options(how),
      rotation(rotation_table(owner.config, owner.config.context)),
      pass(owner, how.sequence, rotation),
      ticker{progress, 0, 0, ""} {
    const Config& c = model.config;
    require_texts(text, how);
    Random random(how.seed);
    size_t sequences = std::max<size_t>(2, size_t(how.tokens) / size_t(how.sequence));
    learn = cut_sequences(text.learn, how.sequence, sequences, c.context, random);
    held_out = cut_sequences(text.held_out, how.sequence, size_t(how.held_out), c.context, random);
    windows = first_windows(text.held_out, how.sequence, size_t(how.measured_windows));
    ticker.total = size_t(c.L) * (passes_of_the_warm_start() + passes_of_the_descent());
}

size_t CalibrationRun::compared_windows() const {
    size_t least = std::min(text.held_out.size(), windows.count());
    return std::clamp(learn.count() / 4, least, windows.count());
}

size_t CalibrationRun::passes_of_curves() const {
    return curve_sequences(model.config, held_out.count()) * size_t(model.config.G) *
           PASSES_OF_A_CURVE;
}

size_t CalibrationRun::passes_of_the_warm_start() const {
    size_t probes = options.metric == "output" ? 2 * learn.count() : 0;
    return learn.count() + probes + passes_of_curves();
}

size_t CalibrationRun::passes_of_the_descent() const {
    if (options.method != "stiefel" || options.steps == 0) return 0;
    return learn.count() + 2 * size_t(options.steps) * size_t(options.batch) + passes_of_curves();
}

uint64_t CalibrationRun::key() const {
    const CalibrationOptions& o = options;
    std::string words = format(
        "%s %d %s %s %d %s %.17g %.17g %.17g %d %d %d %d %d %.17g %llu %d %016llx",
        model.backend->name.c_str(), int(o.cache), o.method.c_str(), o.keys.c_str(),
        int(o.key_basis_per_layer), o.metric.c_str(), o.keep, o.error_budget,
        o.ppl_budget, o.tokens, o.sequence,
        o.held_out, o.steps, o.batch, o.tau, (unsigned long long)o.seed, int(model.backend->exact),
        (unsigned long long)model.weights.fingerprint(model.config));
    if (o.objective == "model") {
        words += format(" model %s %d %d %d", o.bits.c_str(), o.sinks, o.recent, int(o.joint_values));
        for (size_t i = 0; i < o.ages.size(); i++) words += format(" %d:%.17g", o.ages[i], o.age_bits[i]);
    }
    Hash hash;
    hash.add_bytes(words.data(), words.size());
    for (const std::vector<NamedText>* side : {&text.learn, &text.held_out}) {
        hash.add(uint64_t(side->size()));
        for (const NamedText& one : *side) {
            hash.add(uint64_t(one.ids.size()));
            hash.add_bytes(one.ids.data(), one.ids.size() * sizeof(Token));
        }
    }
    return hash.value();
}

}  // namespace stief
