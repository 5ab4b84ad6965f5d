// Tiles of keys and values as the products of attention_tiles.cpp take them. They come out of their rows
// once for all queries of a batch: codes are taken apart, keys stored before rotation are rebuilt and
// turned, and keys after rotation that are less R_s μ (cache_layer.h) are rebuilt and get it back. What
// is left of a format in such a tile is how many coordinates it has.
#pragma once
#include "backend/cpu/rebuilt_keys.h"

namespace stief {

struct KeyTile {
    int stretch;        // of the head's Seen
    int first, count;   // positions, count <= KeyTiles::KEYS
};

struct KeyTiles {
    static constexpr int KEYS = RebuiltKeys::BLOCK;

    const CpuBackend& cpu;
    const CacheLayer& cache;
    const float* rotation;
    bool pairs;                     // panels in bf16
    size_t key_bytes, value_bytes;  // of one tile's panels

    KeyTiles(const CpuBackend& backend, const CacheLayer& layer, const float* turns);

    // The tiles of all that the tokens at pos … last see of kv head g, in the order of stretches.
    std::vector<KeyTile> of(size_t g, int pos, int last) const;

    // Whether keys of head g come as they are: met by q itself. Else in the rows' coordinates.
    bool plain(size_t g) const { return !cache.rotated || cache.less_turned_mean(g); }
    size_t key_width(size_t g, const KeyTile& tile) const;
    size_t value_width(size_t g, const KeyTile& tile) const { return size_t(values(g, tile).format.kept()); }

    // panel ← panels of `lanes` keys each, zero beyond `count` as far as lanes go   (·, key_width, lanes)
    void expand_keys(char* panel, size_t g, const KeyTile& tile) const;
    // panel, pairs ← panels of `lanes` coordinates each, of KEYS positions, zero from `count` on as far as
    // PAIRS_K goes; else rows (count, value_stride) f32, which are a panel for each `lanes` columns.
    void expand_values(char* panel, size_t g, const KeyTile& tile) const;
    size_t value_stride() const;    // columns, filled up to whole panels

  private:
    const Stretch& seen(size_t g, const KeyTile& tile) const {
        return cache.seen[g].stretch[tile.stretch];
    }
    const RowStore& keys(size_t g, const KeyTile& tile) const {
        return cache.k[g].store[seen(g, tile).k];
    }
    const RowStore& values(size_t g, const KeyTile& tile) const {
        return cache.v[g].store[seen(g, tile).v];
    }
    void rebuild(float* rows, char* scratch, size_t g, const KeyTile& tile) const;
};

}  // namespace stief
