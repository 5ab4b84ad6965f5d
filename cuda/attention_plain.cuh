// Attention of a few query rows over tiles of keys, all of it in f32 on CUDA cores: exact, any head
// width, any element type. Decode and prefill both use it where tensor cores do not serve.
//
// After every tile, for each query row: max = max s, sum = Σ 2^(s − max), acc = Σ 2^(s − max) ṽ
// over the keys seen. Half a warp has one query row: its lanes are the tile's keys in the scores,
// and every sixteenth coordinate of the values. With an exact window positions are taken in three
// stretches, as src/backend/cpu/attention_tiles.cpp says.
#pragma once
#include "attention.cuh"

namespace stief {

constexpr int PLAIN_ROWS = 16, PLAIN_KEYS = 16, PLAIN_BLOCK = PLAIN_ROWS * PLAIN_KEYS;
constexpr int PLAIN_WIDTH = CudaBackend::WIDEST_HEAD;

enum class Seen { Exact, Cut, Either };

// Reductions over the 16 lanes of a row.
__device__ __forceinline__ float row_max(float x) {
    for (int mask = 8; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
    for (int mask = 8; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}

// The queries of one kv head: row i is head i % m of token i / m, or more heads of one token.
template <class E>
struct PlainTile {
    CacheView cache;
    CacheRows k, v;
    const float* rotation;
    int row, lane;                       // this thread's
    int token;                           // position of the row's token
    float *q, *keys, *latent, *p, *cut;  // shared: (ROWS, d), (KEYS, d+1) twice, (ROWS, KEYS) twice
    float max = -INFINITY, sum = 0, acc[PLAIN_WIDTH / 16] = {};

    static size_t shared_bytes(int d) {
        int keys = 2 * PLAIN_KEYS * (d + 1) + 2 * PLAIN_ROWS * PLAIN_KEYS;
        int turning = PLAIN_KEYS * (d + 1) + 8 * PLAIN_BLOCK;  // while queries become latent
        return sizeof(float) * size_t(PLAIN_ROWS * d + std::max(keys, turning));
    }
    __device__ PlainTile(const CacheView& view, int g, const float* angles)
        : cache(view), k(view.k(g)), v(view.v(g)), rotation(angles) {
        row = int(threadIdx.x) / 16, lane = int(threadIdx.x) % 16;
        q = reinterpret_cast<float*>(dynamic_shared());
        keys = q + PLAIN_ROWS * cache.d;
        latent = keys + PLAIN_KEYS * (cache.d + 1);
        p = latent + PLAIN_KEYS * (cache.d + 1);
        cut = p + PLAIN_ROWS * PLAIN_KEYS;
    }

    // to (KEYS, d + 1) ← rows of the cache; those beyond count are zero. Returns their width.
    __device__ int load(float* to, const CacheRows& head, bool exact, int first, int count) {
        exact = exact && head.exact;
        int width = exact ? cache.d : head.r;
        __syncthreads();  // what is there was read
        const E* from = row < count ? row_of<E>(cache, head, exact, first + row) : nullptr;
        for (int j = lane; j < width; j += 16)
            to[row * (cache.d + 1) + j] = from ? to_float(from[j]) : 0;
        __syncthreads();  // the tile is whole
        return width;
    }

    // keys (KEYS, d) ← c[:r] D[:r], rotated to their positions.
    __device__ void rebuild(int width, int first, int count) {
        int d = cache.d, half = d / 2;
        const float* angle = rotation + size_t(first + min(row, count - 1)) * size_t(d);
        const float* c = latent + row * (d + 1);
        for (int j = lane; j < half; j += 16) {
            float a = 0, b = 0;
            for (int i = 0; i < width; i++) {
                const float* D = k.decode + size_t(i) * size_t(d) + j;
                a = fmaf(c[i], D[0], a), b = fmaf(c[i], D[half], b);
            }
            keys[row * (d + 1) + j] = a * angle[j] - b * angle[j + half];
            keys[row * (d + 1) + j + half] = b * angle[j] + a * angle[j + half];
        }
        __syncthreads();  // the keys are whole
    }

    // This thread's row times this thread's key.
    __device__ float score(bool exact, int first, int count) {
        int width = load(cache.rotated ? keys : latent, k, exact, first, count);
        if (!cache.rotated) rebuild(width, first, count), width = cache.d;
        float s = 0;
        const float *one = q + row * cache.d, *key = keys + lane * (cache.d + 1);
        for (int i = 0; i < width; i++) s = fmaf(one[i], key[i], s);
        return s;
    }

    // acc += p ṽ, all exact or all cut.
    __device__ void add_values(const float* weights, bool exact, int first, int count) {
        int width = load(keys, v, exact, first, count);
#pragma unroll
        for (int n = 0; n < PLAIN_WIDTH / 16; n++) {
            int j = lane + 16 * n;
            if (j < width)
                for (int s = 0; s < PLAIN_KEYS; s++)
                    acc[n] =
                        fmaf(weights[row * PLAIN_KEYS + s], keys[s * (cache.d + 1) + j], acc[n]);
        }
    }

    // One tile of keys, positions first … first + count − 1.
    __device__ void add_keys(Seen seen, int first, int count) {
        float s = score(seen != Seen::Cut, first, count);
        bool near = token - (first + lane) < cache.recent;  // beyond the sinks: seen exactly
        if (seen == Seen::Either && k.exact) {
            float truncated = score(false, first, count);
            if (!near) s = truncated;
        }
        if (lane >= count || first + lane > token) s = -INFINITY;
        float most = fmaxf(max, row_max(s)), keep = max == most ? 1 : exp2f(max - most);
        float weight = s == -INFINITY ? 0 : exp2f(s - most);
        max = most, sum = sum * keep + row_sum(weight);
#pragma unroll
        for (int n = 0; n < PLAIN_WIDTH / 16; n++) acc[n] *= keep;

        bool either = seen == Seen::Either && v.exact;
        // The last tile's weights were read before the barriers of load().
        p[row * PLAIN_KEYS + lane] = either && !near ? 0 : weight;
        cut[row * PLAIN_KEYS + lane] = near ? 0 : weight;
        add_values(p, seen != Seen::Cut, first, count);
        if (either) add_values(cut, false, first, count);
    }

    __device__ void stretch(Seen seen, int first, int end) {
        for (; first < end; first += PLAIN_KEYS)
            add_keys(seen, first, min(PLAIN_KEYS, end - first));
    }

    // Positions first … end − 1 for tokens from pos on.
    __device__ void add_range(int first, int end, int pos) {
        if (!k.exact && !v.exact) return stretch(Seen::Cut, first, end);
        int near = cache.near_begin(pos);
        stretch(Seen::Exact, first, min(end, cache.sinks));
        stretch(Seen::Cut, ::max(first, cache.sinks), min(end, near));
        stretch(Seen::Either, ::max(first, near), end);
    }
};

}  // namespace stief
