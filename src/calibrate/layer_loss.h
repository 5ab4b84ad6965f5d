// One decoder layer over one sequence with some heads' keys and values cut to their first
// coordinates: its output, the relative error of that, and the way back to the heads, README.md §2:
//
//     k̃ = k P,  P = S Q J_r Qᵀ S⁻¹        before rotation, or after it      ṽ = v P likewise
//     Ŷ = layer(X; k̃, ṽ),  Δ = ‖Y − Ŷ‖² / ‖Y‖²,  AᵀB = S (kᵀ ∂Δ/∂k̃) S⁻¹  is what stiefel.h needs
//
// Weights need no gradient, so the way back costs about as much as the way there. Sequences come
// one at a time: a mini-batch adds up their gradients, and memory is that of one sequence, on the
// backend (backend.h and backward.h); X, Y and the cuts come from the host. Of an 8B layer (D 4096,
// F 14336, H 32, G 8, d 128) over 2,048 tokens: 0.27 GiB of softmax blocks, 0.66 GiB in the MLP,
// 0.62 GiB of all else (positions' rotations and the last logits too): 1.55 GiB, which goes into 24
// GB beside 15 GiB of weights.
#pragma once
#include <algorithm>
#include <vector>

#include "backend/backward.h"
#include "backend/row_format.h"
#include "backend/staged.h"
#include "calibrate/layer_blocks.h"
#include "calibrate/warm_start.h"
#include "forward/transformer.h"

namespace stief {

// What storing a row does to it, as the cache does it: k̃ = unpack(pack(k E)) D. All empty: the head
// is not cut.
struct Cut {
    std::vector<float> encode, decode;  // (d, d) ×2  c = (k − μ) E, in order of the format
    std::vector<float> weight;          // (kept), or none: of pack_row
    std::vector<RowFormat> format;      // of each age, the youngest first; one: of all
    std::vector<float> mean{};          // (d)  μ of keys before their rotation, or none: 0
    bool lossless = true;  // E D = I: with all coordinates kept it is the row again

    bool nothing() const { return encode.empty(); }
    const RowFormat& oldest() const { return format.back(); }
};
// r elements and no codes: what is optimised is P but for their rounding. r = d: empty.
Cut cut_to_rank(const Matrix& Q, const Metric& metric, size_t r);

struct LayerCuts {
    bool rotated = false;   // keys are cut after rotation
    bool joint;             // one cut for the values of all heads, (G·d, G·d) ×2
    std::vector<Cut> k, v;  // (G); v (1) where values are joint
    int sinks = 0;          // the first tokens keep all coordinates,
    DType dtype = DType::F16;  // which, as uncoded ones, are elements of this type

    LayerCuts(const Config& config, bool after_rotation, bool joint_values = false)
        : rotated(after_rotation),
          joint(joint_values),
          k(size_t(config.G)),
          v(joint ? 1 : size_t(config.G)) {}
    const Cut& of_values(int g) const { return v[joint ? 0 : size_t(g)]; }
};

// kᵀ ∂Δ/∂k̃ and vᵀ ∂Δ/∂ṽ of each kv head; k as it is cut, before or after rotation. Of coded rows
// also c̃ᵀ ∂Δ/∂k̃ and c̃ᵀ ∂Δ/∂ṽ with c̃ what is stored. Of joint values one of each, (G·d, G·d). With
// ages: of the queries that find k̃ at one.
struct LayerGradient {
    std::vector<Matrix> k, v, stored_k, stored_v;  // (G)  (d, d)
    LayerGradient(const Config& config, bool joint_values = false);
};

struct OutputMoments;  // output_metric.h

// cos and sin of positions 0 … positions − 1, as Backend::rope reads them.
std::vector<float> rotation_table(const Config& config, int positions);

// What the way back reads of the way there, beside the layer's input and what attention makes.
struct LayerKept {
    float *q, *k, *v;       // (G, T, m, d), (G, T, d) ×2; q rotated, k not
    float *x1, *gate, *up;  // (T, D); (T, F) ×2

    // One after another from `first`, for `most` tokens; returns how many floats that is.
    size_t place(const Config& config, int most, float* first);
};

// What a pass has on the backend.
struct LayerArrays : LayerKept {
    float *k_rotated, *k_cut, *v_cut;    // (G, T, d) ×3  cut: as attention sees them
    float *latent, *centred;             // (T, d) ×2  one head's rows in its basis; less their mean
    float *heads, *att;                  // (G, T, m, d); (T, H, d)
    float *p, *dp, *part;                // (G) of blocks of rows; one block ×2
    float *xn, *h;                       // (T, D); (T, F)
    float* out;                          // (T, D)  Ŷ
    float *dy, *dxn, *dh, *dgate, *dup;  // (T, D) ×2; (T, F) ×3
    float *datt, *dheads, *dk, *dv;      // (T, H, d); (G, T, m, d); (G, T, d) ×2
    float* dkv;                          // (2, G, T, d)  of both before the cut and rotation

    size_t place(const Config& config, int most, float* first);
};

struct LayerPass : LayerArrays {
    Model& model;
    const Config& c;
    Threads& threads;
    std::unique_ptr<Backward> ops_back;
    int T;  // of the sequence at hand, ≤ most
    const float* rotation;  // host  (positions, 2, d/2)

    // rotation: for every position that begin() is given; host, and outlives the pass. Error where
    // sequences of `most` tokens do not fit, with what would.
    LayerPass(Model& owner, int most, const std::vector<float>& rotation);

    // Projects one sequence; x stays the caller's and must outlive the pass over it.
    void begin(int layer, const float* x,  // (T, D)  host
               const Step& step);
    void begin_on_backend(int layer, const float* x,  // (T, D)  the backend's
                          const Step& step);
    void forward(const LayerCuts& cuts);  // out ← Ŷ
    // From now on LayerKept is written and read there, so that a layer's is left for the way back when
    // others have run; null: in the pass's own memory, as before.
    void keep_in(const LayerKept* elsewhere);
    // As after begin_on_backend() and forward(), but for `out`. kept: LayerKept is that of this layer.
    void again(int layer, const float* x, const Step& step, const LayerCuts& cuts, bool kept);
    // The same where only kv head g differs from the last forward or change.
    void change(const LayerCuts& cuts, int g);
    double squared_error(const float* Y);  // ‖Y − Ŷ‖², Y (T, D) host
    // gradient += scale · (kᵀ ∂/∂k̃, vᵀ ∂/∂ṽ) of ‖Y − Ŷ‖², after forward with the same cuts.
    void backward(const LayerCuts& cuts, const float* Y,  // (T, D)  host
                  double scale, LayerGradient& gradient);
    // dx: in ∂/∂Ŷ, out ∂/∂x of the layer's input, all ways; after forward with these cuts. Leaves
    // ∂/∂k̃, ∂/∂ṽ in dk (before rotation unless cuts.rotated) and dv. Rounding counts as noise that
    // does not depend on x; a coordinate that is not stored passes nothing on.
    void back_to_input(const LayerCuts& cuts, float* dx);  // (T, D)
    // From now on rows have ages: queries nearer than distances[0] see them whole, those from
    // distances[i] on in format[i] of the cuts, and back_to_input also leaves the parts of dk and dv
    // that queries at that distance or more ask for: in dk_from[i] and dv_from[i], (G, T, d), like
    // dk and dv. Distances ascend; none: one format for all.
    void split_by_distance(const std::vector<int>& distances);
    size_t ages() const { return std::max<size_t>(1, distances.size()); }
    std::vector<int> distances;
    std::vector<float*> dk_from, dv_from;
    // gradient[age] += that of all heads cut by formats, after back_to_input with the same cuts.
    void add_basis_gradient(const LayerCuts& cuts, std::vector<LayerGradient>& gradient);
    // (T, G·d) ← (G, T, d) and back: rows of all heads of a token together, as joint values are.
    void together(float* to, const float* from);
    void apart(float* to, const float* from);
    // sums += what the direction u of the output asks of every key and value, after forward
    // without cuts.
    void probe(const float* u,  // (T, D)
               OutputMoments& sums);

  private:
    int l = 0, m, most;
    Step at;
    const float* x = nullptr;      // (T, D)
    const float* turns = nullptr;  // (positions, 2, d/2)  the rotation
    Buffer arena;                  // of the arrays
    LayerKept own;                 // in it
    // Rows as queries at lo … hi − 1 positions see them, who are nearer than the oldest age begins.
    struct Near {
        int lo, hi;
        float *k, *v;  // (G, T, d) ×2
    };
    std::vector<Near> near;        // the whole rows, then every age but the last
    Buffer split;                  // (distances, 4, G, T, d)  near, dk_from, dv_from
    Staged x_staged, y_staged, cut_staged, decode_staged, mean_staged, rotation_staged;
    const float *y_host = nullptr, *y = nullptr;  // what y_staged holds since begin(), and where

    void place_at(int layer, const float* x, const Step& step);
    void project();
    void rotate_keys();
    const float* target(const float* host);
    void repeat_mean(const Cut& cut, bool rotated);
    const float* less_mean(const float* from, const Cut& cut, bool rotated);
    void add_mean(float* to, const Cut& cut, bool rotated);
    void store(float* latents, const float* from, const Cut& cut, const RowFormat& format,
               const LayerCuts& cuts, int width);
    void cut_side(float* to, const float* from, const Cut& cut, const RowFormat* format,
                  const LayerCuts& cuts);
    void cut_to(float* to_k, float* to_v, const LayerCuts& cuts, int g, int age);
    void cut_head(const LayerCuts& cuts, int g);
    void cut_joint_values(const LayerCuts& cuts);
    void cut_joint_to(float* to, const LayerCuts& cuts, int age);
    void attend(const LayerCuts& cuts, int g);
    bool has_near(const LayerCuts& cuts, int g) const;
    template <class F>
    void for_near(const Block& block, const F& f);
    void add_up_values(float* to, const float* p, const Block& block, int g);
    void attend_all(const LayerCuts& cuts);
    void to_gate_and_up();
    void finish();
    void pull_back(const LayerCuts& cuts, bool queries = false);
    void back_through_mlp();
    void back_through_attention(const LayerCuts& cuts, int g, bool queries);
    void split_block(int g, const Block& block, size_t here);
    void of_age(float* to, const std::vector<float*>& from, size_t age, size_t side, size_t count);
    void back_through_cuts(float* dx, const std::vector<float*>& from, size_t side, const Cut& cut,
                           int sinks);
    void back_through_cut(float* dx, const Cut& cut, const RowFormat& format, int sinks, int width,
                          float* latents);
    void back_through_joint_values(float* dv, const LayerCuts& cuts);
    void add_joint_gradient(const LayerCuts& cuts, LayerGradient& gradient, size_t age);
    void back_through_projections(const LayerCuts& cuts);
    void to_gradient(const LayerCuts& cuts, LayerGradient& gradient);
};

}  // namespace stief
