// The KV cache: for every layer and kv head the rows of keys and of values, contiguous by head. The
// plain cache has one row a position, all d coordinates. With bases a head has a store for the
// whole window (the first `sinks` tokens and the most recent ones, whole), one for each age of the
// bases, and one for all positions, the oldest format. A token is packed into all of them as it
// comes; the window and the young ages are rings of as many rows as can be seen and those of one
// batch, behind the first tokens; where those are not fewer than the cache has positions, it is no ring.
#pragma once
#include <vector>

#include "backend/buffer.h"
#include "cache/basis.h"
#include "model/config.h"

namespace stief {

struct KvCache {
    int capacity = 0;  // positions that fit
    int used = 0;      // positions that are filled: 0 … used − 1
    DType dtype = DType::F16;
    int sinks = 0, recent = 0;      // the whole window of the bases
    std::vector<int> ages;          // of the bases
    std::vector<CacheLayer> layer;  // (L)
    Buffer rows;                    // of all stores: one piece of memory
    Buffer matrices;  // encode, decode, weight of every head, f32; empty without bases
    Buffer heads;     // CacheLayer::rows and seen_rows of every layer

    // bases: null for the plain cache. batch: tokens that one pass appends at most.
    // cold: rows that are seldom read; null: they are in the backend's own memory, "": in host
    // memory, else in a file of that name (Backend::alloc_cold).
    KvCache(Backend& backend, const Config& config, int capacity, DType dtype,
            const Bases* bases = nullptr, int batch = 512, const std::string* cold = nullptr);

    size_t bytes() const { return rows.bytes + matrices.bytes + heads.bytes; }  // allocated
    size_t bytes_per_token() const;  // of a position beyond the window and all ages
    static size_t bytes_for(const Config& config, int capacity, DType dtype,
                            const Bases* bases = nullptr, int batch = 512);

    // Copies the rows of positions 0 … used − 1, head by head, to and from host memory (a saved
    // conversation).
    size_t snapshot_bytes(int positions) const;
    void save(void* host) const;                 // snapshot_bytes(used)
    void load(const void* host, int positions);  // snapshot_bytes(positions); sets used
};

}  // namespace stief
