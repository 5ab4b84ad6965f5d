#include "forward/generate.h"

#include <algorithm>
#include <chrono>

#include "forward/finite.h"

namespace stief {

static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Generated generate_with(const TextSteps& steps, int room, int prompt_tokens, int limit,
                        std::span<const Token> ends, const std::function<bool(Token)>& sink) {
    Generated result{Stop::Limit, prompt_tokens, 0, 0, 0};
    auto start = std::chrono::steady_clock::now();
    steps.prompt();
    result.prompt_seconds = seconds_since(start);

    start = std::chrono::steady_clock::now();
    while (result.tokens < limit) {
        Token next = steps.draw();
        bool end = std::count(ends.begin(), ends.end(), next) > 0;
        if (result.tokens == room) {
            result.why = Stop::Full;
            break;
        }
        if (end) {
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

Generated generate(Transformer& transformer, KvCache& cache, Sampler& sampler,
                   std::span<const Token> prompt, int limit, std::span<const Token> ends,
                   const std::function<bool(Token)>& sink) {
    check(!prompt.empty(), "nothing to continue: the prompt has no tokens");
    // Greedy: the most likely token alone comes back from a device, where any of them may be drawn.
    bool greedy = (sampler.sampling.greedy || sampler.sampling.temperature == 0) &&
                  sampler.drawable.empty();
    std::vector<float> logits(greedy ? 0 : size_t(transformer.model.config.V));
    auto feed = [&](std::span<const Token> ids) {
        if (greedy) transformer.forward_greedy(cache, ids);
        else transformer.forward(cache, ids, logits.data(), 1);
    };
    auto draw = [&] {
        try {
            return greedy ? transformer.greedy() : sampler.pick(logits);
        } catch (const NotFinite&) {
            throw Error(why_not_finite(transformer.model, cache));
        }
    };
    int room = std::min(cache.capacity, transformer.context) - cache.used - int(prompt.size());
    TextSteps steps{[&] { feed(prompt); }, draw, [&](Token next) { feed({&next, 1}); }, nullptr};
    return generate_with(steps, room, int(prompt.size()), limit, ends, sink);
}

}  // namespace stief
