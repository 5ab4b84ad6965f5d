// stief calibrate: learns a cache from texts (bases, and a rank or bits for each coordinate),
// measures it on text it did not learn from, and writes one file of bases.
#include <tuple>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "base/json_writer.h"
#include "base/progress.h"
#include "calibrate/report.h"
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
           : args.keys == "auto"     ? "--keys auto"
                                     : "";
}

static void choose_objective(const Args& args, CalibrationOptions& o) {
    std::string only = layer_only(args);
    bool star = args.method == "star";
    bool layer = args.objective == "layer" || (args.objective.empty() && !only.empty() && !star);
    if (layer && star) throw UsageError("--method star belongs to --objective model");
    if (layer && args.value_basis == "joint")
        throw UsageError("--value-basis joint belongs to --objective model");
    if (star && args.ppl_budget) throw UsageError("--method star is steered to --keep");
    if (!layer && !only.empty()) throw UsageError(only + " belongs to --objective layer");
    if (layer && args.bits == "mixed")
        throw UsageError("--bits mixed needs prices: --objective model" +
                         (only.empty() ? "" : ", without " + only));
    o.objective = layer ? "layer" : "model";
    o.bits = layer ? "16" : args.bits.empty() ? "mixed" : args.bits;
}

constexpr int DEFAULT_AGE = 256;  // where sequences are twice as long

// --window and --ages; a first age of 16 bits is the window's recent tokens.
static void set_ages(const Args& args, CalibrationOptions& o) {
    if (!args.window.empty()) std::tie(o.sinks, o.recent) = window_of(args);
    std::vector<AgeBits> ages = ages_of(args);
    bool mixed = o.objective == "model" && o.bits == "mixed" && o.method != "star";
    if (ages.empty() && args.window.empty() && mixed && o.sequence >= 2 * DEFAULT_AGE) {
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
}

static CalibrationOptions options_of(const Args& args, const Config& config) {
    CalibrationOptions o;
    choose_objective(args, o);
    if (!args.method.empty()) o.method = args.method;
    o.keys = args.keys;
    // EigenAttention's space is one key basis a layer and no metric; its method says so by itself.
    bool eigen = o.method == "eigen";
    o.joint_values = args.value_basis.empty() ? o.method == "star" : args.value_basis == "joint";
    o.key_basis_per_layer = args.key_basis.empty() ? eigen : args.key_basis == "layer";
    if (o.method != "stiefel") o.metric = "identity";
    if (!args.metric.empty() && o.method != "identity") o.metric = args.metric;
    o.keep = args.keep.value_or(0), o.error_budget = args.error_budget.value_or(0);
    o.ppl_budget = args.ppl_budget.value_or(0);
    for (const std::optional<double>* one : {&args.keep, &args.error_budget, &args.ppl_budget})
        if (*one && !(**one > 0)) throw UsageError("a budget is a number above 0");
    bool layer = o.objective == "layer";
    int budgets = int(o.keep > 0) + int(o.error_budget > 0) + int(o.ppl_budget > 0);
    if (budgets > 1) throw UsageError("give one of --keep, --error-budget and --ppl-budget");
    if (budgets == 0) o.keep = layer ? 0.25 : 0.125;
    o.tokens = args.calibration_tokens ? args.calibration_tokens : layer ? 32768 : 16384;
    o.sequence = args.context ? args.context : std::min(layer ? 512 : 1024, config.context);
    check(o.sequence >= 8 && o.sequence <= config.context,
          "--context %d, expected sequences of 8 to the model's %d positions", o.sequence,
          config.context);
    set_ages(args, o);
    o.steps = args.steps >= 0 ? args.steps : layer ? 150 : o.method == "star" ? 60 : 0;
    o.seed = args.seed.given ? args.seed.value : 1;     // the same bases again, unless asked
    if (args.seed.drawn) {
        o.seed = draw_seed();
        status(args, format("seed %llu", static_cast<unsigned long long>(o.seed)));
    }
    o.resume = args.resume;
    if (!args.cache.empty()) o.cache = parse_cache_dtype(args.cache);
    return o;
}

static void add_ranks(JsonWriter& json, const char* name, const Ranks& ranks,
                      std::vector<int> LayerRanks::*side) {
    json.begin_array(name);
    for (const LayerRanks& layer : ranks) {
        json.begin_array();
        for (int r : layer.*side) json.add("", r);
        json.end_array();
    }
    json.end_array();
}

static void add_numbers(JsonWriter& json, const char* key, const std::vector<double>& numbers) {
    json.begin_array(key);
    for (double x : numbers) json.add("", x);
    json.end_array();
}

// The method's own part of the JSON object.
static void add_layers(JsonWriter& json, const CalibrationResult& r) {
    json.begin_object("ranks");
    add_ranks(json, "k", r.ranks, &LayerRanks::k);
    add_ranks(json, "v", r.ranks, &LayerRanks::v);
    json.end_object();
    add_numbers(json, "layer_error", r.error);
    add_numbers(json, "layer_error_warm_start", r.error_warm);
    json.begin_array("errors_at_rank");
    for (const LearnedLayer& layer : r.layer) {
        json.begin_array();
        for (const RankError& e : layer.errors)
            json.begin_object()
                .add("rank", e.rank)
                .add("warm", e.warm)
                .add("learned", e.learned)
                .end_object();
        json.end_array();
    }
    json.end_array();
    json.begin_array("sensitivity");
    for (const LearnedLayer& layer : r.layer) json.add("", layer.weight);
    json.end_array();
}

static double bits_per_element(const CalibrationResult& r, size_t bytes) {
    return 8 * double(size_of(r.options.cache)) * double(bytes) / double(r.full_bytes_per_token);
}

// Coordinates at each width of every head: [[[n16, n8, n6, n5, n4, n3, n2, n1] of each head] …].
static void add_formats(JsonWriter& json, const char* key, const CalibrationResult& r,
                        std::vector<HeadBasis> Bases::Layer::*side) {
    json.begin_array(key);
    for (const Bases::Layer& layer : r.bases.layer) {
        json.begin_array();
        for (const HeadBasis& head : layer.*side) {
            json.begin_array();
            for (uint16_t n : head.format.back().count) json.add("", int(n));
            json.end_array();
        }
        json.end_array();
    }
    json.end_array();
}

static void add_prices(JsonWriter& json, const CalibrationResult& r) {
    json.begin_object("formats");
    add_formats(json, "k", r, &Bases::Layer::k);
    add_formats(json, "v", r, &Bases::Layer::v);
    json.end_object();
    if (r.predicted > 0) json.add("kld_predicted", r.predicted);
    if (!r.thresholds.empty()) add_numbers(json, "thresholds", r.thresholds);
}

static void add_sizes(JsonWriter& json, const CalibrationResult& r,
                      const std::vector<CalibrationResult::Point>& points, bool predicted) {
    json.begin_array("sizes");
    for (const CalibrationResult::Point& p : points) {
        json.begin_object()
            .add("keep", p.keep)
            .add("cache_bytes_per_token", p.bytes_per_token)
            .add("bits_per_element", bits_per_element(r, p.bytes_per_token))
            .add("perplexity", p.perplexity)
            .add("kld_mean", p.divergence);
        if (predicted) json.add("kld_predicted", p.predicted);
        json.end_object();
    }
    json.end_array();
}

static std::string as_json(const CalibrationResult& r) {
    JsonWriter json;
    json.begin_object();
    double kept = double(r.bytes_per_token) / double(r.full_bytes_per_token);
    json.add("objective", r.options.objective).add("method", r.options.method);
    json.add("bits", r.options.bits).add("keep", kept);
    json.add("cache_bytes_per_token", r.bytes_per_token);
    json.add("bits_per_element", bits_per_element(r, r.bytes_per_token));
    bool model = r.options.objective == "model";
    model ? add_prices(json, r) : add_layers(json, r);
    add_sizes(json, r, r.sizes, model);
    json.begin_array("compared");
    for (const CalibrationResult::Compared& other : r.compared) {
        json.begin_object().add("method", other.name);
        add_sizes(json, r, other.points, false);
        json.end_object();
    }
    json.end_array();
    json.begin_object("time");
    for (const CalibrationResult::Phase& one : r.time) json.add(one.name.c_str(), one.seconds);
    json.end_object();
    json.add("perplexity_full", r.measured.reference.perplexity);
    json.add("perplexity", r.measured.loss.perplexity).add("kld_mean", r.measured.divergence.mean);
    json.begin_array("held_out");
    for (const TextDivergence& one : r.by_text)
        json.begin_object()
            .add("text", one.name)
            .add("tokens", one.tokens)
            .add("kld_mean", one.mean)
            .end_object();
    json.end_array();
    json.add("compressed_share", r.measured.compressed_share);
    json.add("seconds", r.seconds);
    return json.end_object().text + "\n";
}

// Bits a coordinate of every head, and what other sizes would cost.
static std::string prices_as_text(const CalibrationResult& r) {
    std::string text = "layer   bits of keys       bits of values\n";
    for (size_t l = 0; l < r.bases.layer.size(); l++) {
        std::string bits[2];
        for (int side : {0, 1})
            for (const HeadBasis& head : side ? r.bases.layer[l].v : r.bases.layer[l].k)
                bits[side] += format("%s%.2f", bits[side].empty() ? "" : " ",
                                     head.format.back().bits_per_element(
                                         r.options.cache, int(head.width())));
        text += format("%5zu   %-18s %s\n", l, bits[0].c_str(), bits[1].c_str());
    }
    text += format("whole: the first %d tokens and the last %d", r.options.sinks, r.options.recent);
    for (size_t age = 0; age < r.bases.ages.size(); age++)
        text += format("; up to age %d: %.2f bits an element", r.bases.ages[age],
                       bits_per_element(r, r.bases.bytes_per_token(age, r.options.cache)));
    text += "\n";
    if (!r.bases.ages.empty())
        for (int n : {2048, 8192})
            text += format("read by the last of %d tokens: %.2f bits an element\n", n,
                           r.bases.bits_read(n, r.options.cache));
    text += format(
        "KL divergence, first %d and last %d tokens exact (the window)%s:\n"
        "bits an element   predicted   measured   perplexity (full %.4f)\n",
        r.options.sinks, r.options.recent, r.bases.ages.empty() ? "" : ", sizes of the last age",
        r.perplexity_full);
    for (const CalibrationResult::Point& p : r.sizes)
        text += format("%15.2f   %9s   %8.4g   %.4f\n", bits_per_element(r, p.bytes_per_token),
                       p.predicted > 0 ? format("%.4g", p.predicted).c_str() : "-", p.divergence,
                       p.perplexity);
    for (const CalibrationResult::Compared& other : r.compared)
        for (const CalibrationResult::Point& p : other.points)
            text += format("%15.2f               %8.4g   %.4f   %s\n",
                           bits_per_element(r, p.bytes_per_token), p.divergence, p.perplexity,
                           other.name.c_str());
    return text;
}

static std::string ranks_as_text(const CalibrationResult& r) {
    std::string text = "layer   keys         values       error    eigenbases\n";
    for (size_t l = 0; l < r.layer.size(); l++) {
        std::string ranks[2];
        for (int side : {0, 1})
            for (int rank : side ? r.ranks[l].v : r.ranks[l].k)
                ranks[side] += (ranks[side].empty() ? "" : " ") + std::to_string(rank);
        text += format("%5zu   %-12s %-12s %.4f   %.4f\n", l, ranks[0].c_str(), ranks[1].c_str(),
                       r.error[l], r.error_warm[l]);
    }
    return text;
}

static std::string as_text(const CalibrationResult& r, const std::string& output) {
    std::string text = r.options.objective == "model" ? prices_as_text(r) : ranks_as_text(r);
    double kept = double(r.bytes_per_token) / double(r.full_bytes_per_token);
    text += format("cache       %zu bytes a token of %zu (%.1f%%, %.2f bits an element)\n",
                   r.bytes_per_token, r.full_bytes_per_token, 100 * kept,
                   bits_per_element(r, r.bytes_per_token));
    text += format(
        "perplexity  %.4f, of the full cache %.4f; KL divergence %.4g nats (held-out text; %.3g%% "
        "of what was read of the cache was compressed)\n",
        r.measured.loss.perplexity, r.measured.reference.perplexity, r.measured.divergence.mean,
        100 * r.measured.compressed_share);
    for (const TextDivergence& one : r.by_text)
        if (r.by_text.size() > 1)
            text += format("            %.4g nats on %s\n", one.mean, one.name.c_str());
    double all = 0, verifies = 0;
    text += "time       ";
    for (const CalibrationResult::Phase& one : r.time) {
        text += format(" %s %.1f s,", one.name.c_str(), one.seconds);
        all += one.seconds, verifies += one.verifies ? one.seconds : 0;
    }
    text += format(" of which measuring is %.0f%%\n", 100 * verifies / all);
    return text + format("wrote %s in %s\n", output.c_str(), human_time(r.seconds).c_str());
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
    check(!options.joint_values || model.backend->joint_values,
          "joint values run on --backend cpu, not on %s; give --value-basis head",
          model.backend->name.c_str());
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
    if (!args.report.empty()) {
        AtomicFile page(args.report);
        page.write(report_html(result, config, text));
        page.commit();
    }
    print(args.json ? as_json(result) : as_text(result, args.output));
    return 0;
}

}  // namespace stief
