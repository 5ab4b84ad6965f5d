// What calibration reads: sequences of a text, and the inputs and outputs of the layer at hand on
// them.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "calibrate/layer_loss.h"

namespace stief {

// Sequences of T tokens of a text.
struct Sequences {
    int T = 0;
    std::vector<std::vector<Token>> ids;  // (count, T)
    std::vector<int> pos;                 // (count)  position of each one's first token

    size_t count() const { return ids.size(); }
    Step step(size_t s) const { return {pos[s], T}; }
};
// Spread evenly over the text, each from a random position on: attention does not change under such an
// offset, but keys after rotation do, and their bases must serve all positions.
Sequences cut_sequences(std::span<const Token> ids, int T, size_t at_most, int context,
                        Random& random);

// out (T, D) ← the embeddings of one sequence, in the backend's memory.
void embed_sequence(Model& model, float* out, const std::vector<Token>& ids);

// (rows, D) floats, in memory or, where that is short, in a file that has no name any more.
struct Activations {
    float* data = nullptr;
    size_t bytes = 0;

    Activations(size_t floats, const std::string& folder, bool spill);
    ~Activations();
    Activations(const Activations&) = delete;
    Activations(Activations&& other) { swap(other); }
    void swap(Activations& other);
};

// The layer at hand on every sequence: X_l, and Y_l = layer(X_l) = X_{l+1}.
struct LayerInputs {
    const Sequences& learn;
    const Sequences& held_out;
    Activations x, y;            // (learn, then held out, T, D)  host
    std::vector<double> energy;  // (learn, then held out)  ‖Y_l‖², once collected

    // folder: where a file goes if the two take more than a quarter of what is available.
    LayerInputs(Model& model, const Sequences& learning, const Sequences& holding,
                const std::string& folder);
    const float* learn_x(size_t s) const { return x.data + s * each; }
    const float* learn_y(size_t s) const { return y.data + s * each; }
    const float* held_x(size_t s) const { return x.data + (learn.count() + s) * each; }
    const float* held_y(size_t s) const { return y.data + (learn.count() + s) * each; }
    double learn_energy(size_t s) const { return energy[s]; }
    double held_energy(size_t s) const { return energy[learn.count() + s]; }
    size_t floats() const { return each; }  // of one sequence
    void next() { x.swap(y); }              // on to the next layer

  private:
    size_t each;
};

// Second moments of one layer's learning sequences, by kv head: sums over tokens.
struct Moments {
    std::vector<Matrix> k, k_rotated, v;  // (G)  Σ kᵀk, Σ vᵀv
    std::vector<Matrix> q;                // (G)  Σ qᵀq of the group, after rotation
    Moments(const Config& config);
};

// Y_l of every sequence, and the moments. Error where an output is not finite.
Moments collect(LayerPass& pass, LayerInputs& inputs, int l);

}  // namespace stief
