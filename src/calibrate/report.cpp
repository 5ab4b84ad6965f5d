#include "calibrate/report.h"

#include <algorithm>
#include <cmath>

#include "base/progress.h"
#include "calibrate/report_parts.h"
#include "calibrate/svg.h"

namespace stief {
namespace {

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
    if (o.method == "star")
        row("method", format("STAR-KV: learned thresholds, %s, keys %s rotation",
                             o.bits == "mixed" ? "codes of 4 and 3 bits" : "rank alone",
                             o.keys.c_str()));
    else if (o.objective == "model")
        row("method", format("prices of the final prediction, %s bits, keys %s rotation%s",
                             o.bits.c_str(), o.keys.c_str(),
                             o.joint_values ? ", a layer's values in one basis" : ""));
    else
        row("method", format("%s, %s key basis, %s metric, keys %s rotation", o.method.c_str(),
                         o.key_basis_per_layer ? "one a layer" : "a head",
                         o.metric.c_str(), o.keys.c_str()));
    row("budget", budget);
    row("learnt from",
        format("%s, %zu sequences of %d tokens, %d steps, seed %llu", names_of(text.learn).c_str(),
               r.sequences, o.sequence, o.steps, static_cast<unsigned long long>(o.seed)));
    row("measured on", format("%s, %zu tokens, whole window %d,%d", names_of(text.held_out).c_str(),
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
    return "<table class=\"figures\">" + rows + "</table>";
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

std::string heat_head(const Config& c, bool joint, const char* more) {
    return format("<div class=\"scroll\"><table class=\"heat\"><tr><th>layer</th>"
                  "<th colspan=\"%d\">keys by head</th><th colspan=\"%d\">values%s</th>%s</tr>",
                  c.G, joint ? 1 : c.G, joint ? ", joint" : " by head", more);
}

std::string ranks_map(const CalibrationResult& r, const Config& c) {
    std::string html = heat_head(c, false, "<th>error</th><th>w</th>");
    for (size_t l = 0; l < r.layer.size(); l++) {
        html += format("<tr><td>%zu</td>", l);
        for (int side : {0, 1})
            for (int rank : side ? r.ranks[l].v : r.ranks[l].k)
                html += heat_cell(double(rank) / c.d, side, std::to_string(rank),
                                  format("layer %zu: rank %d of %d", l, rank, c.d));
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

// "8 at 6 bits, 24 at 4 bits" of a head.
std::string widths_of(const RowFormat& format_, int d) {
    std::string text;
    for (size_t w = 0; w < format_.count.size(); w++)
        if (format_.count[w])
            text += format("%s%d at %d bits", text.empty() ? "" : ", ", int(format_.count[w]),
                           RowFormat::BITS[w]);
    return text + format("%s%d not stored", text.empty() ? "" : ", ", d - format_.kept());
}

// Bits a coordinate that the budget bought for each head.
std::string bits_map(const CalibrationResult& r, const Config& c) {
    double most = 1;
    auto bits = [&](const HeadBasis& head) {
        return head.format.back().bits_per_element(r.options.cache, int(head.width()));
    };
    for (const Bases::Layer& layer : r.bases.layer)
        for (const auto* side : {&layer.k, &layer.v})
            for (const HeadBasis& head : *side) most = std::max(most, double(bits(head)));
    std::string html = heat_head(c, r.options.joint_values, "");
    for (size_t l = 0; l < r.bases.layer.size(); l++) {
        html += format("<tr><td>%zu</td>", l);
        for (int side : {0, 1})
            for (const HeadBasis& head : side ? r.bases.layer[l].v : r.bases.layer[l].k)
                html += heat_cell(
                    bits(head) / most, side, format("%.2f", bits(head)),
                    format("layer %zu: %s", l,
                           widths_of(head.format.back(), int(head.width())).c_str()));
        html += "</tr>";
    }
    return html + "</table></div>";
}

}  // namespace

std::string report_html(const CalibrationResult& r, const Config& c, const CalibrationText& text) {
    bool model = r.options.objective == "model";
    std::string name = html_text(c.folder);
    std::string html =
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
        "<title>stief calibrate: " +
        name + "</title>" + REPORT_STYLE + "</head><body>";
    html += "<h1>Low-rank KV cache of " + name +
            "</h1><p class=\"soft\">stief " STIEF_VERSION " calibrate</p>" + figures(r, c, text);
    html += format("<h2>What a smaller cache costs</h2><p>Held-out text, %s. EigenAttention: one basis "
                   "for a layer's keys, one a head for its values, and ranks by one threshold on all "
                   "spectra. Rotated uniform: nothing learned, every coordinate in 8, 4, 3 or 2 bits. "
                   "The upright line is the size of this file's cache. Perplexities far above the rest are "
                   "not drawn.</p>",
                   model ? format("the first %d and the last %d tokens whole", r.options.sinks,
                                r.options.recent).c_str()
                         : "no whole window");
    html += size_charts(r);
    if (r.by_text.size() > 1)
        html += "<h2>On each held-out text</h2><p>KL divergence through the cache of this file, its whole "
                "window included.</p>" + text_bars(r);
    if (model)
        html += "<h2>Bits</h2><p>What the budget bought: bits a coordinate that each head keeps of "
                "its keys and values, scales included.</p>" + bits_map(r, c);
    else
        html += "<h2>Ranks</h2><p>What the budget bought: the coordinates that each head keeps of its "
                "keys and values, the layer's output error at these ranks, and w, the damage that a "
                "unit of the layer's error does to the prediction.</p>" + ranks_map(r, c);
    bool foretold = !r.foretold.empty();  // method star predicts nothing
    if (model && foretold)
        html += "<h2>Predicted and measured</h2><p>The divergence in nats when the keys or the values "
                "of neighbouring layers alone are stored as the first prices would have it: what prices "
                "predict, and what was measured, by which they are then corrected.</p>" +
                legend({{0, "keys"}, {1, "values"}, {2, "as predicted"}});
    else if (foretold)
        html += "<h2>Predicted and measured</h2><p>The squared output error of each layer at its ranks: the "
                "sum over heads cut alone, and all of them cut.</p>" +
                legend({{0, "a layer"}, {2, "as predicted"}});
    if (foretold) html += foretold_chart(r);
    if (!model)
        html += "<h2>Error against rank</h2><p>‖Y − Ŷ‖ / ‖Y‖ of a layer's output on held-out sequences "
                "when one head's keys or values alone are cut to a rank.</p>" +
                legend({{0, "keys, a line a head"}, {1, "values"}}) + error_charts(r) +
                "<h2>Descent</h2><p>The same error with every head cut to one rank, keys and "
                "values.</p><div class=\"scroll\">" + descent_table(r) + "</div>";
    html += "<h2>Where the minutes went</h2>" + time_bars(r);
    return html + "</body></html>\n";
}

}  // namespace stief
