#include "forward/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "forward/finite.h"

namespace stief {

// −ln(−ln u), u uniform in (0, 1).
static double gumbel(uint64_t draw, Token id) {
    Random one(draw + uint64_t(id) * 0xd1342543de82ef95u);
    double u = (double(one.next() >> 11) + 0.5) * 0x1p-53;
    return -std::log(-std::log(u));
}

Token Sampler::pick(std::span<float> logits) {
    for (float z : logits) if (std::isnan(z)) throw NotFinite();
    for (size_t i = 0; i < drawable.size(); i++)
        if (!drawable[i]) logits[i] = -std::numeric_limits<float>::infinity();
    if (sampling.takes_likeliest())
        return Token(std::max_element(logits.begin(), logits.end()) - logits.begin());

    candidates.clear();
    for (size_t i = 0; i < logits.size(); i++) candidates.push_back({logits[i], Token(i)});

    // Only the best can pass the filters. Without top-k, e^((z − max)/T) below 1e-12 of the largest
    // adds nothing that a double would notice; equal logits stay in the order of their ids.
    auto better = [](const Candidate& a, const Candidate& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    };
    size_t keep = candidates.size();
    if (sampling.top_k > 0) keep = std::min(keep, size_t(sampling.top_k));
    float best = *std::max_element(logits.begin(), logits.end());
    float least = best - float(28.0 * sampling.temperature);  // e^−28 ≈ 7e-13
    auto end = std::partition(candidates.begin(), candidates.end(),
                              [&](const Candidate& c) { return c.logit >= least; });
    keep = std::min(keep, size_t(end - candidates.begin()));
    std::partial_sort(candidates.begin(), candidates.begin() + ptrdiff_t(keep), end, better);

    auto weight = [&](size_t i) {
        return std::exp((double(candidates[i].logit) - best) / sampling.temperature);
    };
    double total = 0;
    for (size_t i = 0; i < keep; i++) total += weight(i);

    double mass = 0;  // top-p: the smallest prefix whose probability reaches p
    size_t kept = 0;
    while (kept < keep && (kept == 0 || mass < sampling.top_p * total)) mass += weight(kept++);
    while (kept > 1 && weight(kept - 1) < sampling.min_p) mass -= weight(--kept);

    uint64_t draw = random.next();
    size_t drawn = 0;
    double most = -std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < kept; i++) {
        const Candidate& one = candidates[i];
        double value = (double(one.logit) - best) / sampling.temperature + gumbel(draw, one.id);
        if (value > most) most = value, drawn = i;
    }
    return candidates[drawn].id;
}

}  // namespace stief
