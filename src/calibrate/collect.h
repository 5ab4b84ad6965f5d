// The inputs and outputs of the layer at hand on what calibration reads.
#pragma once
#include <string>
#include <vector>

#include "calibrate/layer_loss.h"
#include "calibrate/texts.h"

namespace stief {

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
