// The bases of the low-rank cache: for every layer and kv head an invertible change of coordinates
// of its keys and of its values, and how many of the new coordinates are kept.
//
//     c = k E   encode, most important coordinate first          E = S Q   (d, d)
//     k ≈ c[:r] D[:r]   keep the first r                         D = E⁻¹   (d, d)
//
// A bases file is a safetensors file with, for each layer l and side s in {k, v},
//     layers.l.s.q   layers.l.s.encode   layers.l.s.decode       (G, d, d) f32
// and metadata: format "stief-bases", version, the model's fingerprint, ranks_k and ranks_v (JSON,
// [[r of each head] of each layer]), keys ("pre" or "post" for each layer), window, and what
// calibrate measured. Loading checks every shape, QᵀQ = I, E D = I, the ranks and the fingerprint.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/config.h"

namespace stief {

struct HeadBasis {
    int r = 0;                             // coordinates kept: a multiple of 4, 0 … d
    std::vector<float> q, encode, decode;  // (d, d)
};

struct LayerBasis {
    bool rotated = true;          // keys are stored after rotation ("post")
    std::vector<HeadBasis> k, v;  // (G)
};

struct Bases {
    std::vector<LayerBasis> layer;  // (L)
    int sinks = 4, recent = 64;     // the exact window: first and most recent tokens
    std::map<std::string, std::string> metadata;

    // E = D = I and the same rank everywhere: at full rank the plain cache.
    static Bases identity(const Config& config, int rank);
    // Error where the file is damaged or belongs to another model (fingerprint).
    static Bases open(const std::string& path, const Config& config, uint64_t fingerprint);
    void save(const std::string& path, uint64_t fingerprint) const;

    size_t coordinates_per_token() const;  // Σ r: what a position outside the window keeps
    uint64_t hash(uint64_t seed) const;    // of all that decides what a row means
};

}  // namespace stief
