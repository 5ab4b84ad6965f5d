// The tensors of a Llama, bound by their names in the checkpoint, every shape checked against the
// config. Views into the mapped files; nothing is copied.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "model/config.h"

namespace stief {

// One of each weight of a layer: tensors of the checkpoint, weights of a backend, shapes.
template <class T>
struct LayerOf {
    T attn_norm;         // (D)        input_layernorm
    T wq;                // (H·d, D)   self_attn.q_proj
    T wk;                // (G·d, D)   self_attn.k_proj
    T wv;                // (G·d, D)   self_attn.v_proj
    T wo;                // (D, H·d)   self_attn.o_proj
    T ffn_norm;          // (D)        post_attention_layernorm
    T w_gate;            // (F, D)     mlp.gate_proj
    T w_up;              // (F, D)     mlp.up_proj
    T w_down;            // (D, F)     mlp.down_proj
};
using LayerWeights = LayerOf<Tensor>;

// visit(name, …) for each weight, in the order above: its name in the checkpoint, and what each of
// the layers has of it.
template <class Visit, class... Layers>
void for_each_weight(const Visit& visit, Layers&... layers) {
    visit("input_layernorm", layers.attn_norm...);
    visit("self_attn.q_proj", layers.wq...);
    visit("self_attn.k_proj", layers.wk...);
    visit("self_attn.v_proj", layers.wv...);
    visit("self_attn.o_proj", layers.wo...);
    visit("post_attention_layernorm", layers.ffn_norm...);
    visit("mlp.gate_proj", layers.w_gate...);
    visit("mlp.up_proj", layers.w_up...);
    visit("mlp.down_proj", layers.w_down...);
}

struct Weights {
    SafeTensors files;
    Tensor embedding;    // (V, D)     model.embed_tokens
    std::vector<LayerWeights> layer;
    Tensor norm;         // (D)        model.norm
    Tensor classifier;   // (V, D)     lm_head, or the embedding where they are tied

    // Error names a missing tensor, one of another shape (with both shapes), and one that no Llama
    // has. Where the embeddings are tied, an lm_head in the file must be the same as the embedding.
    static Weights open(const Config& config);

    size_t parameters() const;
    size_t bytes() const;           // of the tensors, each counted once
    // Identifies the model: a hash of the config's numbers and of samples of every tensor's bytes.
    uint64_t fingerprint(const Config& config) const;
};

// The names and shapes of all tensors that a Llama of this config has; their data are null.
std::vector<NamedTensor> tensors_of(const Config& config, DType dtype);

}  // namespace stief
