// The bases of the compressed cache: for every layer and kv head an invertible change of
// coordinates of its keys and of its values, and how the new coordinates are stored.
//
//     c = (k − μ) E   encode, most important coordinate first     E = S Q diag(1/σ)    (d, d)
//     k ≈ μ + c̃ D     c̃ = c through its format, 0 beyond          D = E⁻¹              (d, d)
//
// Q is orthonormal, S the metric, σ the spread of each coordinate (all 1 where nothing is coded), μ
// the mean, before rotation, of keys whose coordinates are coded; values have none. Keys stored after
// rotation lose it as it is turned to their position, R_s μ.
// Values of a layer may have one basis together: v is then the G heads' values one after another,
// E and D are (G·d, G·d), a row is stored once for the layer, and head g's decode is its own d
// columns of D.
//
// A token at position p sees a row s whole where s < sinks or p − s < recent, else in format[i] for
// the first i with p − s < ages[i], and in the last format beyond all ages.
//
// A bases file is a safetensors file with, for each layer l and side s in {k, v},
//     layers.l.s.q   layers.l.s.encode   layers.l.s.decode       (G, d, d) f32
//     layers.l.s.weight        (G, d) f32        (of joint values (1, G·d, G·d) and (1, G·d))
//     layers.l.k.mean          (G, d) f32
// and metadata: format "stief-bases", version 4, the model's fingerprint, formats_k and formats_v
// (JSON, [[[[coordinates at each width] of each age] of each head] of each layer]), ages (JSON),
// keys ("pre" or "post" for each layer), values ("head" or "joint" for each layer; without it head),
// window, and what calibrate measured. Version 3 had one mean for rotated keys at all positions: such
// files are refused. Version 2 has no means. Version 1 has ranks_k and ranks_v instead
// of formats ([[r of each head] of each layer]: r elements and no codes), no ages and no weights.
// Loading checks every shape,
// QᵀQ = I, E D = I, the formats and the fingerprint.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backend/row_format.h"
#include "base/linalg.h"
#include "base/random.h"
#include "formats/safetensors.h"
#include "model/config.h"

namespace stief {

constexpr size_t MOST_AGES = 4;

struct HeadBasis {
    std::vector<RowFormat> format;  // (ages + 1)  of each age, the youngest first; last: beyond all
    std::vector<float> weight;      // (d)  cost of a unit error in each coordinate, for the encoder
    std::vector<float> q, encode, decode;  // (d, d)
    std::vector<float> mean{};             // (d)  μ, before rotation; or none: 0

    size_t width() const { return weight.size(); }  // d; of joint values G·d
    // One format for all ages: r elements and no codes.
    static HeadBasis whole(int r, std::vector<float> q, std::vector<float> encode,
                           std::vector<float> decode);
};

struct Bases {
    struct Layer {
        bool rotated = true;          // keys are stored after rotation ("post")
        std::vector<HeadBasis> k, v;  // (G); v (1) where values are joint
        bool joint = false;           // one basis for the values of all heads

        size_t bytes(DType dtype) const;  // of a position beyond the window and all ages
    };
    std::vector<Layer> layer;       // (L)
    std::vector<int> ages;          // distances, ascending, all > recent; none: one format
    int sinks = 4, recent = 64;     // the whole window: first and most recent tokens
    std::map<std::string, std::string> metadata;

    // E = D = I and the same rank everywhere: at full rank the plain cache.
    static Bases identity(const Config& config, int rank);
    // Nothing learnt: a fixed rotation of every head, keys after RoPE, and codes of one width, 1 …
    // 8 bits, for each age (bits.size() == ages.size() + 1). Error where d is no multiple of 8 or beyond
    // MOST_KEPT.
    static Bases uniform(const Config& config, const std::vector<int>& ages,
                         const std::vector<int>& bits);
    // Error where the file is damaged or belongs to another model (fingerprint).
    static Bases open(const std::string& path, const Config& config, uint64_t fingerprint);
    void save(const std::string& path, uint64_t fingerprint) const;

    size_t bytes_per_token(DType dtype) const;  // Σ Layer::bytes
    size_t bytes_per_token(size_t age, DType dtype) const;  // of a token of that age
    // Bits an element of what the last of so many tokens reads: the window whole, the others each at
    // its age. (Rows of young ages take room beside those of the last age: allocated is more.)
    double bits_read(int positions, DType dtype) const;
    uint64_t hash(uint64_t seed) const;         // of all that decides what a row means
};

// Random signs and a Hadamard matrix where the width is a power of two, else any rotation.
Matrix random_rotation(size_t d, Random& random);

// What a file of bases says of its rows, of any version: for those who have no model at hand.
struct BasesFormats {
    using Side = std::vector<std::vector<std::vector<RowFormat>>>;  // (L, G, ages + 1)
    std::vector<int> ages;
    int sinks = 0, recent = 0;
    Side k, v;
    std::vector<bool> rotated, joint;  // (L)  keys are stored after rotation; values have one basis

    // Error where the metadata is no bases', or a format cannot be one of heads of width d.
    static BasesFormats of(const SafeTensors& file, const std::string& path, int G, int d);
};

}  // namespace stief
