// A prompt in, a stream of tokens out.
#pragma once
#include <functional>
#include <span>

#include "forward/sampler.h"
#include "forward/transformer.h"

namespace stief {

enum class Stop { EndOfText, Limit, Full, Asked };   // an end id; tokens used up; context full; the caller

struct Generated {
    Stop why;
    int prompt_tokens = 0, tokens = 0;               // tokens: new ones, the end id not counted
    double prompt_seconds = 0, seconds = 0;
};

// Feeds prompt to the cache, then adds up to `limit` tokens, each given to sink as soon as it is drawn.
// sink returns false to stop. A token that was given to sink is in the cache when this returns (so that
// the next call continues the text), also where the caller stopped; one of `ends` is neither given to
// sink nor put into the cache.
Generated generate(Transformer& transformer, KvCache& cache, Sampler& sampler,
                   std::span<const Token> prompt, int limit, std::span<const Token> ends,
                   const std::function<bool(Token)>& sink);

// The loop itself, for whatever feeds and draws.
struct TextSteps {
    std::function<void()> prompt;                    // into the cache
    std::function<Token()> draw;                     // what follows all that was fed
    std::function<void(Token)> feed;
    std::function<void()> finish;                    // may be empty
};
// room: tokens that fit behind the prompt.
Generated generate_with(const TextSteps& steps, int room, int prompt_tokens, int limit,
                        std::span<const Token> ends, const std::function<bool(Token)>& sink);

}  // namespace stief
