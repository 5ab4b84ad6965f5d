#include "commands/dialogue.h"

#include <algorithm>

#include "base/seconds.h"

namespace stief {

static constexpr int LEAST_ANSWER = 16;    // a message that leaves less room is not worth sending
static constexpr int PIECE = 128;          // tokens of a message between two looks at stop()

static void append(std::vector<Token>& to, const std::vector<Token>& more) {
    to.insert(to.end(), more.begin(), more.end());
}

Dialogue::Dialogue(Session& owner, const Tokenizer& words, const Args& args)
    : session(owner),
      tokenizer(words),
      form(words, chat_form(args.model, words, args.chat_form, args.date)),
      sampler(sampler_of(args, owner.model.config, words)),
      system(args.system),
      ends(ends_of(owner.model.config, words)) {
    ends.push_back(form.end_of_turn);
    clear();
}

void Dialogue::require_room(size_t tokens, int answer, const char* what) const {
    if (tokens + size_t(answer) <= size_t(left())) return;
    int most = session.model.config.context;
    std::string advice = talk.messages.empty() ? "shorten it" : "/clear begins anew";
    if (session.context < most)
        advice += format(", --context N (up to %d) makes room for more", most);
    fail("the %s takes %zu tokens and needs room for an answer, but only %d of the context's %d "
         "positions are left; %s",
         what, tokens, left(), session.context, advice.c_str());
}

// Takes back all but the first `used` positions. Young ages remember their rows and those of one
// batch; where more are taken back, the rows before them are gone, and all is read again.
void Dialogue::undo(int used) {
    KvCache& cache = *session.cache;
    int undone = cache.used - used;
    if (session.watch && undone > 0) undone += Watch::MOST;    // a draft may have gone further
    talk.ids.resize(size_t(used));
    session.hold(talk.ids);
    for (const CacheLayer& layer : cache.layer)
        if (layer.batch > 0 && undone > layer.batch) return read_again();
    cache.used = used;
}

// The cache's rows are of something else: of all that was said they are made anew.
void Dialogue::read_again() {
    session.hold(talk.ids);
    session.cache->used = 0;
    session.transformer->forward(*session.cache, talk.ids, nullptr, 0);
}

// ids into the cache. False: stopped, and not all of them are there.
bool Dialogue::feed(std::span<const Token> ids, bool stoppable) {
    size_t piece = PIECE;
    for (size_t done = 0; done < ids.size(); done += piece) {
        if (stoppable && stop && stop()) return false;
        std::span<const Token> part = ids.subspan(done, std::min(piece, ids.size() - done));
        session.feed(part);
        talk.ids.insert(talk.ids.end(), part.begin(), part.end());
    }
    return true;
}

void Dialogue::clear() {
    Conversation before = std::exchange(talk, {form.form.name, {}, {}});
    int used = std::exchange(session.cache->used, 0);
    bool rows_stay = true;    // of what was said before
    try {
        std::vector<Token> ids;
        if (system) {
            ids = form.opening(*system);
            require_room(ids.size(), LEAST_ANSWER, "system message");
        }
        rows_stay = false;
        session.hold({});
        feed(ids, false);
    } catch (...) {
        talk = std::move(before);
        if (rows_stay) session.cache->used = used;
        else read_again();
        throw;
    }
    if (system) talk.messages.push_back({"system", *system});
}

void Dialogue::set_system(const std::string& text) {
    if (talk.messages.size() == 1 && talk.messages[0].role == "system") {   // nothing was said yet
        std::optional<std::string> before = std::exchange(system, text);
        try {
            return clear();
        } catch (...) {
            system = before;
            throw;
        }
    }
    std::vector<Token> ids = talk.ids.empty() ? form.opening(text) : form.message("system", text);
    require_room(ids.size(), LEAST_ANSWER, "system message");
    int before = session.cache->used;
    try {
        feed(ids, false);
    } catch (...) {
        undo(before);
        throw;
    }
    talk.messages.push_back({"system", text});
    system = text;
}

// The answer to what ids ask, all into the cache but its end.
Dialogue::End Dialogue::answer(const std::vector<Token>& ids, std::string& text) {
    last = {};
    auto start = std::chrono::steady_clock::now();
    size_t tail = ids.size() % PIECE ? ids.size() % PIECE : PIECE;   // what generate() feeds
    std::span<const Token> all_ids = ids;
    if (!feed(all_ids.first(ids.size() - tail), true) || (stop && stop())) return End::Unsent;
    double head_seconds = seconds_since(start);

    append(talk.ids, {ids.end() - ptrdiff_t(tail), ids.end()});
    int limit = left() - int(tail + form.answer_end().size());
    auto sink = [&](Token id) {
        talk.ids.push_back(id);
        if (!tokenizer.is_special(id)) {    // one that a model draws by chance is no text
            text += tokenizer.bytes(id);
            if (show) show(tokenizer.bytes(id));
        }
        return !(stop && stop());
    };
    Generated made = session.generate(sampler, all_ids.last(tail), limit, ends, sink);
    last = {int(ids.size()), made.tokens, head_seconds + made.prompt_seconds, made.seconds};
    if (made.why == Stop::EndOfText) return End::Turn;
    return made.why == Stop::Asked ? End::Stopped : End::Full;
}

Dialogue::End Dialogue::say(const std::string& text) {
    std::vector<Token> ids, end_ids = form.answer_end();
    if (talk.ids.empty()) ids = form.opening();
    append(ids, form.message("user", text));
    append(ids, form.answer_header());
    require_room(ids.size(), LEAST_ANSWER + int(end_ids.size()), "message");

    int before = session.cache->used;
    std::string answered;
    End end = End::Unsent;
    try {
        end = answer(ids, answered);
        if (end != End::Unsent) feed(end_ids, false);
    } catch (...) {
        undo(before);
        throw;
    }
    if (end == End::Unsent) {
        undo(before);
        return end;
    }
    talk.messages.push_back({"user", text});
    talk.messages.push_back({"assistant", answered});
    all.prompt_tokens += last.prompt_tokens, all.prompt_seconds += last.prompt_seconds;
    all.tokens += last.tokens, all.seconds += last.seconds;
    return end;
}

void Dialogue::save(const std::string& path) {
    check(!talk.messages.empty(), "nothing has been said yet");
    if (session.exact()) session.feed({});    // a conversation that was loaded may be in drafts alone
    if (session.exact()) save_conversation(path, talk, *session.watch->whole, session.meaning_of_model());
    else save_conversation(path, talk, *session.cache, session.meaning_of_rows());
}

// Of the full cache's rows with --risk exact, as save() writes them; else, and where it has them, of the
// compressed cache's.
Conversation Dialogue::loaded(const std::string& path) {
    auto into = [&](KvCache& cache, uint64_t meaning) {
        return load_conversation(path, cache, meaning, session.model.config.V, form.form.name);
    };
    if (session.exact()) try {
            Conversation found = into(*session.watch->whole, session.meaning_of_model());
            try {
                session.watch->hold_whole(found.ids);
            } catch (...) {
                session.watch->whole->used = 0;
                read_again();
                throw;
            }
            return found;
        } catch (const Error& first) {
            try {
                Conversation found = into(*session.cache, session.meaning_of_rows());
                session.hold(found.ids);
                return found;
            } catch (const Error&) {
                throw first;    // what it should have been says more
            }
        }
    uint64_t whole = session.meaning_of_model(), meaning = session.meaning_of_rows();
    check(meaning == whole || meaning_of_conversation(path) != whole,
          "%s holds the full cache's rows, as --risk exact saves them: start with --risk exact, or "
          "without a compressed cache",
          path.c_str());
    Conversation found = into(*session.cache, meaning);
    session.hold(found.ids);
    return found;
}

void Dialogue::load(const std::string& path) {
    talk = loaded(path);
    system.reset();
    for (const auto& message : talk.messages)
        if (message.role == "system") system = message.text;    // the last one holds
}

}  // namespace stief
