#include "calibrate/report_parts.h"

#include <algorithm>

#include "base/progress.h"
#include "calibrate/svg.h"

namespace stief {

const char* const REPORT_STYLE = R"(<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #ffffff; --card: #f5f6f8;
        --grid: #dfe3e8; --c0: #1f6feb; --c1: #d1480f; --c2: #6e7781; --c3: #1a7f37; --c4: #8250df; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #0d1117; --card: #161b22; --grid: #2b323b;
        --c0: #58a6ff; --c1: #f78166; --c2: #8b949e; --c3: #56d364; --c4: #bc8cff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { max-width: 48rem; } .soft { color: var(--soft); }
.grid2 { display: grid; gap: 0.8rem;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
svg { width: 100%; background: var(--card); border-radius: 6px; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg text.title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg line.grid { stroke: var(--grid); } svg line.mark { stroke: var(--soft); stroke-dasharray: 2 4; }
svg polyline { fill: none; stroke-width: 1.6; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); stroke-dasharray: 4 3; }
.s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); stroke-dasharray: 1 3; }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); } .f3 { fill: var(--c3); }
.f4 { fill: var(--c4); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.2em; max-width: none; }
.legend svg { width: 1.8em; height: 0.7em; background: none; margin-right: 0.4em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; }
.figures td { text-align: left; overflow-wrap: anywhere; }
.figures td:first-child { color: var(--soft); white-space: nowrap; vertical-align: top; }
.heat td { text-align: center; min-width: 2.2rem; padding: 0.2rem 0.3rem;
           border: 1px solid var(--paper); }
.heat td:first-child, .heat th:first-child { position: sticky; left: 0; background: var(--paper); }
.scroll { overflow-x: auto; }
.bars td.bar { width: 40%; min-width: 5rem; text-align: left; }
.bars td.bar div { height: 0.8em; border-radius: 2px; min-width: 1px; }
</style>)";

std::string legend(const std::vector<std::pair<int, std::string>>& entries) {
    std::string html = "<p class=\"soft legend\">";
    for (const auto& [colour, name] : entries)
        html += format("<span><svg viewBox=\"0 0 28 10\" aria-hidden=\"true\"><polyline "
                       "class=\"s%d\" style=\"stroke-width: 3\" points=\"0,5 28,5\"/></svg>%s</span>",
                       colour, html_text(name).c_str());
    return html + "</p>";
}

namespace {

// Learned, predicted and the rest each keep their colour.
int colour_of(const std::string& method) {
    return method == "rotated uniform" ? 3 : method == "warm start" ? 4 : 1;
}

}  // namespace

std::string size_charts(const CalibrationResult& r) {
    Chart kl{"KL divergence from the full cache", "bytes a token", "nats a token", {}, 460, 320};
    kl.log_y = true, kl.mark = double(r.bytes_per_token);
    Chart perplexity{"perplexity", "bytes a token", "perplexity", {}, 460, 320, false};
    perplexity.mark = kl.mark;
    std::vector<std::pair<int, std::string>> names = {{0, "learned bases"}};
    Series predicted{"predicted", 4, {}};
    auto add = [&](const std::string& name, int colour, const auto& points) {
        Series one{name, colour, {}, true}, other = one;
        for (const CalibrationResult::Point& p : points) {
            one.points.push_back({double(p.bytes_per_token), p.divergence});
            other.points.push_back({double(p.bytes_per_token), p.perplexity});
        }
        kl.series.push_back(one), perplexity.series.push_back(other);
    };
    add("learned bases", 0, r.sizes);
    double full = r.perplexity_full, most = double(r.full_bytes_per_token) / 2;
    for (const CalibrationResult::Point& p : r.sizes) {
        if (p.predicted > 0)
            predicted.points.push_back({double(p.bytes_per_token), p.predicted});
        most = std::max(most, double(p.bytes_per_token));
    }
    if (!predicted.points.empty()) {
        kl.series.push_back(predicted);
        names.push_back({4, "their divergence as predicted by prices"});
    }
    for (const CalibrationResult::Compared& other : r.compared) {
        if (other.points.empty()) continue;
        add(other.name, colour_of(other.name), other.points);
        names.push_back({colour_of(other.name), other.name});
    }
    perplexity.series.push_back({"full cache", 2, {{0, full}, {most, full}}});
    // Far above the rest the perplexity of the smallest caches would hide the others.
    double highest = full;
    for (const CalibrationResult::Point& p : r.sizes) highest = std::max(highest, p.perplexity);
    for (Series& one : perplexity.series)
        std::erase_if(one.points, [&](const auto& p) { return p.second > 3 * highest - 2 * full; });
    names.push_back({2, "full cache"});
    return legend(names) + "<div class=\"grid2 wide\">" + svg_chart(kl) + svg_chart(perplexity) + "</div>";
}

std::string foretold_chart(const CalibrationResult& r) {
    Chart chart{"predicted against measured", "predicted", "measured", {}, 460, 320};
    chart.log_x = chart.log_y = true;
    double low = 1e300, high = 0;
    for (bool values : {false, true}) {
        bool layers = r.options.objective == "layer";
        if (layers && values) continue;
        for (const CalibrationResult::Foretold& one : r.foretold) {
            if (one.values != values) continue;
            const char* what = layers ? "" : values ? "values of " : "keys of ";
            std::string which = one.first == one.last
                                    ? format("layer %zu", one.first)
                                    : format("layers %zu to %zu", one.first, one.last);
            chart.series.push_back(
                {what + which, values ? 1 : 0, {{one.predicted, one.measured}}, true, false});
            for (double x : {one.predicted, one.measured})
                if (x > 0) low = std::min(low, x), high = std::max(high, x);
        }
    }
    if (low < high) chart.series.push_back({"equal", 2, {{low, low}, {high, high}}});
    return "<div class=\"grid2 wide\">" + svg_chart(chart) + "</div>";
}

std::string heat_cell(double share, int colour, const std::string& text, const std::string& title) {
    return format("<td title=\"%s\" style=\"background: color-mix(in srgb, var(--c%d) %.0f%%, "
                  "var(--card))\">%s</td>",
                  html_text(title).c_str(), colour, 70 * std::clamp(share, 0.0, 1.0), text.c_str());
}

static std::string bar_row(const std::string& name, const std::string& figure, double share, int colour) {
    return format("<tr><td>%s</td><td>%s</td><td class=\"bar\"><div style=\"width: %.1f%%; background: "
                  "var(--c%d)\"></div></td></tr>",
                  html_text(name).c_str(), figure.c_str(), 100 * share, colour);
}

std::string text_bars(const CalibrationResult& r) {
    double most = 1e-300;
    for (const TextDivergence& one : r.by_text) most = std::max(most, one.mean);
    std::string html = "<table class=\"bars\"><tr><th>text</th><th>nats a token</th><th></th></tr>";
    for (const TextDivergence& one : r.by_text)
        html += bar_row(format("%s (%zu tokens)", one.name.c_str(), one.tokens),
                        format("%.3g", one.mean), one.mean / most, 0);
    return html + "</table>";
}

std::string time_bars(const CalibrationResult& r) {
    double most = 1e-300, all = 0, verifies = 0;
    for (const CalibrationResult::Phase& one : r.time) {
        most = std::max(most, one.seconds), all += one.seconds;
        verifies += one.verifies ? one.seconds : 0;
    }
    std::string html = "<table class=\"bars\">";
    for (const CalibrationResult::Phase& one : r.time)
        html += bar_row(one.name, human_time(one.seconds), one.seconds / most, one.verifies ? 2 : 0);
    return html + format("</table><p class=\"soft\">Grey is measuring what was learned: %.0f%% of %s.</p>",
                         all > 0 ? 100 * verifies / all : 0.0, human_time(r.seconds).c_str());
}

}  // namespace stief
