// The tensors of a Llama, bound by their names in the checkpoint, every shape checked against the
// config. Views into the mapped files; nothing is copied.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "model/config.h"

namespace stief {

struct LayerWeights {
    Tensor attn_norm;    // (D)        input_layernorm
    Tensor wq;           // (H·d, D)   self_attn.q_proj
    Tensor wk;           // (G·d, D)   self_attn.k_proj
    Tensor wv;           // (G·d, D)   self_attn.v_proj
    Tensor wo;           // (D, H·d)   self_attn.o_proj
    Tensor ffn_norm;     // (D)        post_attention_layernorm
    Tensor w_gate;       // (F, D)     mlp.gate_proj
    Tensor w_up;         // (F, D)     mlp.up_proj
    Tensor w_down;       // (D, F)     mlp.down_proj
};

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
