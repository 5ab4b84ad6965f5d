// Watch::generate_exact: draft with the compressed cache, verify with the whole rows, one batch for
// all of a draft. With an agreement a of single tokens a verification gives (1 − a^{N+1}) / (1 − a)
// of them (Leviathan et al. 2023). Unlike there, nothing is drawn from a residual: draft and
// verification share the noise of each draw (sampler.h), so that a token is accepted where it is the
// very one that the full cache draws, and the same seed gives the full cache's own text.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "forward/watch.h"

namespace stief {

// The draft is as long as it is likely to be right: a / (1 − a) tokens precede the first that is not.
// At the beginning as if 8 of 9 had been.
int Watch::suggested() const {
    if (options.block) return options.block;
    double a = double(drafting.accepted + 8) / double(drafting.accepted + drafting.rejected + 9);
    return std::clamp(int(std::lround(a / (1 - a))), 1, MOST);
}

// What the compressed cache would draw next, up to `most` tokens or the first end. The last is not
// fed: it is in the cache only once it is given out.
std::vector<Token> Watch::draft(const Sampler& sampler, int most, std::span<const Token> ends) {
    Sampler ahead = sampler;    // its generator runs ahead, the sampler's own does not
    std::vector<float> logits(size_t(transformer.model.config.V));
    std::vector<Token> guesses;
    auto feed_all = [&](std::span<const Token> more) {
        transformer.singly = int(more.size()) <= transformer.model.backend->most_singly;
        transformer.forward(cache, more, logits.data(), 1);
    };
    for (int i = 0; i < most; i++) {
        if (i == 0) feed_all(std::span<const Token>(ids).subspan(size_t(cache.used)));
        else feed_all({&guesses.back(), 1});
        guesses.push_back(pick(ahead, logits, cache));
        if (std::count(ends.begin(), ends.end(), guesses.back())) break;
    }
    return guesses;
}

// rows ← the full cache's logits behind the last of ids and behind each guess.
void Watch::verify(const std::vector<Token>& guesses) {
    std::vector<Token> tokens = {ids.back()};
    tokens.insert(tokens.end(), guesses.begin(), guesses.end());
    transformer.singly = true;
    transformer.forward(*whole, tokens, rows.data(), int(tokens.size()));
    expect_rows();
    drafting.verifications++;
}

Generated Watch::generate_exact(Sampler& sampler, std::span<const Token> prompt, int limit,
                                std::span<const Token> ends,
                                const std::function<bool(Token)>& sink) {
    using Clock = std::chrono::steady_clock;
    auto seconds_since = [](Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    if (rows.empty()) make_rows();
    size_t V = size_t(transformer.model.config.V);
    int context = std::min(cache.capacity, transformer.context);
    Generated made{Stop::Limit, int(prompt.size()), 0, 0, 0};

    auto start = Clock::now();
    catch_up(int(ids.size()));
    transformer.forward(cache, prompt, nullptr, 0);
    transformer.forward(*whole, prompt, rows.data(), 1);
    ids.insert(ids.end(), prompt.begin(), prompt.end());
    expect_rows();
    made.prompt_seconds = seconds_since(start);

    start = Clock::now();
    std::vector<Token> guesses;
    size_t at = 0;    // rows[at] predicts what follows ids; guesses[at], if there, is what was drafted
    bool more = true;
    while (more && made.tokens < limit) {
        Token next = pick(sampler, {rows.data() + at * V, V}, *whole);
        if (int(ids.size()) == context) made.why = Stop::Full;
        if (int(ids.size()) < context && std::count(ends.begin(), ends.end(), next))
            made.why = Stop::EndOfText;
        if (made.why != Stop::Limit) break;
        made.tokens++, drafting.given++;
        more = sink(next);
        ids.push_back(next);

        bool foreseen = at < guesses.size() && guesses[at] == next;
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
        drafting.drafted += int(guesses.size());
        verify(guesses);
        at = 0;
    }
    if (!more) made.why = Stop::Asked;

    // All that was given out is in both caches, and nothing else.
    whole->used = std::min(whole->used, int(ids.size()));
    cache.used = std::min(cache.used, int(ids.size()));
    transformer.singly = true;
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
