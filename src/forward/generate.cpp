#include "forward/generate.h"

#include <algorithm>
#include <chrono>

namespace stief {

static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Generated generate(Transformer& transformer, KvCache& cache, Sampler& sampler,
                   std::span<const Token> prompt, int limit, std::span<const Token> ends,
                   const std::function<bool(Token)>& sink) {
    check(!prompt.empty(), "nothing to continue: the prompt has no tokens");
    const Config& config = transformer.model.config;
    int context = std::min(cache.capacity, transformer.context);
    // Greedy: the most likely token alone comes back from a device, where any of them may be drawn.
    bool greedy = (sampler.sampling.greedy || sampler.sampling.temperature == 0) &&
                  sampler.drawable.empty();
    std::vector<float> logits(greedy ? 0 : size_t(config.V));
    auto feed = [&](std::span<const Token> ids) {
        if (greedy) transformer.forward_greedy(cache, ids);
        else transformer.forward(cache, ids, logits.data(), 1);
    };
    Generated result{Stop::Limit, int(prompt.size()), 0, 0, 0};

    auto start = std::chrono::steady_clock::now();
    feed(prompt);
    result.prompt_seconds = seconds_since(start);

    start = std::chrono::steady_clock::now();
    while (result.tokens < limit) {
        Token next = greedy ? transformer.greedy() : sampler.pick(logits);
        bool end = std::count(ends.begin(), ends.end(), next) > 0;
        if (cache.used == context) {
            result.why = Stop::Full;
            break;
        }
        if (end) {
            result.why = Stop::EndOfText;
            break;
        }
        result.tokens++;
        bool more = sink(next);
        feed({&next, 1});
        if (!more) {
            result.why = Stop::Asked;
            break;
        }
    }
    result.seconds = seconds_since(start);
    return result;
}

}  // namespace stief
