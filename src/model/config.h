// What config.json says of a Llama (Llama 3 to 3.2, SmolLM2), and generation_config.json of its end
// ids. No number that the checkpoint states appears anywhere else in the code; what the runtime
// cannot honour is refused here.
#pragma once
#include <string>
#include <vector>

#include "formats/tokenizer.h"

namespace stief {

// rope_type "llama3" (Llama 3.1): low frequencies are slowed down by factor, high ones kept, those
// in between interpolated. factor = 1: none of it ("default").
struct RopeScaling {
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
    int original_context = 0;
};

struct Config {
    std::string folder;            // where it was read, for messages
    int L = 0, D = 0, F = 0, V = 0;
    int H = 0, G = 0, d = 0;
    int context = 0;               // max_position_embeddings
    float norm_eps = 0;
    double rope_theta = 0;
    RopeScaling rope_scaling;
    bool tied_embeddings = false;  // lm_head is the embedding
    Token bos = -1;
    std::vector<Token> eos;        // every end id, of both files, without repetition

    static Config open(const std::string& folder);
};

// The d/2 angular frequencies of the rotary embedding, in double: θ_j = rope_theta^(−2j/d), scaled.
// Source: RoFormer (Su et al. 2021), eq. 15; scaling as transformers' _compute_llama3_parameters.
std::vector<double> rope_frequencies(const Config& config);

}  // namespace stief
