// stief calibrate: learns a cache from texts (bases, and a rank or bits for each coordinate),
// measures it on text it did not learn from, and writes one file of bases.
#include <tuple>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "base/progress.h"
#include "calibrate/calibration_run.h"
#include "calibrate/report.h"
#include "commands/calibration_result.h"
#include "commands/calibration_text.h"
#include "commands/outputs.h"
#include "commands/session.h"

namespace stief {

// What only a layer's own objective knows asks for it; with prices of the model's it is an error.
static std::string layer_only(const Args& args) {
    bool star = args.method == "star";  // the model's objective alone knows it
    return !args.method.empty() && !star ? "--method"
           : !args.key_basis.empty() ? "--key-basis"
           : !args.metric.empty()    ? "--metric"
           : args.error_budget       ? "--error-budget"
                                     : "";
}

static void choose_objective(const Args& args, CalibrationOptions& o) {
    std::string only = layer_only(args);
    bool star = args.method == "star";
    bool layer = args.objective == "layer" || (args.objective.empty() && !only.empty() && !star);
    if (layer && star) throw UsageError("--method star belongs to --objective model");
    if (layer && args.value_basis == "joint")
        throw UsageError("--value-basis joint belongs to --objective model");
    if (star && args.keys == "auto") throw UsageError("--method star takes --keys pre or post");
    if (star && args.ppl_budget) throw UsageError("--method star is steered to --keep");
    if (!layer && !only.empty()) throw UsageError(only + " belongs to --objective layer");
    if (layer && args.bits == "mixed")
        throw UsageError("--bits mixed needs prices: --objective model" +
                         (only.empty() ? "" : ", without " + only));
    o.objective = layer ? "layer" : "model";
    o.bits = layer ? "16" : args.bits.empty() ? "mixed" : args.bits;
}

// A method takes no option that it has no use for: the caller thinks that it does something.
static void choose_method(const Args& args, CalibrationOptions& o) {
    if (!args.method.empty()) o.method = args.method;
    bool descends = o.method == "stiefel" || o.method == "star";
    if (args.steps > 0 && !descends)
        throw UsageError("--steps belongs to a descent: --method " + o.method + " has none");
    if (o.method == "identity" && !args.metric.empty() && args.metric != "identity")
        throw UsageError("--metric " + args.metric + " belongs to bases that are learned; --method "
                         "identity keeps the coordinates");
    if (o.method != "stiefel") o.metric = "identity";
    if (!args.metric.empty()) o.metric = args.metric;
    int usual = o.method == "star" ? 60 : o.objective == "layer" && descends ? 150 : 0;
    o.steps = args.steps >= 0 ? args.steps : usual;
}

constexpr int DEFAULT_AGE = 256;  // where sequences are twice as long

// --window and --ages; a first age of 16 bits is the window's recent tokens.
static void set_ages(const Args& args, CalibrationOptions& o) {
    if (!args.window.empty()) std::tie(o.sinks, o.recent) = window_of(args);
    std::vector<AgeBits> ages = ages_of(args);
    bool mixed = o.objective == "model" && o.bits == "mixed" && o.method != "star";
    if (ages.empty() && args.window.empty() && mixed && o.sequence >= 2 * DEFAULT_AGE) {
        o.least_advised = shortest_sequence(o);
        o.recent = 32, o.ages = {DEFAULT_AGE}, o.age_bits = {4};
        return;
    }
    if (ages.empty()) return;
    if (!mixed)
        throw UsageError("--ages is for --bits mixed by prices: other caches have one format");
    bool whole = ages[0].bits == 16;
    if (whole && !args.window.empty())
        throw UsageError(format("--ages %d:16 and --window both say which recent tokens are whole; "
                                "give one", ages[0].age));
    if (whole) o.recent = ages[0].age;
    for (size_t i = whole; i < ages.size(); i++)
        o.ages.push_back(ages[i].age), o.age_bits.push_back(ages[i].bits);
    if (!o.ages.empty() && o.ages[0] <= o.recent)
        throw UsageError(format("--ages: %d bits begin after the %d recent whole tokens; age %d is "
                                "among them", int(o.age_bits[0]), o.recent, o.ages[0]));
    for (double bits : o.age_bits)
        if (bits == 16) throw UsageError("--ages: only the first age can have 16 bits");
    for (int age : o.ages)
        if (age >= o.sequence - o.sinks)
            throw UsageError(format("--ages: beside the first %d nothing in a sequence of %d tokens is older "
                                    "than %d; give smaller ages, or a longer --context",
                                    o.sinks, o.sequence, age));
}

static CalibrationOptions options_of(const Args& args, const Config& config) {
    CalibrationOptions o;
    choose_objective(args, o);
    choose_method(args, o);
    o.keys = args.keys;
    // EigenAttention's space is one key basis a layer and no metric; its method says so by itself.
    bool eigen = o.method == "eigen";
    o.joint_values = args.value_basis.empty() ? o.method == "star" : args.value_basis == "joint";
    o.key_basis_per_layer = args.key_basis.empty() ? eigen : args.key_basis == "layer";
    o.keep = args.keep.value_or(0), o.error_budget = args.error_budget.value_or(0);
    o.ppl_budget = args.ppl_budget.value_or(0);
    for (auto [name, given] : {std::pair{"--keep", args.keep}, {"--error-budget", args.error_budget},
                               {"--ppl-budget", args.ppl_budget}})
        if (given && !(*given > 0)) throw UsageError(format("%s is %g, expected more than 0", name, *given));
    bool layer = o.objective == "layer";
    int budgets = int(o.keep > 0) + int(o.error_budget > 0) + int(o.ppl_budget > 0);
    if (budgets > 1) throw UsageError("give one of --keep, --error-budget and --ppl-budget");
    if (budgets == 0) o.keep = layer ? 0.25 : 0.125;
    o.tokens = args.calibration_tokens ? args.calibration_tokens : layer ? 32768 : 16384;
    o.sequence = args.context ? args.context : std::min(layer ? 512 : 1024, config.context);
    check(o.sequence >= 8 && o.sequence <= config.context,
          "--context %d, expected sequences of 8 to the model's %d positions", o.sequence,
          config.context);
    check(o.tokens >= o.sequence,
          "--tokens %d are less than one sequence of --context %d; give more, or a smaller --context",
          o.tokens, o.sequence);
    set_ages(args, o);
    o.seed = args.seed.given ? args.seed.value : 1;     // the same bases again, unless asked
    if (args.seed.drawn) {
        o.seed = draw_seed();
        status(args, format("seed %llu", static_cast<unsigned long long>(o.seed)));
    }
    o.resume = args.resume;
    o.compares = args.json || !args.report.empty();
    if (args.exact) o.cache = DType::F32;
    if (!args.cache.empty()) o.cache = parse_cache_dtype(args.cache);
    return o;
}

int calibrate_bases(const Args& args) {
    if (args.output.empty())
        throw UsageError(
            "calibrate needs a place for the bases: stief calibrate MODEL [TEXT...] -o BASES");
    Config config = Config::open(args.model);
    CalibrationOptions options = options_of(args, config);
    std::vector<std::string> files = calibration_files(args);
    std::vector<NamedFile> inputs = {{"--holdout", args.holdout}};
    for (const std::string& path : files) inputs.push_back({"the text to learn from", path});
    check_outputs({{{"-o", args.output}, Output::Bases}, {{"--report", args.report}, Output::Page}},
                  inputs, args.model);
    Partial partial(args.output);
    Model model = Model::open(args.model, backend_options(args), args.threads);
    model.backend->exact = args.exact;
    CalibrationText text = read_texts(args, files, options.sequence);

    CalibrationResult result;
    {
        Progress progress("calibrate", "passes", args.quiet);
        result = calibrate(model, text, options, partial,
                           [&](size_t done, size_t total, const std::string& phase) {
                               progress.update(done, total, phase);
                           });
    }
    model.weights.files.check_unchanged();
    write_bases(result, model, text, partial);
    print(args.json ? calibration_as_json(result) : calibration_as_text(result, args.output));
    if (!args.report.empty()) {
        AtomicFile page(args.report);
        page.write(report_html(result, config, text));
        page.commit();
    }
    return 0;
}

}  // namespace stief
