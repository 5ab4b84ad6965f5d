#include "calibrate/report.h"

#include <algorithm>
#include <cmath>

#include "base/progress.h"
#include "calibrate/svg.h"

namespace stief {
namespace {

const char* const STYLE = R"(<style>
:root { --ink: #1b1f24; --soft: #5b6570; --paper: #ffffff; --card: #f5f6f8; --grid: #dfe3e8;
        --c0: #1f6feb; --c1: #d1480f; --c2: #6e7781; --c3: #1a7f37; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #0d1117; --card: #161b22; --grid: #2b323b;
        --c0: #58a6ff; --c1: #f78166; --c2: #8b949e; --c3: #56d364; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { max-width: 48rem; } .soft { color: var(--soft); }
.grid2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 0.8rem; }
svg { width: 100%; background: var(--card); border-radius: 6px; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg text.title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg line.grid { stroke: var(--grid); }
svg polyline { fill: none; stroke-width: 1.6; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); stroke-dasharray: 4 3; }
.s3 { stroke: var(--c3); stroke-dasharray: 1 3; }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); } .f3 { fill: var(--c3); }
.key { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin: 0 0.3em 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; }
.heat td { text-align: center; min-width: 2.2rem; border: 1px solid var(--paper); }
.scroll { overflow-x: auto; }
</style>)";

std::string legend(std::initializer_list<std::pair<int, const char*>> entries) {
    std::string html = "<p class=\"soft\">";
    for (auto [colour, name] : entries)
        html +=
            format("<span class=\"key\" style=\"background: var(--c%d)\"></span>%s", colour, name);
    return html + "</p>";
}

std::string figures(const CalibrationResult& r, const Config& c, const CalibrationText& text) {
    const CalibrationOptions& o = r.options;
    std::string budget = o.keep > 0 ? format("keep %g of the bytes", o.keep)
                         : o.error_budget > 0
                             ? format("layer error at most %g", o.error_budget)
                             : format("perplexity at most %g%% higher", o.ppl_budget);
    std::string rows;
    auto row = [&](const char* name, const std::string& value) {
        rows += format("<tr><td>%s</td><td>%s</td></tr>", name, html_text(value).c_str());
    };
    row("model", format("%s: %d layers, %d kv heads of %d", c.folder.c_str(), c.L, c.G, c.d));
    if (o.objective == "model")
        row("method", format("prices of the final prediction, %s bits, keys %s rotation",
                             o.bits.c_str(), o.keys.c_str()));
    else
        row("method", format("%s, %s key basis, %s metric, keys %s rotation", o.method.c_str(),
                         o.key_basis_per_layer ? "one a layer" : "a head",
                         o.metric.c_str(), o.keys.c_str()));
    row("budget", budget);
    row("learnt from",
        format("%s, %zu sequences of %d tokens, %d steps, seed %llu", names_of(text.learn).c_str(),
               r.sequences, o.sequence, o.objective == "model" ? 0 : o.steps, static_cast<unsigned long long>(o.seed)));
    row("measured on", format("%s, %zu tokens, exact window %d,%d", names_of(text.held_out).c_str(),
                              r.measured.loss.tokens, o.sinks, o.recent));
    row("cache",
        format("%zu bytes a token of %zu (%.1f%%)", r.bytes_per_token, r.full_bytes_per_token,
               100.0 * double(r.bytes_per_token) / double(r.full_bytes_per_token)));
    row("perplexity", format("%.4f ± %.4f; full cache %.4f", r.measured.loss.perplexity,
                             r.measured.loss.standard_error, r.measured.reference.perplexity));
    row("read compressed", format("%.3g%% of what was read", 100 * r.measured.compressed_share));
    row("KL divergence", format("mean %.4g, 99%% %.4g nats a token; same top token %.1f%%",
                                r.measured.divergence.mean, r.measured.divergence.p99,
                                100 * r.measured.divergence.same_top));
    row("time", human_time(r.seconds));
    return "<table>" + rows + "</table>";
}

// One small chart a layer: √Δ of each head alone against its rank.
std::string error_charts(const CalibrationResult& r) {
    std::string html = "<div class=\"grid2\">";
    for (size_t l = 0; l < r.layer.size(); l++) {
        Chart chart{format("layer %zu", l), "rank", "relative output error", {}};
        for (bool values : {false, true}) {
            const auto& heads = values ? r.layer[l].v : r.layer[l].k;
            for (size_t g = 0; g < heads.size(); g++) {
                Series line{
                    format("%s of head %zu", values ? "values" : "keys", g), values ? 1 : 0, {}};
                for (const RankPoint& p : heads[g])
                    line.points.push_back({double(p.rank), std::sqrt(std::max(0.0, p.error))});
                chart.series.push_back(line);
            }
        }
        html += svg_chart(chart);
    }
    return html + "</div>";
}

// A cell's colour mixes the page's card with the series colour by r / d.
std::string heat_cell(int rank, int d, int colour) {
    int share = d ? 100 * rank / d : 0;
    return format(
        "<td style=\"background: color-mix(in srgb, var(--c%d) %d%%, var(--card))\">%d</td>",
        colour, std::min(80, share), rank);
}

std::string heat_map(const CalibrationResult& r, const Config& c) {
    std::string html = format(
        "<div class=\"scroll\"><table class=\"heat\"><tr><th>layer</th>"
        "<th colspan=\"%d\">keys by head</th><th colspan=\"%d\">values by head</th>"
        "<th>error</th><th>w</th></tr>",
        c.G, c.G);
    for (size_t l = 0; l < r.layer.size(); l++) {
        html += format("<tr><td>%zu</td>", l);
        for (int rank : r.ranks[l].k) html += heat_cell(rank, c.d, 0);
        for (int rank : r.ranks[l].v) html += heat_cell(rank, c.d, 1);
        html += format("<td>%.4f</td><td>%.2f</td></tr>", r.error[l], r.layer[l].weight);
    }
    return html + "</table></div>";
}

std::string descent_table(const CalibrationResult& r) {
    std::string html = "<table><tr><th>layer</th>";
    for (const RankError& e : r.layer[0].errors)
        html += format("<th>eigenbases, rank %d</th><th>learned</th>", e.rank);
    html += "</tr>";
    for (size_t l = 0; l < r.layer.size(); l++) {
        html += format("<tr><td>%zu</td>", l);
        for (const RankError& e : r.layer[l].errors)
            html += format("<td>%.4f</td><td>%.4f</td>", e.warm, e.learned);
        html += "</tr>";
    }
    return html + "</table>";
}

std::string size_charts(const CalibrationResult& r) {
    Chart divergence{
        "KL divergence from the full cache", "bytes a token", "nats a token", {}, 520, 280, true, true};
    Chart perplexity{"perplexity", "bytes a token", "perplexity", {}, 520, 280, false};
    Series kl[2] = {{"learned bases", 0, {}, true}, {"eigenbases", 1, {}, true}},
           ppl[2] = {kl[0], kl[1]};
    auto add = [&](int which, const CalibrationResult::Point& p) {
        kl[which].points.push_back({double(p.bytes_per_token), p.divergence});
        ppl[which].points.push_back({double(p.bytes_per_token), p.perplexity});
    };
    for (const CalibrationResult::Point& p : r.sizes) add(0, p);
    for (const CalibrationResult::Point& p : r.sizes_eigen) add(1, p);
    double full = r.perplexity_full;
    Series level{"full cache", 2, {{0, full}, {double(r.full_bytes_per_token), full}}};
    if (r.options.objective == "model") {
        kl[1] = {"predicted", 1, {}, true}, ppl[1].points.clear();
        for (const CalibrationResult::Point& p : r.sizes)
            kl[1].points.push_back({double(p.bytes_per_token), p.predicted});
    }
    divergence.series = {kl[0], kl[1]};
    perplexity.series = {ppl[0], ppl[1], level};
    return "<div class=\"grid2\">" + svg_chart(divergence) + svg_chart(perplexity) + "</div>";
}

// Bits a coordinate that the budget bought for each head.
std::string bits_map(const CalibrationResult& r, const Config& c) {
    std::string html = format(
        "<div class=\"scroll\"><table class=\"heat\"><tr><th>layer</th>"
        "<th colspan=\"%d\">keys by head</th><th colspan=\"%d\">values by head</th></tr>",
        c.G, c.G);
    for (size_t l = 0; l < r.bases.layer.size(); l++) {
        html += format("<tr><td>%zu</td>", l);
        for (int side : {0, 1})
            for (const HeadBasis& head : side ? r.bases.layer[l].v : r.bases.layer[l].k) {
                double bits = head.format.back().bits_per_element(r.options.cache, c.d);
                html += format("<td style=\"background: color-mix(in srgb, var(--c%d) %d%%, "
                               "var(--card))\">%.2f</td>",
                               side, std::min(80, int(10 * bits)), bits);
            }
        html += "</tr>";
    }
    return html + "</table></div>";
}

}  // namespace

std::string report_html(const CalibrationResult& r, const Config& c, const CalibrationText& text) {
    std::string name = html_text(c.folder);
    std::string html =
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
        "<title>stief calibrate: " +
        name + "</title>" + STYLE + "</head><body>";
    html += "<h1>Low-rank KV cache of " + name +
            "</h1><p class=\"soft\">stief " STIEF_VERSION " calibrate</p>" + figures(r, c, text);
    if (r.options.objective == "model")
        return html +
               format("<h2>What a smaller cache costs</h2><p>Held-out text, the first %d tokens "
                      "exact and no others.</p>", r.options.sinks) +
               legend({{0, "measured"}, {1, "predicted by prices"}, {2, "full cache"}}) +
               size_charts(r) +
               "<h2>Bits</h2><p>What the budget bought: bits a coordinate that each head keeps of "
               "its keys and values, scales included.</p>" +
               bits_map(r, c) + "</body></html>\n";
    html +=
        "<h2>What a smaller cache costs</h2><p>Held-out text, no exact window. The eigenbases are "
        "what the descent starts from, given ranks by the same allocation.</p>" +
        legend({{0, "learned bases"}, {1, "eigenbases"}, {2, "full cache"}}) + size_charts(r);
    html +=
        "<h2>Ranks</h2><p>What the budget bought: the coordinates that each head keeps of its keys "
        "and values, the layer's output error at these ranks, and w, the damage that a unit of the "
        "layer's error does to the prediction.</p>" +
        heat_map(r, c);
    html +=
        "<h2>Error against rank</h2><p>‖Y − Ŷ‖ / ‖Y‖ of a layer's output on held-out sequences "
        "when one head's keys or values alone are cut to a rank.</p>" +
        legend({{0, "keys, a line a head"}, {1, "values"}}) + error_charts(r);
    html +=
        "<h2>Descent</h2><p>The same error with every head cut to one rank, keys and values.</p>" +
        descent_table(r);
    return html + "</body></html>\n";
}

}  // namespace stief
