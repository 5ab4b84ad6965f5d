// What prices are means over (README §6): keys and values of a model on a text, and what the model's
// own prediction asks of each, by how far away the queries are that ask.
#pragma once
#include "calibrate/model_backward.h"

namespace stief {

// Keys or values of every head of every layer and their gradients, token by token; the first
// tokens of a sequence, which the cache keeps exactly, are left out.
struct PriceSamples {
    size_t units, tokens, d, ages;
    bool split;        // of g there is one part for each age beside the whole
    Activations data;  // (units, 2 + ages or 2, tokens, d)  k, g, g of each age

    // distances: of LayerPass::split_by_distance, how many.
    PriceSamples(const Config& config, size_t tokens, size_t distances, const std::string& folder);
    float* k(size_t unit) const { return row(unit, 0); }
    float* g(size_t unit) const { return row(unit, 1); }  // of queries at any distance
    float* g_of_age(size_t unit, size_t age) const { return row(unit, split ? 2 + age : 1); }
    // Σ over the ages: of all queries that find a token compressed.
    std::vector<float> g_compressed(size_t unit) const;

  private:
    float* row(size_t unit, size_t i) const {
        return data.data + (unit * (split ? 2 + ages : 2) + i) * tokens * d;
    }
};
inline size_t unit_of(const Config& c, int l, int g, bool values) {
    return (size_t(l) * size_t(c.G) + size_t(g)) * 2 + values;
}

// One way back through the model for each sequence, at these cuts and the pass' ages.
PriceSamples collect_samples(ModelBackward& model, const Sequences& sequences,
                             const std::vector<LayerCuts>& cuts, int sinks, uint64_t seed,
                             const std::string& folder, const std::function<void()>& progress);

}  // namespace stief
