// What --resume reads: finished layers in the folder OUT.partial, each written atomically with the
// key of the run (its options, model and text). Layers do not depend on one another, so that a
// resumed run gives the bases of an uninterrupted one to the last bit.
//
//     layers.N: "stief-partial 2\n", key (u64), hash of the rest (u64), doubles in the order in which
//     partial.cpp visits a LayerBases
#pragma once
#include <string>

#include "calibrate/layer_bases.h"

namespace stief {

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
