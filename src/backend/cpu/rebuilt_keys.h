// Keys rebuilt from their latent coordinates, k̃ = μ + c[:r] D[:r]: those that are stored before
// rotation; and where many tokens meet them, without μ, those after it that are less R_s μ
// (key_tiles.h). A block of positions is rebuilt once and shared by the query group. The arithmetic is
// 2 r d a position, which no unit but a matrix unit has to spare beside the bytes of a row.
//
// On a matrix unit c and D are each a sum of two bf16, c = c₁ + c₂ (exactly: a row has at most 11
// significant bits) and D ≈ D₁ + D₂, and
//     c D ≈ c₁ D₁ + c₂ D₁ + c₁ D₂      one product of width 3r
// What is left out, of each term: D's own rest, 2⁻⁸ · 2⁻⁸, and c₂ D₂, 2⁻⁷ · 2⁻⁸. At most 2⁻¹⁴,
// an eighth of the rounding to bf16 that the backend's products of many tokens make; where
// Backend::exact asks for more, or rows are f32, the product is the f32 one. Rows of codes are
// unpacked and rounded to the cache's dtype first, 2⁻¹¹ or 2⁻⁸ beside steps of 2⁻⁷ and more.
//
// Without a matrix unit, rows of codes are multiplied as integers where the instruction set can
// (Kernels::coded_product), and unpacked for the f32 product where it cannot.
#pragma once
#include "backend/cpu/cache_rows.h"

namespace stief {

struct RebuiltKeys {
    static constexpr int BLOCK = 128;   // positions at once

    const Kernels& kernels;
    const CacheLayer& cache;
    const CacheRows& head;
    const float* mean;           // μ of keys before rotation
    int r;                       // coordinates of the oldest rows, the most of all
    bool pairs;                  // on the matrix unit: rows of at most r coordinates
    size_t width;                // 3r, filled to PAIRS_K
    char *split, *panels;        // (BLOCK, width), (d / lanes, width / 2, lanes, 2) bf16
    float* latent;               // (BLOCK, d): c as f32; in the beginning D₁ D₁ D₂ (3r, d) bf16
    char* rounded;               // (BLOCK, r) of the cache's dtype: rows of codes on their way
    const char* const* code_panel;   // (MOST_STORES): of CpuBackend::code_panels

    // Of kv head g, behind cpu.prepare_keys(layer). scratch: bytes() of them
    RebuiltKeys(const CpuBackend& cpu, const CacheLayer& layer, size_t g, char* scratch);
    static size_t bytes(const CpuBackend& cpu, const CacheLayer& layer, size_t g);

    // keys (count, d) ← μ + c̃ D, count <= BLOCK, not rotated
    void rebuild(float* keys, const Run& run) const;

  private:
    void multiply(float* keys, const Run& run) const;  // keys ← c̃ D
    const CpuBackend& cpu;
};

}  // namespace stief
