// What --resume reads: finished layers, or phases of the model objective, in the folder OUT.partial,
// each written atomically with the key of the run (its options, model and text). Neither depends on
// what else was done before, so that a resumed run gives the bases of an uninterrupted one to the
// last bit.
//
//     run:      "stief-partial 1\n": this folder is ours; locked (flock) by the run that works in it
//     layers.N: "stief-partial 7\n", key (u64), hash of the rest (u64), doubles in the order in which
//     partial.cpp visits a LearnedLayer; N: the layer, and L more once it has descended
//     units.N:  the same of a PricedState; N: how many phases are done
#pragma once
#include <string>

#include "calibrate/learned_layer.h"
#include "calibrate/prices.h"

namespace stief {

// The model objective between two phases.
struct PricedState {
    std::vector<PricedUnit> unit;
    std::vector<double> scale;     // (units)
    std::vector<double> foretold;  // (groups, keys and values, 2)  predicted, measured
    std::vector<size_t> budget;    // (ages)  bytes of a token
};

struct Partial {
    std::string output, folder;
    uint64_t key = 0;                                        // of the run, from begin() on

    // Makes the folder and locks it. Error where it cannot be written, is not one that a run made,
    // or another run works in it; a run that died holds no lock.
    explicit Partial(const std::string& output);
    ~Partial();                                              // an empty folder is not left behind
    Partial(const Partial&) = delete;

    // Without resume removes what an earlier run left; with it an Error where that is of another run.
    void begin(uint64_t run, bool resume);
    // False: not there. Error where the layer is damaged or of another run.
    bool load(int n, const Config& config, LearnedLayer& bases) const;
    // A signal that ends the program says from begin() on what is kept.
    void save(int n, const LearnedLayer& bases) const;
    // How many phases are done, 0 for none, and the state after the last of them.
    int load(PricedState& state) const;
    void save(int phases, const PricedState& state) const;
    // At the end: what this program wrote there, and the folder if nothing else is in it.
    void remove();

  private:
    int lock = -1;
    std::string path(const char* what, int n) const;
    void write_numbers(const std::string& path, const std::vector<double>& numbers) const;
    std::vector<double> read_numbers(const std::string& path) const;
    std::string some_state() const;                // one file of layers or units, or ""
    void say_what_is_kept() const;
    void remove_own(bool all) const;               // all: the marker and the folder too
};

}  // namespace stief
