#include "calibrate/calibration_run.h"

#include <algorithm>

#include "base/hash.h"

namespace stief {

static Sequences first_windows(std::span<const Token> ids, int T, size_t at_most) {
    Sequences all;
    all.T = T;
    for (size_t begin = 0; begin + size_t(T) <= ids.size() && all.count() < at_most;
         begin += size_t(T)) {
        all.ids.emplace_back(ids.begin() + ptrdiff_t(begin), ids.begin() + ptrdiff_t(begin) + T);
        all.pos.push_back(0);
    }
    return all;
}

int shortest_sequence(const CalibrationOptions& options) {
    int window = options.sinks + options.recent;
    return options.ppl_budget > 0 ? 2 * window + 2 : window + 2;
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
    size_t T = size_t(how.sequence);
    size_t fits = std::min(text.learn.size() / 2, text.held_out.size());
    if (fits < T)
        fail("%s: %zu tokens to learn from and %zu held out, expected at least %zu and %zu "
             "(sequences of %zu tokens); give more text%s",
             text.name.c_str(), text.learn.size(), text.held_out.size(), 2 * T, T, T,
             int(fits) >= shortest_sequence(how)
                 ? format(", or shorter sequences with --context %zu", fits).c_str()
                 : "");
    Random random(how.seed);
    learn = cut_sequences(text.learn, how.sequence, std::max<size_t>(2, size_t(how.tokens) / T),
                          c.context, random);
    held_out = cut_sequences(text.held_out, how.sequence, size_t(how.held_out), c.context, random);
    windows = first_windows(text.held_out, how.sequence, size_t(how.measured_windows));
    ticker.total = size_t(c.L) * (passes_of_the_warm_start() + passes_of_the_descent());
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
        int(o.key_basis_per_layer), o.metric.c_str(), o.keep, o.error_budget, o.ppl_budget, o.tokens, o.sequence,
        o.held_out, o.steps, o.batch, o.tau, (unsigned long long)o.seed, int(model.backend->exact),
        (unsigned long long)model.weights.fingerprint(model.config));
    Hash hash;
    hash.add_bytes(words.data(), words.size());
    for (const std::vector<Token>* ids : {&text.learn, &text.held_out}) {
        hash.add(uint64_t(ids->size()));
        hash.add_bytes(ids->data(), ids->size() * sizeof(Token));
    }
    return hash.value();
}

}  // namespace stief
