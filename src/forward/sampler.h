// One token from a row of logits. The filters, in transformers' order: temperature, top-k, top-p, min-p.
// Of what they leave the token with the largest z/T + g is drawn, g Gumbel noise of the draw's number
// and the token's id alone: two models that agree on a distribution draw the same token, and where
// they differ by a total variation of δ, another one with a probability of at most 2δ / (1 + δ)
// (Daliri, Musco and Suresh 2025, Coupling without Communication). That is what lets a draft guess
// what is going to be drawn (exact.cpp).
#pragma once
#include <span>
#include <vector>

#include "base/random.h"
#include "formats/tokenizer.h"
#include "model/sampling.h"

namespace stief {

struct Sampler {
    Sampling sampling;
    uint64_t seed;
    Random random;
    std::vector<bool> drawable;    // by id; empty: every id. A padded embedding has ids without token

    Sampler(const Sampling& how, uint64_t start) : sampling(how), seed(start), random(start) {}

    // Whether the most likely token is all that is asked for: a device may keep its logits.
    bool takes_likeliest() const { return sampling.takes_likeliest() && drawable.empty(); }
    // NotFinite where a logit is NaN; logits is used as scratch.
    // A draw is one number of `random`, or none where it is greedy.
    Token pick(std::span<float> logits);

  private:
    struct Candidate {
        float logit;
        Token id;
    };
    std::vector<Candidate> candidates;
};

}  // namespace stief
