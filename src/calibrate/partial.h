// What --resume reads: finished layers in the folder OUT.partial, each written atomically with the
// key of the run (its options, model and text). Layers do not depend on one another, so that a
// resumed run gives the bases of an uninterrupted one to the last bit.
//
//     layers.N: "stief-partial 1\n", key (u64), hash of the rest (u64), doubles: partial.cpp's layer()
#pragma once
#include <string>

#include "calibrate/layer_bases.h"

namespace stief {

uint64_t hash_bytes(const void* bytes, size_t size,
                    uint64_t before = 0xcbf29ce484222325u);  // FNV-1a

struct Partial {
    std::string folder;
    uint64_t key;

    // Makes the folder; without resume whatever an earlier run left there is removed. Error where
    // it cannot be written, or where --resume finds layers of another run.
    Partial(const std::string& output, uint64_t run, bool resume);
    bool load(int l, const Config& config, LayerBases& bases) const;  // false: not there
    void save(int l, const LayerBases& bases) const;
    void remove() const;  // at the end

  private:
    std::string path(int l) const;
};

}  // namespace stief
