// One token from a row of logits. The filters, in transformers' order: temperature, top-k, top-p, min-p.
#pragma once
#include <span>
#include <vector>

#include "base/random.h"
#include "model/config.h"

namespace stief {

struct Sampler {
    Sampling sampling;
    Random random;
    std::vector<bool> drawable;    // by id; empty: every id. A padded embedding has ids without token

    Sampler(const Sampling& how, uint64_t seed) : sampling(how), random(seed) {}

    // Error where a logit is NaN (a damaged checkpoint); logits is used as scratch.
    Token pick(std::span<float> logits);

  private:
    struct Candidate {
        float logit;
        Token id;
    };
    std::vector<Candidate> candidates;
};

}  // namespace stief
