// The values of all heads of a layer as one row (CacheLayer::joint): on their way into the cache and out of
// it. Keys, and queries, are those of any other cache.
#pragma once
#include "attention.cuh"

namespace stief {

// v (T, G·d) into the layer's stores: c = v E, and c into all of them.
void append_joint(CudaBackend& gpu, const CacheLayer& cache, const float* v, int T);

// Of `count` vectors x_i (G·d): out_i (G·d) ← x_i E, or out_i (d) ← x_i D of the kv head that query head i
// has.
enum class JointBasis { Encode, Decode };
void joint_product(CudaBackend& gpu, float* out, const float* x, const CacheLayer& cache, JointBasis basis,
                   int count);

}  // namespace stief
