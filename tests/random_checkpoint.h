// A checkpoint of seeded random weights for any config: for tests, and to measure speed at shapes
// whose real weights are not at hand. A tensor depends on the seed and its name, not on its
// neighbours.
#pragma once
#include <cstdint>

#include "base/tensor.h"
#include "model/config.h"

namespace stief {

struct RandomCheckpoint {
    uint64_t seed = 1;
    DType dtype = DType::BF16;
    int shards = 1;
    double std = 0;         // 0: 1 / √columns, which keeps activations, scores and logits near 1
};

// Writes model.safetensors, or shards and their index, into config.folder, in pieces of a few MB.
void write_random_checkpoint(const Config& config, const RandomCheckpoint& options = {});

}  // namespace stief
