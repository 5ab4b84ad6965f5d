// What calibrate compares with, and the page that shows it.
#include "calibrate/report.h"

#include <cmath>

#include "calibrate/compare.h"
#include "calibrate/svg.h"
#include "calibration_lab.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Tried : CalibrationLab {
    explicit Tried(const std::string& objective, int d = 16)
        : CalibrationLab({.why = "report", .d = d}, 2, 150, 150, {"a <b>", "c"}) {
        model.backend->exact = true;
        options.objective = objective;
        if (objective == "layer") options.bits = "16", options.steps = 4, options.batch = 2;
        options.measured_windows = 4, options.keep = 0.5;
        options.sinks = objective == "layer" ? 0 : 4, options.recent = 0;
    }
};

const std::vector<CalibrationResult::Point>& points_of(const CalibrationResult& r, const char* method) {
    for (const CalibrationResult::Compared& one : r.compared)
        if (one.name == method) return one.points;
    fail("%s is not compared with", method);
}

// The names of elements that are open at the end or closed out of order; "" for none.
std::string unbalanced(const std::string& html) {
    std::vector<std::string> open;
    for (size_t at = 0; (at = html.find('<', at)) != html.npos; at++) {
        size_t end = html.find('>', at);
        std::string tag = html.substr(at + 1, end - at - 1);
        std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" /", 1) - (tag[0] == '/'));
        if (tag[0] == '!' || tag.back() == '/' || name == "meta") continue;
        if (tag[0] != '/') {
            open.push_back(name);
        } else {
            name = tag.substr(1);
            if (open.empty() || open.back() != name) return "</" + name + ">";
            open.pop_back();
        }
    }
    return open.empty() ? "" : open.back();
}

}  // namespace

TEST_CASE("the thresholds that are compared with are those of --method eigen") {
    Tried learned("layer"), eigen("layer");
    eigen.options.method = "eigen", eigen.options.metric = "identity";
    eigen.options.key_basis_per_layer = true;
    CalibrationResult by = learned.run(), itself = eigen.run();
    const auto& compared = points_of(by, "EigenAttention's thresholds");
    size_t met = 0;
    for (const CalibrationResult::Point& mine : itself.sizes)
        for (const CalibrationResult::Point& p : compared) {
            if (p.keep != mine.keep) continue;
            met++;
            CHECK(p.bytes_per_token == mine.bytes_per_token);
            CHECK(std::abs(p.divergence - mine.divergence) <= 1e-9 * mine.divergence);
        }
    CHECK(met >= 2);
}

TEST_CASE("all that is compared keeps to the bytes it states, and uniform codes to those of the cache") {
    for (const char* objective : {"model", "layer"}) {
        CAPTURE(std::string(objective));
        Tried tried(objective);
        CalibrationResult r = tried.run();
        for (const CalibrationResult::Point& p : points_of(r, "EigenAttention's thresholds"))
            CHECK(double(p.bytes_per_token) <= p.keep * double(r.full_bytes_per_token));
        const auto& uniform = points_of(r, "rotated uniform");
        REQUIRE(uniform.size() == 4);
        const int bits[] = {2, 3, 4, 8};
        for (size_t i = 0; i < 4; i++) {
            Bases bases = Bases::uniform(tried.model.config, {}, {bits[i]});
            CHECK(uniform[i].bytes_per_token == bases.bytes_per_token(DType::F16));
            if (i) CHECK(uniform[i].divergence < uniform[i - 1].divergence);
        }
        CHECK(r.foretold.size() == (objective[0] == 'm' ? 4 : 2));
        double seconds = 0;
        for (const CalibrationResult::Phase& one : r.time) seconds += one.seconds;
        CHECK((seconds > 0 && seconds <= r.seconds));
    }
}

TEST_CASE("several ways to cut measured at once are each what it is alone, to the last bit") {
    Tried tried("model");
    const Config& c = tried.model.config;
    std::vector<std::vector<LayerCuts>> ways;
    for (int bits : {2, 8, 4}) ways.push_back(cuts_of(Bases::uniform(c, {}, {bits}), c, 4, DType::F16));
    std::vector<float> rotation = rotation_table(c, 24);
    LayerPass pass(tried.model, 24, rotation);
    Sequences windows = first_windows(tried.text.held_out, 24, 4);
    EndToEnd end_to_end(pass, windows, windows.count());
    std::vector<Measured> all = end_to_end.measure(ways);
    REQUIRE(all.size() == 3);
    for (size_t i = 0; i < 3; i++) {
        Measured alone = end_to_end.measure(ways[i]);
        CHECK(alone.step == all[i].step);
        CHECK(alone.loss.perplexity == all[i].loss.perplexity);
    }
}

TEST_CASE("several caches measured in one pass of the full one are each what it is alone") {
    Tried tried("model");
    tried.options.recent = 3, tried.options.tokens = 480, tried.options.measured_windows = 3;
    CalibrationProgress quiet = [](size_t, size_t, const std::string&) {};
    CalibrationRun run(tried.model, tried.text, tried.options, quiet);
    REQUIRE(run.compared_windows() == run.windows.count());
    std::vector<Bases> ways;
    for (int bits : {2, 8}) {
        ways.push_back(Bases::uniform(tried.model.config, {}, {bits}));
        ways.back().sinks = 4, ways.back().recent = 3;
    }
    std::vector<Measured> all = measure_caches(run, ways);
    REQUIRE(all.size() == 2);
    for (size_t i = 0; i < 2; i++) CHECK(measure_cache(run, ways[i]).step == all[i].step);
    CHECK(all[0].divergence.mean > all[1].divergence.mean);
}

TEST_CASE("the page of either objective has all its parts, is well formed and escapes what it names") {
    for (const char* objective : {"model", "layer"}) {
        CAPTURE(std::string(objective));
        Tried tried(objective);
        std::string html = report_html(tried.run(), tried.model.config, tried.text);
        for (const char* part :
             {"What a smaller cache costs", "On each held-out text", "Predicted and measured",
              "Where the minutes went", "rotated uniform", "EigenAttention's thresholds",
              objective[0] == 'm' ? "<h2>Bits</h2>" : "<h2>Ranks</h2>", "a &lt;b&gt;"}) {
            CAPTURE(std::string(part));
            CHECK(html.find(part) != html.npos);
        }
        CHECK(html.find("a <b>") == html.npos);
        std::string body = html.substr(html.find("</style>"));
        for (const char* bad : {"nan", "inf,", "inf\"", "1e+300"}) CHECK(body.find(bad) == body.npos);
        CHECK(unbalanced(html) == "");
    }
}

TEST_CASE("a chart keeps its points within its frame, also on logarithmic axes and with nothing to show") {
    for (bool log : {false, true}) {
        Chart chart{"t", "x", "y", {{"s", 0, {{3, 0.002}, {40, 7}, {0, -1}}, true}}};
        chart.log_x = chart.log_y = log, chart.from_zero = !log;
        std::string svg = svg_chart(chart);
        size_t dots = 0;
        for (size_t at = 0; (at = svg.find("cx=\"", at)) != svg.npos; at++, dots++) {
            double x = std::stod(svg.substr(at + 4)), y = std::stod(svg.substr(svg.find("cy=\"", at) + 4));
            CHECK((x >= 60 && x <= 350 && y >= 26 && (y <= 180 || !log)));
        }
        CHECK(dots == (log ? 2 : 3));
    }
    Chart empty{"t", "x", "y", {}};
    empty.log_x = empty.log_y = true;
    CHECK(svg_chart(empty).find("nan") == std::string::npos);
}

TEST_SUITE_END();
