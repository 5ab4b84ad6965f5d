// Why a model gives NaN: its weights are damaged, or a cache in f16 was too narrow for its keys and
// values. All that is asked here reads the whole cache, or a whole tensor.
#pragma once
#include <string>

#include "forward/transformer.h"

namespace stief {

// Thrown where a logit is NaN, by what does not know the cache.
struct NotFinite : Error {
    NotFinite() : Error("the model gives NaN: its weights are damaged") {}
};

bool finite(const Tensor& tensor);    // neither infinity nor NaN in it

// The first layer with a key or value above 65504, f16's largest, although its weights are finite;
// −1 where there is none. Later layers hold what attention made of that one.
int overflowing_layer(const Model& model, const KvCache& cache);

// The message for a model that gives no finite logits with this cache.
std::string why_not_finite(const Model& model, const KvCache& cache);
// Error where a row was too large for an f16 cache: attention may pass over it without a NaN.
void expect_rows_that_fit(const Model& model, const KvCache& cache);

}  // namespace stief
