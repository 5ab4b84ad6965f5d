// What prices are means over (README §6): keys and values of a model on a text, and what the model's
// own prediction asks of each, by how far away the queries are that ask.
#pragma once
#include "calibrate/model_backward.h"
#include "calibrate/units.h"

namespace stief {

// Keys or values of every unit and their gradients, token by token, keys as they are before rotation;
// the first tokens of a sequence, which the cache keeps whole, are left out.
struct PriceSamples {
    Units units;
    size_t tokens, ages;
    Activations data;  // (units, 1 + ages, tokens, width)  k, g of each age
    // (tokens, 2, d/2)  by which keys, and what is asked of them, are rotated where they are stored so:
    // the angles of a position of the context that is drawn for each token
    std::vector<float> turns;

    PriceSamples(const Units& units, size_t tokens, size_t ages, const std::string& folder);
    float* k(size_t unit) const { return row(unit, 0); }
    float* g_of_age(size_t unit, size_t age) const { return row(unit, 1 + age); }
    // Σ over the ages: of all queries that find a token compressed.
    std::vector<float> g_compressed(size_t unit) const;

  private:
    float* row(size_t unit, size_t i) const {
        return data.data + tokens * (units.first(unit) * (1 + ages) + i * units.width(unit));
    }
};

// One way back through the uncut model for each sequence, split by the pass' ages. rotated: the first
// layer's keys are to be stored after rotation.
PriceSamples collect_samples(ModelBackward& model, const Units& units, const Sequences& sequences,
                             bool rotated, int sinks, uint64_t seed, const std::string& folder,
                             const std::function<void()>& progress);

}  // namespace stief
