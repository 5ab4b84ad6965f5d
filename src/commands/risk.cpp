// stief risk: a text window by window through the compressed cache and the full one. What each window
// loses, what an audit of one block in eight would have told of it, and beside it the tail of the
// response covariance's spectrum, the quantity of "The risk of KV cache compression".
#include <algorithm>
#include <cmath>

#include "base/file.h"
#include "base/json_writer.h"
#include "base/progress.h"
#include "calibrate/response_tail.h"
#include "calibrate/svg.h"
#include "commands/outputs.h"
#include "commands/session.h"
#include "forward/perplexity.h"

namespace stief {
namespace {

constexpr size_t ONE_IN = 8;    // blocks, of which an audit looks at one

struct WindowRisk {
    size_t first = 0, tokens = 0;      // of the text; predictions that were compared
    double kld = 0, audited = 0, same_top = 0, tail = 0;    // audited: NaN where no block was
    int flagged = 0;                   // tokens that greedy decoding would be flagged for
    bool above = false;                // the whole window's blocks leave the level
};

struct Correlation {
    double value = NAN;
    size_t windows = 0;                // that it is of
};

struct RiskReport {
    std::vector<WindowRisk> windows;
    AuditLog all, sample;              // every block; one in eight
    size_t flagged() const {
        size_t sum = 0;
        for (const WindowRisk& one : windows) sum += size_t(one.flagged);
        return sum;
    }
    Correlation by_tail, by_audit;     // with the log of KL, over windows
};

const char* word(AuditLog::Verdict verdict) {
    return verdict == AuditLog::Verdict::NoLevel ? "no level stored"
           : verdict == AuditLog::Verdict::Above ? "above"
                                                 : "usual";
}

// NaN of fewer than three pairs, or where one side does not vary.
double correlation(const std::vector<double>& a, const std::vector<double>& b) {
    size_t n = a.size();
    double ma = 0, mb = 0, aa = 0, bb = 0, ab = 0;
    for (size_t i = 0; i < n; i++) ma += a[i] / double(n), mb += b[i] / double(n);
    for (size_t i = 0; i < n; i++) {
        aa += (a[i] - ma) * (a[i] - ma), bb += (b[i] - mb) * (b[i] - mb);
        ab += (a[i] - ma) * (b[i] - mb);
    }
    return n < 3 || aa <= 0 || bb <= 0 ? double(NAN) : ab / std::sqrt(aa * bb);
}

// Of the logs of `quantity` and of KL, over the windows where neither is zero or was not measured.
Correlation log_correlation(const std::vector<WindowRisk>& windows, double WindowRisk::* quantity) {
    std::vector<double> kld, other;
    for (const WindowRisk& one : windows) {
        if (!(one.kld > 0 && one.*quantity > 0)) continue;
        kld.push_back(std::log(one.kld)), other.push_back(std::log(one.*quantity));
    }
    return {correlation(kld, other), kld.size()};
}

std::string in_words(const Correlation& of) {
    std::string value = std::isnan(of.value) ? "not to be had" : format("%.2f", of.value);
    return value + format(" (windows: %zu)", of.windows);
}

// Steps first … first + n − 1 of what was measured, as blocks; position: of the window's first step.
WindowRisk window_risk(RiskReport& report, const Measured& measured, size_t first, size_t n,
                       size_t position, size_t block, const RiskLevels& levels) {
    WindowRisk one{position, n, 0, 0, 0, 0, 0, false};
    AuditLog own;
    own.levels = levels;
    size_t sampled = 0;
    for (size_t at = 0, index = report.windows.size(); at < n; at += block, index++) {
        AuditedBlock b{int(position + at), int(std::min(block, n - at)), 0, 0, 0};
        for (size_t i = first + at; i < first + at + size_t(b.tokens); i++) {
            double divergence = double(measured.step[i]);
            b.mean += divergence / b.tokens;
            b.same_top += measured.same_top[i];
            one.kld += divergence / double(n);
            one.same_top += measured.same_top[i] / double(n);
            one.flagged += double(measured.swing[i]) > levels.flags.greedy.swing;
        }
        own.blocks.push_back(b);
        report.all.blocks.push_back(b);
        if (index % ONE_IN) continue;    // another block of each window
        report.sample.blocks.push_back(b);
        one.audited += b.mean * b.tokens, sampled += size_t(b.tokens);
    }
    one.audited = sampled ? one.audited / double(sampled) : double(NAN);
    one.above = own.verdict() == AuditLog::Verdict::Above;
    return one;
}

std::string as_json(const RiskReport& r) {
    JsonWriter json;
    json.begin_object().begin_array("windows");
    for (const WindowRisk& one : r.windows) {
        json.begin_object().add("first", one.first).add("tokens", one.tokens);
        json.add("kld", one.kld).add("kld_audited", one.audited).add("same_top", one.same_top);
        json.add("flagged", size_t(one.flagged)).add("tail", one.tail);
        json.add("verdict", r.all.levels.blocks.empty() ? "no level stored" : one.above ? "above" : "usual");
        json.end_object();
    }
    json.end_array().add("kld", r.all.mean()).add("kld_stderr", r.all.standard_error());
    json.add("same_top", r.all.same_top()).add("flagged", r.flagged());
    json.add("flagged_of", size_t(r.all.audited())).add("flagged_usual", r.all.levels.flags.greedy.rate);
    json.add("verdict", word(r.all.verdict()));
    const AuditedBlock& any = r.all.blocks.front();
    const RiskLevel* level = r.all.level_of(any);
    json.add("level", level ? level->largest : double(NAN));
    json.add("level_decile", level ? level->decile : double(NAN));
    json.begin_object("coverage").add("share", double(r.sample.audited()) / r.all.audited());
    json.add("kld_audited", r.sample.mean()).add("kld_audited_stderr", r.sample.standard_error());
    json.add("correlation", r.by_audit.value).end_object();
    return json.add("tail_correlation", r.by_tail.value).end_object().text + "\n";
}

std::string as_text(const RiskReport& r) {
    std::string text = "   first  tokens  KL, nats  audited  same top  flagged      tail\n";
    for (const WindowRisk& one : r.windows) {
        std::string audited = std::isnan(one.audited) ? "-" : format("%.3g", one.audited);
        text += format("%8zu  %6zu  %8.4g  %7s  %7.1f%%  %7d  %8.3g%s\n", one.first, one.tokens, one.kld,
                       audited.c_str(), 100 * one.same_top, one.flagged, one.tail,
                       one.above ? "  above the level" : "");
    }
    text += "\n" + r.all.line() + "\n";
    const FlagLevels& usual = r.all.levels.flags;
    text += format("%zu of %d tokens (%.2g%%) would be flagged in greedy text: another than the full "
                   "cache's, its odds moved by more than %.2g nats; usual %.2g%% (%s)\n",
                   r.flagged(), r.all.audited(), 100.0 * double(r.flagged()) / r.all.audited(),
                   usual.greedy.swing, 100 * usual.greedy.rate,
                   usual.tokens ? format("of %d that calibration held out", usual.tokens).c_str()
                                : "assumed: the bases store none");
    text += format("one block in %zu: KL %.3g ± %.2g nats; correlation of its log with that of the "
                   "whole: %s\n",
                   ONE_IN, r.sample.mean(), r.sample.standard_error(), in_words(r.by_audit).c_str());
    return text + format("the spectral tail: correlation of its log with that of KL: %s\n",
                         in_words(r.by_tail).c_str());
}

std::string as_page(const RiskReport& r, const Args& args) {
    Chart course{"KL divergence along the text", "position", "nats a token", {}, 720, 260, true};
    Series whole{"all", 0, {}, true}, audited{"one in eight", 1, {}, true};
    Chart paper{"KL divergence and the spectral tail", "ln tail", "ln KL", {}, 520, 300, false};
    Series pairs{"windows", 0, {}, true};
    for (const WindowRisk& one : r.windows) {
        whole.points.push_back({double(one.first), one.kld});
        if (one.audited >= 0) audited.points.push_back({double(one.first), one.audited});
        if (one.tail > 0 && one.kld > 0)
            pairs.points.push_back({std::log(one.tail), std::log(one.kld)});
    }
    std::sort(pairs.points.begin(), pairs.points.end());
    course.series = {whole, audited}, paper.series = {pairs};
    return "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>stief risk</title>"
           "<style>body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }"
           "svg { width: 100%; background: #f5f6f8; } svg polyline { fill: none; stroke-width: 1.6; }"
           ".s0 { stroke: #1f6feb; } .s1 { stroke: #d1480f; } .f0 { fill: #1f6feb; }"
           ".f1 { fill: #d1480f; } svg line.grid { stroke: #dfe3e8; }</style></head><body><h1>" +
           html_text(args.rest[0]) + " through " +
           html_text(args.bases.empty() ? args.cache : args.bases) + "</h1><p>" +
           html_text(r.all.line()) + "</p>" + svg_chart(course) + svg_chart(paper) +
           format("<p>Correlation with the logarithm of KL, over windows: of the tail's %s, of that of an "
                  "audit of one block in eight %s.</p></body></html>\n",
                  in_words(r.by_tail).c_str(), in_words(r.by_audit).c_str());
}

RiskReport measure_risk(const Args& args, Session& session, std::span<const Token> ids) {
    Model& model = session.model;
    Protocol protocol{.name = Protocol::Chunks, .context = session.context, .limit = args.chunks};
    Runner tested{*session.transformer, *session.cache, args.exact};
    Runner reference{*session.transformer, *session.reference, args.exact};
    Progress progress("risk", "tokens", args.quiet);
    Measured measured = measure(tested, &reference, ids, protocol, [&](size_t done, size_t all, double) {
        progress.update(done, all);
    });
    RiskReport report;
    report.all.levels = report.sample.levels = risk_levels(session.bases->metadata);
    std::vector<float> rotation = rotation_table(model.config, session.context);
    LayerPass pass(model, session.context, rotation);
    size_t first = 0, block = size_t(args.audit ? args.audit : Watch::MOST);
    for (const Window& window : windows(protocol, ids.size())) {
        size_t n = window.end - window.first_scored;
        WindowRisk one = window_risk(report, measured, first, n, window.first_scored, block,
                                     report.all.levels);
        one.tail = response_tail(pass, ids.subspan(window.begin, window.end - window.begin));
        report.windows.push_back(one);
        report.all.positions += int(n), report.sample.positions += int(n);
        first += n;
        progress.update(first, measured.step.size(), "tails");
    }
    report.by_tail = log_correlation(report.windows, &WindowRisk::tail);
    report.by_audit = log_correlation(report.windows, &WindowRisk::audited);
    return report;
}

}  // namespace

int risk(const Args& args) {
    if (!compresses(args))
        throw UsageError("risk asks what a compressed cache loses: --bases FILE, --cache q8 or q4");
    check_outputs({{{"--report", args.report}, Output::Page}},
                  {{"the text", args.rest[0]}, {"--bases", args.bases}}, args.model);
    Tokenizer tokenizer = Tokenizer::open(args.model);
    std::vector<Token> ids = tokenizer.encode_document(read_text(args.rest[0]));
    check(ids.size() >= 4, "%s: %zu tokens, too few to measure anything on; give a longer text",
          args.rest[0].c_str(), ids.size());
    Session session(args, 512);
    check(session.context >= 4, "a window of fewer than 4 tokens scores next to nothing");
    RiskReport report = measure_risk(args, session, ids);
    session.model.weights.files.check_unchanged();
    print(args.json ? as_json(report) : as_text(report));
    if (!args.report.empty()) {
        AtomicFile page(args.report);
        page.write(as_page(report, args));
        page.commit();
    }
    return 0;
}

}  // namespace stief
