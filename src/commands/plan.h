// What a session takes, known before any of it is taken: positions, tokens of a pass, the cache's
// format, and the bytes of each part. stief inspect says it, and a Session is opened by it.
#pragma once
#include <optional>
#include <string>

#include "commands/args.h"
#include "forward/watch.h"

namespace stief {

struct Plan {
    const Config& config;
    int context = 0;                       // positions
    int batch = 0;                         // tokens of a pass, at most
    DType dtype = DType::F16;              // of the cache
    std::optional<Bases> bases = {};       // of --bases, or of --cache q8 or q4
    std::optional<WatchOptions> watch = {};    // of --risk
    std::optional<DType> reference = {};       // of a full cache beside it, to compare with

    struct Bytes {
        size_t cache, activations, reference;
        size_t logits, whole;              // of a watch; whole: rows that the backend keeps as cold ones
    };
    Bytes bytes(int positions) const;
    size_t whole_bytes(int positions) const;    // of a full cache of the same elements
    size_t brought_bytes(int positions) const;  // of a watch's whole rows, the layer that is on the device
    size_t bytes_per_token(size_t layer) const; // of a position beyond the window and all ages
};

// default_context: what --context means where it is not given; never more than the model's.
Plan plan_of(const Args& args, const Config& config, const Weights& weights, const Backend& backend,
             int default_context = 8192);

// What perplexity and risk compare with: "full", "exact" or a dtype; "": nothing.
std::string reference_name(const Args& args);

// What there is to take of.
struct Room {
    size_t own;                            // of the backend's memory
    std::optional<size_t> host;            // of the memory for cold rows, where that is another
};
Room room_of(const Backend& backend);
// Why the plan does not fit and how many positions would, for an Error; "": it fits.
std::string too_large(const Plan& plan, const Room& room);

}  // namespace stief
