// What prices are means over (README §6): keys and values of a model on a text, and what the model's
// own prediction asks of each, by how far away the queries are that ask.
#pragma once
#include "calibrate/model_backward.h"
#include "calibrate/units.h"

namespace stief {

// The ages of a cache: tokens younger than recent are whole; ages[0] is where the first format ends
// and the next begins; the last has no end.
struct Ages {
    int recent = 0;
    std::vector<int> end;

    size_t count() const { return end.size() + 1; }
    bool split() const { return recent > 0 || !end.empty(); }
    std::vector<int> begins() const {  // (count)
        std::vector<int> at = {recent};
        at.insert(at.end(), end.begin(), end.end());
        return at;
    }
};

// Keys or values of every unit and their gradients, token by token; the first tokens of a sequence,
// which the cache keeps exactly, are left out.
struct PriceSamples {
    Units units;
    size_t tokens, ages;
    bool split;        // of g there is one part for each age beside the whole
    Activations data;  // (units, 2 + ages or 2, tokens, width)  k, g, g of each age

    PriceSamples(const Units& units, size_t tokens, const Ages& ages, const std::string& folder);
    float* k(size_t unit) const { return row(unit, 0); }
    float* g(size_t unit) const { return row(unit, 1); }  // of queries at any distance
    float* g_of_age(size_t unit, size_t age) const { return row(unit, split ? 2 + age : 1); }
    // Σ over the ages: of all queries that find a token compressed.
    std::vector<float> g_compressed(size_t unit) const;

  private:
    float* row(size_t unit, size_t i) const {
        return data.data + tokens * (units.first(unit) * (split ? 2 + ages : 2) + i * units.width(unit));
    }
};

// One way back through the model for each sequence, at these cuts.
PriceSamples collect_samples(ModelBackward& model, const Units& units, const Sequences& sequences,
                             const std::vector<LayerCuts>& cuts, int sinks, const Ages& ages,
                             uint64_t seed, const std::string& folder,
                             const std::function<void()>& progress);

}  // namespace stief
