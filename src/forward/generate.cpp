#include "forward/generate.h"

#include <algorithm>
#include <utility>

#include "base/seconds.h"
#include "forward/finite.h"

namespace stief {

Generated generate_with(const TextSteps& steps, int room, int prompt_tokens, int limit,
                        std::span<const Token> ends, const std::function<bool(Token)>& sink) {
    Generated result{Stop::Limit, prompt_tokens, 0, 0, 0};
    auto start = std::chrono::steady_clock::now();
    steps.prompt();
    result.prompt_seconds = seconds_since(start);

    start = std::chrono::steady_clock::now();
    while (result.tokens < limit) {
        if (result.tokens == room) {
            result.why = Stop::Full;
            break;
        }
        Token next = steps.draw();
        if (std::count(ends.begin(), ends.end(), next)) {
            result.why = Stop::EndOfText;
            break;
        }
        result.tokens++;
        bool more = sink(next);
        steps.feed(next);
        if (!more) {
            result.why = Stop::Asked;
            break;
        }
    }
    if (steps.finish) steps.finish();
    result.seconds = seconds_since(start);
    return result;
}

namespace {

// Greedy text on a device: the token that was found is fed before it has come home, so that the
// device does not wait for the host. One that is fed and not given out in the end is taken back.
struct Ahead {
    Transformer& transformer;
    KvCache& cache;
    int limit, end;              // tokens; positions
    int given = -1, fed = 0;     // fed: is the next token in the cache already?

    // Where all that was given out is in the cache.
    void feed_next() {
        fed = 0;
        if (!transformer.model.backend->runs_ahead || ++given >= limit || cache.used >= end) return;
        transformer.forward_next(cache);
        fed = 1;
    }
    void take_back() { cache.used -= std::exchange(fed, 0); }
    ~Ahead() { take_back(); }
};

}  // namespace

Generated generate(Transformer& transformer, KvCache& cache, Sampler& sampler,
                   std::span<const Token> prompt, int limit, std::span<const Token> ends,
                   const std::function<bool(Token)>& sink) {
    check(!prompt.empty(), "nothing to continue: the prompt has no tokens");
    // Greedy: the most likely token alone comes back from a device, where any of them may be drawn.
    bool greedy = sampler.takes_likeliest();
    // Memory of the host that a device copies to in one transfer.
    Buffer logits;
    size_t V = size_t(transformer.model.config.V);
    if (!greedy)
        logits = Buffer::cold(*transformer.model.backend, V * sizeof(float), "a row of logits", "");
    int end = std::min(cache.capacity, transformer.context);
    Ahead ahead{transformer, cache, limit, end};
    auto feed = [&](std::span<const Token> ids) {
        if (!greedy) return transformer.forward(cache, ids, logits.f32(), 1);
        if (!ahead.fed) transformer.forward_greedy(cache, ids);
        ahead.feed_next();
    };
    auto draw = [&] {
        try {
            return greedy ? transformer.greedy() : sampler.pick({logits.f32(), V});
        } catch (const NotFinite&) {
            ahead.take_back();
            throw Error(why_not_finite(transformer.model, cache));
        }
    };
    int room = end - cache.used - int(prompt.size());
    TextSteps steps{[&] { feed(prompt); }, draw, [&](Token next) { feed({&next, 1}); }, nullptr};
    return generate_with(steps, room, int(prompt.size()), limit, ends, sink);
}

}  // namespace stief
