// stief needle: what can still be found in a long context, with the full cache, with a compressed one,
// and with that one under --risk. A try counts where the full cache finds what is asked: greedy
// decoding says exactly the answer's tokens.
#include <algorithm>

#include "base/file.h"
#include "base/json_writer.h"
#include "base/progress.h"
#include "commands/needle_texts.h"
#include "commands/session.h"

namespace stief {
namespace {

constexpr int ROOM = 16;    // of a length, for the answer

struct NeedleRow {
    std::string kind;
    int length = 0, tries = 0, full = 0;        // found with the full cache
    int compressed = 0, with_risk = 0;          // of these, with the compressed one, and under --risk
    int flagged = 0, false_alarms = 0;          // audit: of those lost, and of those kept
};

struct NeedleRun {
    const Args& args;
    Session& session;
    const Tokenizer& tokenizer;
    const std::string& novel;
    KvCache& full;
    Sampler greedy = Sampler(Sampling{}, 0);

    void one(NeedleRow& row, Random& random);
    bool finds(const Needle& needle, KvCache& cache);
    bool finds_watched(const Needle& needle);
};

std::function<bool(Token)> collect_in(std::vector<Token>& said) {
    return [&said](Token id) {
        said.push_back(id);
        return true;
    };
}

bool NeedleRun::finds(const Needle& needle, KvCache& cache) {
    cache.used = 0;
    std::vector<Token> said;
    generate(*session.transformer, cache, greedy, needle.prompt, int(needle.answer.size()), {},
             collect_in(said));
    return said == needle.answer;
}

bool NeedleRun::finds_watched(const Needle& needle) {
    Watch& watch = *session.watch;
    session.cache->used = 0;
    watch.hold({});
    std::vector<Token> said;
    watch.generate(greedy, needle.prompt, int(needle.answer.size()), {}, collect_in(said));
    return said == needle.answer;
}

void NeedleRun::one(NeedleRow& row, Random& random) {
    Needle needle = make_needle(row.kind, row.length - ROOM, tokenizer, novel, random);
    row.tries++;
    if (!finds(needle, full)) return;
    row.full++;
    if (!session.bases) return;
    Watch* watch = session.watch.get();
    bool audited = watch && !watch->options.exact;
    bool watched = watch && finds_watched(needle);
    bool kept = audited ? watched : finds(needle, *session.cache);    // an audit changes nothing
    row.compressed += kept, row.with_risk += watched;
    bool alarm = audited && watch->log.count_above() > 0;
    row.flagged += alarm && !kept;
    row.false_alarms += alarm && kept;
}

bool compresses(const Args& args) {
    return !args.bases.empty() || args.cache == "q8" || args.cache == "q4";
}

std::string as_text(const std::vector<NeedleRow>& rows, const Args& args) {
    bool bases = compresses(args), risk = args.risk != "off", audit = args.risk == "audit";
    std::string text = "kind        length  tries  full";
    if (bases) text += "  compressed";
    if (risk) text += format("  %9s", args.risk.c_str());
    if (audit) text += "  lost, flagged  kept, flagged";
    text += "\n";
    for (const NeedleRow& row : rows) {
        text += format("%-10s  %6d  %5d  %4d", row.kind.c_str(), row.length, row.tries, row.full);
        if (bases) text += format("  %10d", row.compressed);
        if (risk) text += format("  %9d", row.with_risk);
        if (audit)
            text += format("  %6d of %-3d  %6d of %-3d", row.flagged, row.full - row.compressed,
                           row.false_alarms, row.compressed);
        text += "\n";
    }
    return text;
}

std::string as_json(const std::vector<NeedleRow>& rows, const Args& args) {
    JsonWriter json;
    json.begin_object().add("risk", args.risk).begin_array("rows");
    for (const NeedleRow& row : rows) {
        json.begin_object().add("kind", row.kind).add("length", row.length).add("tries", row.tries);
        json.add("full", row.full);
        if (compresses(args)) json.add("compressed", row.compressed);
        if (args.risk != "off") json.add("with_risk", row.with_risk);
        if (args.risk == "audit")
            json.add("flagged", row.flagged).add("false_alarms", row.false_alarms);
        json.end_object();
    }
    return json.end_array().end_object().text + "\n";
}

}  // namespace

int needle(const Args& args) {
    Config config = Config::open(args.model);
    int context = args.context ? args.context : config.context;
    Args opened = args;
    if (args.lengths.empty())
        for (int length : {512, 2048, 8192})
            if (length <= context) opened.lengths.push_back(length);
    check(!opened.lengths.empty(), "%d positions are too few for needles; use --lengths", context);
    int longest = *std::max_element(opened.lengths.begin(), opened.lengths.end());
    check(longest <= context, "--lengths: %d tokens do not fit %d positions (%s)", longest, context,
          args.context ? "--context" : "the model's");
    opened.context = longest;
    Tokenizer tokenizer = Tokenizer::open(args.model);
    std::string novel = args.file.empty() ? "" : read_text(args.file);
    Session session(opened);
    KvCache full(*session.model.backend, config, session.context, session.dtype);
    NeedleRun run{args, session, tokenizer, novel, full};

    uint64_t seed = !args.seed.given ? 1 : args.seed.drawn ? draw_seed() : args.seed.value;
    if (args.seed.drawn)
        status(args, format("seed %llu", static_cast<unsigned long long>(seed)));
    std::vector<NeedleRow> rows;
    Progress progress("needle", "tries", args.quiet);
    size_t kinds = args.kind == "all" ? NEEDLE_KINDS.size() : 1, done = 0;
    for (const std::string& kind : NEEDLE_KINDS)
        for (int length : opened.lengths) {
            if (args.kind != "all" && args.kind != kind) continue;
            NeedleRow& row = rows.emplace_back();
            row.kind = kind, row.length = length;
            Random random(seed);
            for (int i = 0; i < args.tries; i++) {
                run.one(row, random);
                progress.update(++done, kinds * opened.lengths.size() * size_t(args.tries));
            }
        }
    progress.clear();
    print(args.json ? as_json(rows, args) : as_text(rows, args));
    return 0;
}

}  // namespace stief
