// stief needle: what can still be found in a long context, with the full cache, with a compressed one,
// and with that one under --risk. A needle counts where the full cache finds it: greedy decoding says
// exactly the answer's tokens. One pass over a text serves all of its questions, and both caches.
#include <algorithm>

#include "base/file.h"
#include "base/json_writer.h"
#include "base/progress.h"
#include "commands/needle_texts.h"
#include "commands/session.h"

namespace stief {
namespace {

struct NeedleRow {
    std::string kind;
    int length = 0, asked = 0, full = 0;        // found with the full cache
    int compressed = 0, exact = 0;              // of these, with the compressed one, and with exact
    // Of those lost, where an audit noticed a token that is not the full cache's, flagged one, and
    // flagged so many that a person would be warned; and of those kept.
    int lost_noticed = 0, lost_flagged = 0, lost_warned = 0;
    int kept_flagged = 0, kept_warned = 0;
};

struct NeedleRun {
    Session& session;
    KvCache& full;                              // the watch's whole rows, where there is one
    int block;                                  // that an audit looks at; drafts have lengths of their own
    Sampler greedy = Sampler(Sampling{}, 0);

    void read(const std::vector<Token>& text);
    void ask(NeedleRow& row, const std::vector<Token>& text, const NeedleText::Asked& asked);

  private:
    bool finds(const std::vector<Token>& text, const NeedleText::Asked& asked);
    bool finds_watched(bool exact, const std::vector<Token>& text, const NeedleText::Asked& asked);
};

// The text into both caches.
void NeedleRun::read(const std::vector<Token>& text) {
    full.used = session.cache->used = 0;
    if (!session.watch) return session.transformer->forward(full, text, nullptr, 0);
    session.watch->options.exact = true;
    session.watch->hold({});
    session.watch->feed(text);
}

std::function<bool(Token)> collect_in(std::vector<Token>& said) {
    return [&said](Token id) {
        said.push_back(id);
        return true;
    };
}

bool NeedleRun::finds(const std::vector<Token>& text, const NeedleText::Asked& asked) {
    std::vector<Token> said;
    full.used = int(text.size());
    generate(*session.transformer, full, greedy, asked.question, int(asked.answer.size()), {},
             collect_in(said));
    return said == asked.answer;
}

bool NeedleRun::finds_watched(bool exact, const std::vector<Token>& text,
                              const NeedleText::Asked& asked) {
    Watch& watch = *session.watch;
    session.cache->used = int(text.size());
    watch.hold(text);
    watch.options.exact = exact;
    watch.options.block = exact ? 0 : block;
    std::vector<Token> said;
    watch.generate(greedy, asked.question, int(asked.answer.size()), {}, collect_in(said));
    return said == asked.answer;
}

void NeedleRun::ask(NeedleRow& row, const std::vector<Token>& text, const NeedleText::Asked& asked) {
    row.asked++;
    if (!finds(text, asked)) return;
    row.full++;
    if (!session.watch) return;
    bool kept = finds_watched(false, text, asked);    // an audit changes nothing
    const AuditLog& log = session.watch->log;
    row.compressed += kept;
    row.lost_noticed += !kept && !log.departures.empty();
    (kept ? row.kept_flagged : row.lost_flagged) += log.flagged() > 0;
    (kept ? row.kept_warned : row.lost_warned) += log.too_many_flagged();
    row.exact += finds_watched(true, text, asked);
}

std::string as_text(const std::vector<NeedleRow>& rows, const Session& session) {
    std::string text = "kind        length  asked  full";
    if (session.watch) text += "  compressed  exact  lost: noticed, flagged, warned  kept: flagged, warned";
    text += "\n";
    for (const NeedleRow& row : rows) {
        text += format("%-10s  %6d  %5d  %4d", row.kind.c_str(), row.length, row.asked, row.full);
        if (session.watch) {
            int lost = row.full - row.compressed;
            text += format("  %10d  %5d  %4d: %7d, %7d, %6d  %4d: %7d, %6d", row.compressed, row.exact,
                           lost, row.lost_noticed, row.lost_flagged, row.lost_warned, row.compressed,
                           row.kept_flagged, row.kept_warned);
        }
        text += "\n";
    }
    return text;
}

// Of lost needles: noticed, flagged, warned.
std::string as_json(const std::vector<NeedleRow>& rows, const Session& session, int tries) {
    JsonWriter json;
    json.begin_object();
    if (session.watch) {
        const FlagLevels& usual = session.watch->log.levels.flags;
        json.add("flag_swing", usual.greedy.swing).add("flagged_usual", usual.greedy.rate);
        json.add("flagged_usual_from", size_t(usual.tokens));
    }
    json.begin_array("rows");
    for (const NeedleRow& row : rows) {
        json.begin_object().add("kind", row.kind).add("length", row.length).add("tries", tries);
        json.add("asked", row.asked);
        json.add("full", row.full);
        if (session.watch) {
            json.add("compressed", row.compressed).add("with_risk", row.exact);
            json.add("noticed", row.lost_noticed).add("flagged", row.lost_flagged);
            json.add("warned", row.lost_warned)
                .add("kept_flagged", row.kept_flagged)
                .add("kept_warned", row.kept_warned);
        }
        json.end_object();
    }
    return json.end_array().end_object().text + "\n";
}

}  // namespace

int needle(const Args& args) {
    if (args.audit && !compresses(args))
        throw UsageError("--audit belongs to a compressed cache: --bases FILE, --cache q8 or q4");
    Config config = Config::open(args.model);
    int context = args.context ? args.context : config.context;
    Args opened = args;
    if (args.lengths.empty())
        for (int length : {512, 2048, 8192, 32768})
            if (length <= context) opened.lengths.push_back(length);
    check(!opened.lengths.empty(), "%d positions are too few for needles; use --lengths", context);
    int longest = *std::max_element(opened.lengths.begin(), opened.lengths.end());
    check(longest <= context, "--lengths: %d tokens do not fit %d positions (%s)", longest, context,
          args.context ? "--context" : "the model's");
    opened.context = longest;
    if (compresses(args)) opened.risk = "exact";
    Tokenizer tokenizer = Tokenizer::open(args.model);
    std::string novel = args.file.empty() ? "" : read_text(args.file);
    size_t enough = std::max<size_t>(1024, 4 * size_t(longest));  // twice what is between two needles
    check(args.file.empty() || novel.size() > enough,
          "%s: %zu bytes are too few to hide needles in %d tokens, expected more than %zu; give a longer "
          "text, shorter --lengths, or no --file", args.file.c_str(), novel.size(), longest, enough);
    Session session(opened);
    int shortest = *std::min_element(opened.lengths.begin(), opened.lengths.end());
    long long exact = (long long)session.cache->sinks + session.cache->recent;
    check(!compresses(args) || exact < shortest,
          "--lengths %d: all of it is in the whole window of the cache, the first %d and the last %d "
          "tokens: nothing would be read compressed; use longer ones, or a smaller --window",
          shortest, session.cache->sinks, session.cache->recent);
    NeedleRun run{session, session.watch ? *session.watch->whole : *session.cache, args.audit};

    uint64_t seed = !args.seed.given ? 1 : args.seed.drawn ? draw_seed() : args.seed.value;
    if (args.seed.drawn)
        status(args, format("seed %llu", static_cast<unsigned long long>(seed)));
    std::vector<NeedleRow> rows;
    Progress progress("needle", "texts", args.quiet);
    size_t kinds = args.kind == "all" ? NEEDLE_KINDS.size() : 1, done = 0;
    for (const std::string& kind : NEEDLE_KINDS)
        for (int length : opened.lengths) {
            if (args.kind != "all" && args.kind != kind) continue;
            NeedleRow& row = rows.emplace_back();
            row.kind = kind, row.length = length;
            Random random(seed);
            for (int i = 0; i < args.tries; i++) {
                NeedleText text = make_needles(kind, length, tokenizer, novel, random);
                run.read(text.ids);
                for (const NeedleText::Asked& asked : text.asked) run.ask(row, text.ids, asked);
                progress.update(++done, kinds * opened.lengths.size() * size_t(args.tries));
            }
        }
    progress.clear();
    print(args.json ? as_json(rows, session, args.tries) : as_text(rows, session));
    return 0;
}

}  // namespace stief
