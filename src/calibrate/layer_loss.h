// One decoder layer over one sequence with some heads' keys and values cut to their first
// coordinates: its output, the relative error of that, and the way back to every head:
// README §2.
//
//     k̃ = k P,  P = S Q J_r Qᵀ S⁻¹        before rotation, or after it      ṽ = v P likewise
//     Ŷ = layer(X; k̃, ṽ),  Δ = ‖Y − Ŷ‖² / ‖Y‖²,  AᵀB = S (kᵀ ∂Δ/∂k̃) S⁻¹  is what stiefel.h needs
//
// Weights need no gradient, so the way back costs about as much as the way there. Sequences come
// one at a time: a mini-batch adds up their gradients, and memory is that of one sequence. Products
// go through the backend; the elementwise parts want its memory to be the host's (the CPU backend).
#pragma once
#include <vector>

#include "backend/buffer.h"
#include "calibrate/warm_start.h"
#include "forward/transformer.h"

namespace stief {

// Pᵀ as matmul's weight; empty: the head is not cut.
struct Cut {
    std::vector<float> transposed;  // (d, d)
};
Cut cut_to_rank(const Matrix& Q, const Metric& metric, size_t r);  // r = d: empty

struct LayerCuts {
    bool rotated = false;   // keys are cut after rotation
    std::vector<Cut> k, v;  // (G)

    LayerCuts(const Config& config, bool after_rotation)
        : rotated(after_rotation), k(size_t(config.G)), v(size_t(config.G)) {}
};

// kᵀ ∂Δ/∂k̃ and vᵀ ∂Δ/∂ṽ of each kv head; k as it is cut, before or after rotation.
struct LayerGradient {
    std::vector<Matrix> k, v;  // (G)  (d, d)
    LayerGradient(const Config& config);
};

struct OutputMoments;  // output_metric.h

// cos and sin of positions 0 … positions − 1, as Backend::rope reads them.
std::vector<float> rotation_table(const Config& config, int positions);

struct LayerPass {
    Model& model;
    const Config& c;
    Threads& threads;
    int T;                         // of the sequence at hand, ≤ most
    std::vector<float> q, k, v;    // (G, T, m, d), (G, T, d) ×2; q rotated, k not
    std::vector<float> k_rotated;  // (G, T, d)
    std::vector<float> out;        // (T, D)  Ŷ

    // rotation: for every position that begin() is given.
    LayerPass(Model& owner, int most, const std::vector<float>& rotation_of);

    // Projects one sequence; x stays the caller's and must outlive the pass over it.
    void begin(int layer, const float* x,  // (T, D)
               const Step& step);
    void forward(const LayerCuts& cuts);  // out ← Ŷ
    // The same where only kv head g differs from the last forward or change.
    void change(const LayerCuts& cuts, int g);
    // gradient += scale · (kᵀ ∂/∂k̃, vᵀ ∂/∂ṽ) of ‖Y − Ŷ‖², after forward with the same cuts.
    void backward(const LayerCuts& cuts, const float* y,  // (T, D)
                  double scale, LayerGradient& gradient);
    // sums += what the direction u of the output asks of every key and value, after forward
    // without cuts.
    void probe(const float* u,  // (T, D)
               OutputMoments& sums);

  private:
    const std::vector<float>& rotation;
    int l = 0, m;
    Step at;
    const float* x = nullptr;
    std::vector<float> k_cut, v_cut;             // (G, T, d)  as attention sees them
    std::vector<float> heads, att;               // (G, T, m, d); (T, H, d)
    std::vector<float> p, dp;                    // (G) of blocks of rows; one block
    std::vector<float> xn, x1, gate, up, h;      // (T, D) ×2; (T, F) ×3
    std::vector<float> dy, dxn, dh, dgate, dup;  // (T, D) ×2; (T, F) ×3
    std::vector<float> datt, dheads, dk, dv;     // (T, H, d); (G, T, m, d); (G, T, d) ×2
    std::vector<float> turned;                   // (d, BLOCK·m), (d, T): a block, transposed
    std::vector<float> ffn_norm;                 // (D)

    void cut_head(const LayerCuts& cuts, int g);
    void attend(int g);
    void finish();
    void pull_back();
    void back_through_mlp();
    void back_through_attention(int g);
    void to_gradient(const LayerCuts& cuts, LayerGradient& gradient);
};

}  // namespace stief
