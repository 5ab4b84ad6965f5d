// Watch::generate_exact: draft with the compressed cache, verify with the whole rows, one batch for
// all of a draft. With an agreement a of single tokens a verification gives (1 − a^{N+1}) / (1 − a)
// of them (Leviathan et al. 2023). Unlike there, nothing is drawn from a residual: draft and
// verification share the noise of each draw (sampler.h), so that a token is accepted where it is the
// very one that the full cache draws, and the same seed gives the full cache's own text.
#include <algorithm>
#include <cmath>

#include "base/seconds.h"
#include "forward/finite.h"
#include "forward/watch.h"

namespace stief {

void Drafting::add_verification(int tokens, double seconds) {
    for (double* sum : {&n, &T, &TT, &s, &Ts}) *sum *= 0.95;    // costs grow with the context
    double t = tokens;
    n += 1, T += t, TT += t * t, s += seconds, Ts += t * seconds;
    verifications++;
}

// A verification of N + 1 tokens is taken to cost v + w (N + 1) seconds, a line through those that
// were, and gives (1 − a^{N+1}) / (1 − a) tokens. The first ones are of two lengths, to learn the line;
// a begins as if 8 of 9 guesses had been right. Where some tokens together read the weights once, none is
// left over of a longer draft.
int Drafting::best_length(int most, int together) const {
    if (verifications < 4) return std::min(most, verifications % 2 ? 2 : 7);
    double a = (accepted + 8.0) / (accepted + rejected + 9.0), spread = n * TT - T * T;
    double w = spread > 0 ? std::max(0.0, (n * Ts - T * s) / spread) : 0;
    double v = std::max(0.0, (s - w * T) / n), each = draft_seconds / std::max(drafted, 1);
    auto seconds_a_token = [&](int N) {
        return (N * each + v + w * (N + 1)) * (1 - a) / (1 - std::pow(a, N + 1));
    };
    int best = 1;
    for (int N = 2; N <= most; N++)
        if ((N < together || (N + 1) % together == 0) && seconds_a_token(N) < seconds_a_token(best)) best = N;
    return best;
}

int Watch::suggested() const {
    return options.block ? options.block
                         : drafting.best_length(MOST, transformer.model.backend->singly_together);
}

// What the compressed cache would draw next, up to `most` tokens or the first end. The last is not
// fed: it is in the cache only once it is given out.
std::vector<Token> Watch::draft(const Sampler& sampler, int most, std::span<const Token> ends) {
    if (most == 0) return {};
    auto start = std::chrono::steady_clock::now();
    std::vector<Token> guesses = sampler.takes_likeliest() ? draft_greedy(most, ends)
                                                           : draft_drawn(sampler, most, ends);
    drafting.draft_seconds += seconds_since(start);
    drafting.drafted += int(guesses.size());
    return guesses;
}

std::vector<Token> Watch::draft_drawn(const Sampler& sampler, int most, std::span<const Token> ends) {
    std::span<const Token> behind = std::span<const Token>(ids).subspan(size_t(cache.used));
    Singly singly(transformer, int(behind.size()) <= transformer.model.backend->most_singly);
    Sampler ahead = sampler;    // its generator runs ahead, the sampler's own does not
    std::vector<float> logits(size_t(transformer.model.config.V));
    std::vector<Token> guesses;
    for (int i = 0; i < most; i++) {
        if (i > 0) behind = {&guesses.back(), 1};
        transformer.forward(cache, behind, logits.data(), 1);
        guesses.push_back(pick(ahead, logits, cache));
        if (std::count(ends.begin(), ends.end(), guesses.back())) break;
    }
    return guesses;
}

// The same of the most likely ones. A device is given each before it has come home.
std::vector<Token> Watch::draft_greedy(int most, std::span<const Token> ends) {
    std::span<const Token> behind = std::span<const Token>(ids).subspan(size_t(cache.used));
    Singly singly(transformer, int(behind.size()) <= transformer.model.backend->most_singly);
    bool ahead = transformer.model.backend->runs_ahead;
    std::vector<Token> guesses;
    transformer.forward_greedy(cache, behind);
    for (int i = 1;; i++) {
        if (ahead && i < most) transformer.forward_next(cache);
        try {
            guesses.push_back(transformer.greedy());
        } catch (const NotFinite&) {
            throw Error(why_not_finite(transformer.model, cache));
        }
        if (i == most) return guesses;
        if (std::count(ends.begin(), ends.end(), guesses.back())) break;
        if (!ahead) transformer.forward_next(cache);
    }
    cache.used -= ahead;    // the end was fed
    return guesses;
}

// The whole rows of more tokens, and what the full cache makes of the last `wanted` of them.
void Watch::feed_whole(std::span<const Token> more, int wanted, bool greedy) {
    Backend& ops = *transformer.model.backend;
    if (greedy) {
        transformer.forward_on_backend(*whole, more, full.f32(), wanted);
        ops.argmax(static_cast<Token*>(likeliest.data), full.f32(), wanted, transformer.model.config.V);
        ops.download(found.data(), likeliest.data, size_t(wanted) * sizeof(Token));
    } else {
        transformer.forward(*whole, more, rows.data(), wanted);
    }
    expect_rows();
}

// What follows the last of ids and each guess.
void Watch::verify(const std::vector<Token>& guesses, bool greedy) {
    std::vector<Token> tokens = {ids.back()};
    tokens.insert(tokens.end(), guesses.begin(), guesses.end());
    Singly singly(transformer);
    auto start = std::chrono::steady_clock::now();
    feed_whole(tokens, int(tokens.size()), greedy);
    drafting.add_verification(int(tokens.size()), seconds_since(start));
}

// The token that the full cache draws from its prediction number `at`.
Token Watch::next(Sampler& sampler, size_t at) {
    size_t V = size_t(transformer.model.config.V);
    if (!sampler.takes_likeliest()) return pick(sampler, {rows.data() + at * V, V}, *whole);
    if (found[at] < 0) throw Error(why_not_finite(transformer.model, *whole));
    return found[at];
}

Generated Watch::generate_exact(Sampler& sampler, std::span<const Token> prompt, int limit,
                                std::span<const Token> ends,
                                const std::function<bool(Token)>& sink) {
    bool greedy = sampler.takes_likeliest();
    make_verified(greedy);
    int context = std::min(cache.capacity, transformer.context);
    Generated made{Stop::Limit, int(prompt.size()), 0, 0, 0};

    auto start = std::chrono::steady_clock::now();
    catch_up(int(ids.size()));
    transformer.forward(cache, prompt, nullptr, 0);
    feed_whole(prompt, 1, greedy);
    ids.insert(ids.end(), prompt.begin(), prompt.end());
    made.prompt_seconds = seconds_since(start);

    start = std::chrono::steady_clock::now();
    std::vector<Token> guesses;
    size_t at = 0;    // prediction of what follows ids; guesses[at], if there, is what was drafted
    bool more = true;
    while (more && made.tokens < limit) {
        Token drawn = next(sampler, at);
        if (int(ids.size()) == context) made.why = Stop::Full;
        if (int(ids.size()) < context && std::count(ends.begin(), ends.end(), drawn))
            made.why = Stop::EndOfText;
        if (made.why != Stop::Limit) break;
        made.tokens++, drafting.given++;
        more = sink(drawn);
        ids.push_back(drawn);

        bool foreseen = at < guesses.size() && guesses[at] == drawn;
        drafting.accepted += foreseen;
        drafting.rejected += !foreseen && at < guesses.size();
        if (!foreseen) {    // both caches as if nothing behind ids had been drafted
            whole->used = std::min(whole->used, int(ids.size()) - 1);
            cache.used = std::min(cache.used, int(ids.size()) - 1);
        }
        at++;
        if (foreseen || !more || made.tokens == limit) continue;
        int most = std::min({suggested(), context - int(ids.size()), limit - made.tokens - 1});
        guesses = draft(sampler, most, ends);
        verify(guesses, greedy);
        at = 0;
    }
    if (!more) made.why = Stop::Asked;

    // All that was given out is in both caches, and nothing else.
    whole->used = std::min(whole->used, int(ids.size()));
    cache.used = std::min(cache.used, int(ids.size()));
    Singly singly(transformer);
    std::span<const Token> all = ids;
    if (size_t(whole->used) < ids.size())
        transformer.forward(*whole, all.subspan(size_t(whole->used)), nullptr, 0);
    if (size_t(cache.used) < ids.size())
        transformer.forward(cache, all.subspan(size_t(cache.used)), nullptr, 0);
    lose_rows();    // all that was given out was verified before
    made.seconds = seconds_since(start);
    return made;
}

}  // namespace stief
