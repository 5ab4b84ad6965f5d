// What --resume reads: finished layers in the folder OUT.partial, each written atomically with the
// key of the run (its options, model and text). Layers do not depend on one another, so that a
// resumed run gives the bases of an uninterrupted one to the last bit.
//
//     run:      "stief-partial 1\n": this folder is ours; locked (flock) by the run that works in it
//     layers.N: "stief-partial 3\n", key (u64), hash of the rest (u64), doubles in the order in which
//     partial.cpp visits a LearnedLayer; N: the layer, and L more once it has descended
#pragma once
#include <string>

#include "calibrate/learned_layer.h"

namespace stief {

struct Partial {
    std::string output, folder;
    uint64_t key = 0;                                        // of the run, from begin() on

    // Makes the folder and locks it. Error where it cannot be written, is not one that a run made,
    // or another run works in it; a run that died holds no lock.
    explicit Partial(const std::string& output);
    ~Partial();                                              // an empty folder is not left behind
    Partial(const Partial&) = delete;

    // Without resume removes the layers that an earlier run left.
    void begin(uint64_t run, bool resume);
    // False: not there. Error where the layer is damaged or of another run.
    bool load(int n, const Config& config, LearnedLayer& bases) const;
    void save(int n, const LearnedLayer& bases) const;
    // At the end: what this program wrote there, and the folder if nothing else is in it.
    void remove();

  private:
    int lock = -1;
    std::string path(int n) const;
    void remove_own(bool all) const;               // all: the marker and the folder too
};

}  // namespace stief
