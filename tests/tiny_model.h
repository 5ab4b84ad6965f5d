// Small checkpoints that tests write themselves: a folder with config.json and model.safetensors of
// seeded random weights, in any shape.
#pragma once
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "base/linalg.h"
#include "base/random.h"
#include "formats/safetensors.h"
#include "model/weights.h"
#include "testing.h"

namespace stief::testing {

struct TinyModel {
    const char* why;
    int L = 2, D = 32, F = 48, V = 64, H = 4, G = 2, d = 8;
    DType dtype = DType::F32;
    bool tied = true, scaled_rope = false;
    double deviation = 0.15;              // of the random weights; 0: every weight is zero
    int context = 512;
    // Keys and values of every head live in that many of its d coordinates (0: in all): keys in any
    // space of coordinates, or, as rotation leaves whole, in the first planes (j, j + d/2).
    int planted = 0;
    bool planes = false;
};

// Rows of one head (d, D) ← U Uᵀ rows, U (d, rank) orthonormal.
inline void plant(float* rows, const TinyModel& m, bool planes, uint64_t seed) {
    size_t d = size_t(m.d), D = size_t(m.D), rank = size_t(m.planted);
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    Matrix U = first_columns(qr(A).Q, rank);
    for (size_t j = 0; planes && j < rank; j++)
        for (size_t i = 0; i < d; i++) U(i, j) = i == j / 2 + j % 2 * (d / 2);
    Matrix W(d, D);
    W.data.assign(rows, rows + d * D);
    W = times(U, transposed_times(U, W));
    for (size_t i = 0; i < d * D; i++) rows[i] = float(W.data[i]);
}

inline std::vector<char> stored(const std::vector<float>& values, DType dtype) {
    std::vector<char> bytes(values.size() * size_of(dtype));
    for (size_t i = 0; i < values.size(); i++) {
        bf16 b = to_bf16(values[i]);
        f16 h = to_f16(values[i]);
        if (dtype == DType::F32) std::memcpy(&bytes[4 * i], &values[i], 4);
        if (dtype == DType::BF16) std::memcpy(&bytes[2 * i], &b, 2);
        if (dtype == DType::F16) std::memcpy(&bytes[2 * i], &h, 2);
    }
    return bytes;
}

inline std::string tiny_config(const TinyModel& m) {
    std::string rope = "\"rope_theta\": 10000.0, \"rope_scaling\": null";
    if (m.scaled_rope)
        rope = "\"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 10000.0, "
               "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
               "\"original_max_position_embeddings\": 32}";
    return format(
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
        "\"hidden_act\": \"silu\", \"num_hidden_layers\": %d, \"hidden_size\": %d, "
        "\"intermediate_size\": %d, \"vocab_size\": %d, \"num_attention_heads\": %d, "
        "\"num_key_value_heads\": %d, \"head_dim\": %d, "
        "\"rms_norm_eps\": 1e-05, \"max_position_embeddings\": %d, \"tie_word_embeddings\": %s, "
        "\"bos_token_id\": 1, \"eos_token_id\": 2, %s}",
        m.L, m.D, m.F, m.V, m.H, m.G, m.d, m.context, m.tied ? "true" : "false", rope.c_str());
}

// Writes the model into the folder.
inline void write_tiny_model(const TinyModel& m, const std::string& folder, uint64_t seed = 1) {
    Random random(seed);
    std::vector<std::vector<char>> bytes;
    std::vector<NamedTensor> tensors;
    auto add = [&](const std::string& name, const Shape& shape) {
        size_t count = 1;
        for (size_t extent : shape) count *= extent;
        std::vector<float> values(count);
        for (float& x : values) x = float((shape.size() == 1 ? 1.0 : 0.0) + m.deviation * random.normal());
        bool keys = name.ends_with("k_proj.weight");
        for (int g = 0; m.planted && g < m.G && (keys || name.ends_with("v_proj.weight")); g++)
            plant(values.data() + size_t(g) * size_t(m.d) * size_t(m.D), m, keys && m.planes,
                  seed + tensors.size() * 100 + size_t(g));
        bytes.push_back(stored(values, m.dtype));
        tensors.push_back({name, {nullptr, m.dtype, shape}});
    };
    std::ofstream(folder + "/config.json") << tiny_config(m);
    for (const NamedTensor& one : tensors_of(Config::open(folder), m.dtype))
        add(one.name, one.tensor.shape);
    for (size_t i = 0; i < tensors.size(); i++) tensors[i].tensor.data = bytes[i].data();
    write_safetensors(folder + "/model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace stief::testing
