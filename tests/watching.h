// Models small enough to be watched many times over, and caches that lose something of them.
#pragma once
#include "forward/watch.h"
#include "backends.h"
#include "tiny_model.h"

namespace stief::testing {

inline const TinyModel MODELS[] = {
    {"f32", 2, 32, 48, 64, 4, 2, 8, DType::F32, true, false, 0.6},
    {"bf16, widths of no vector", 2, 36, 52, 67, 3, 1, 12, DType::BF16, false, false, 0.5},
};

inline Bases crude(const Config& config, int rank) {
    Bases bases = Bases::identity(config, rank);
    bases.sinks = 1, bases.recent = 2;
    return bases;
}

inline std::vector<Token> some_ids(int n, int V, uint64_t seed) {
    Random random(seed);
    std::vector<Token> ids;
    for (int i = 0; i < n; i++) ids.push_back(Token(random.below(uint64_t(V))));
    return ids;
}

}  // namespace stief::testing
