// The alphabet of dimensions. Every shape comment in this project is written in these letters.
//
//   L layers         D model width     F feed-forward width   V vocabulary
//   H query heads    G kv heads        d head width           m = H / G query heads a kv head
//   T tokens in this call              S positions in the cache
//   r rank kept of a head's keys or values, 0 <= r <= d
//
// Vectors are rows; arrays are row-major with the last dimension contiguous. A product of two
// dimensions is a size_t: 128,256 tokens times 8,192 columns do not fit an int.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace stief {

using Shape = std::vector<size_t>;

std::string to_string(const Shape& shape);  // "(512, 2048)"

}  // namespace stief
