#include "commands/calibration_result.h"

#include "base/json_writer.h"
#include "base/progress.h"

namespace stief {

// A list for each layer of what each head of a side has.
template <class Add>
static void add_heads(JsonWriter& json, const char* side, const CalibrationResult& r,
                      std::vector<HeadBasis> Bases::Layer::*heads, const Add& add) {
    json.begin_array(side);
    for (const Bases::Layer& layer : r.bases.layer) {
        json.begin_array();
        for (const HeadBasis& head : layer.*heads) add(head.format.back());
        json.end_array();
    }
    json.end_array();
}
template <class Add>
static void add_sides(JsonWriter& json, const char* key, const CalibrationResult& r, const Add& add) {
    json.begin_object(key);
    add_heads(json, "k", r, &Bases::Layer::k, add);
    add_heads(json, "v", r, &Bases::Layer::v, add);
    json.end_object();
}

static void add_numbers(JsonWriter& json, const char* key, const std::vector<double>& numbers) {
    json.begin_array(key);
    for (double x : numbers) json.add("", x);
    json.end_array();
}

// The method's own part of the JSON object.
static void add_layers(JsonWriter& json, const CalibrationResult& r) {
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

static void add_prices(JsonWriter& json, const CalibrationResult& r) {
    if (r.predicted > 0) json.add("kld_predicted", r.predicted);
    if (r.descent)
        json.begin_object("descent")
            .add("kld_before", r.descent->before)
            .add("kld_after", r.descent->after)
            .add("taken", r.descent->taken())
            .end_object();
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

std::string calibration_as_json(const CalibrationResult& r) {
    JsonWriter json;
    json.begin_object();
    double kept = double(r.bytes_per_token) / double(r.full_bytes_per_token);
    json.add("objective", r.options.objective).add("method", r.options.method);
    json.add("widths", r.options.bits).add("keep", kept);
    json.add("cache_bytes_per_token", r.bytes_per_token);
    json.add("bits_per_element", bits_per_element(r, r.bytes_per_token));
    // Of what is beyond all ages: coordinates that each head keeps; and how many at each width, 16, 8, 6, 5,
    // 4, 3, 2 and 1.
    add_sides(json, "ranks", r, [&](const RowFormat& format) { json.add("", format.kept()); });
    add_sides(json, "bits", r, [&](const RowFormat& format) {
        json.begin_array();
        for (uint16_t n : format.count) json.add("", int(n));
        json.end_array();
    });
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
    return text;
}

// Other sizes and other methods, where they were measured.
static std::string comparison_as_text(const CalibrationResult& r) {
    if (r.sizes.empty()) return "other sizes and methods: with --report PAGE.html or --json\n";
    bool window = r.options.objective == "model";
    std::string text = format(
        "KL divergence, first %d and last %d tokens whole (the window)%s:\n"
        "bits an element   predicted   measured   perplexity (full %.4f)\n",
        window ? r.options.sinks : 0, window ? r.options.recent : 0,
        r.bases.ages.empty() ? "" : ", sizes of the last age", r.perplexity_full);
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

std::string calibration_as_text(const CalibrationResult& r, const std::string& output) {
    std::string text = r.options.objective == "model" ? prices_as_text(r) : ranks_as_text(r);
    text += comparison_as_text(r);
    double kept = double(r.bytes_per_token) / double(r.full_bytes_per_token);
    text += format("cache       %zu bytes a token of %zu (%.1f%%, %.2f bits an element)\n",
                   r.bytes_per_token, r.full_bytes_per_token, 100 * kept,
                   bits_per_element(r, r.bytes_per_token));
    if (r.descent)
        text += format("descent     %.4g nats before it, %.4g after, on held-out text%s\n",
                       r.descent->before, r.descent->after,
                       r.descent->taken() ? "" : ": the bases stay as they were");
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

}  // namespace stief
