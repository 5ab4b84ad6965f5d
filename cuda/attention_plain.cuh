// Attention of a few query rows over tiles of keys, all of it in f32 on CUDA cores: exact, any head
// width, any element type. Decode and prefill both use it where tensor cores do not serve.
//
// After every tile, for each query row: max = max s, sum = Σ 2^(s − max), acc = Σ 2^(s − max) ṽ
// over the keys seen. Half a warp has one query row: its lanes are the tile's keys in the scores,
// and every sixteenth coordinate of the values. A key may lie in one format for some tokens and in
// another for others: a tile goes over every stretch that any of them sees, and of each a row takes
// the keys of its own band.
#pragma once
#include "attention.cuh"
#include "coded_rows.cuh"

namespace stief {

constexpr int PLAIN_ROWS = 16, PLAIN_KEYS = 16, PLAIN_BLOCK = PLAIN_ROWS * PLAIN_KEYS;
constexpr int PLAIN_WIDTH = CudaBackend::WIDEST_HEAD;

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
    const CacheRows &k, &v;
    const float* rotation;
    int row, lane;                       // this thread's
    int token;                           // position of the row's token
    float *q, *keys, *latent, *p;        // shared: (ROWS, d), (KEYS, d+1) twice, (ROWS, KEYS)
    float max = -INFINITY, sum = 0, acc[PLAIN_WIDTH / 16] = {};

    static size_t shared_bytes(int d) {
        int keys = 2 * PLAIN_KEYS * (d + 1) + PLAIN_ROWS * PLAIN_KEYS;
        return sizeof(float) * size_t(PLAIN_ROWS * d + keys);
    }
    __device__ PlainTile(const CacheView& view, int g, const float* angles)
        : cache(view), k(view.k(g)), v(view.v(g)), rotation(angles) {
        row = int(threadIdx.x) / 16, lane = int(threadIdx.x) % 16;
        q = reinterpret_cast<float*>(dynamic_shared());
        keys = q + PLAIN_ROWS * cache.d;
        latent = keys + PLAIN_KEYS * (cache.d + 1);
        p = latent + PLAIN_KEYS * (cache.d + 1);
    }

    // to (KEYS, d + 1) ← rows of the cache, d coordinates of them at most, from `column` on; those beyond
    // count are zero. Returns how many.
    __device__ int load(float* to, const RowStore& store, int first, int count, int column = 0) {
        __syncthreads();  // what is there was read
        int columns = min(kept_of(store.format) - column, cache.d);
        float* mine = to + row * (cache.d + 1);
        if (row < count)
            unpack_row<E>(mine, store, row_at(store, first + row), column, columns, lane, 16);
        else
            for (int j = lane; j < columns; j += 16) mine[j] = 0;
        __syncthreads();  // the tile is whole
        return columns;
    }

    // keys (KEYS, d) ← μ + c[:r] D[:r], rotated to their positions.
    __device__ void rebuild(int width, int first, int count) {
        int d = cache.d, half = d / 2;
        const float* angle = rotation + size_t(first + min(row, count - 1)) * size_t(d);
        const float* c = latent + row * (d + 1);
        for (int j = lane; j < half; j += 16) {
            float a = k.mean ? k.mean[j] : 0, b = k.mean ? k.mean[j + half] : 0;
            for (int i = 0; i < width; i++) {
                const float* D = k.decode + size_t(i) * size_t(d) + j;
                a = fmaf(c[i], D[0], a), b = fmaf(c[i], D[half], b);
            }
            turn_pair(a, b, angle[j], angle[j + half]);
            keys[row * (d + 1) + j] = a, keys[row * (d + 1) + j + half] = b;
        }
        __syncthreads();  // the keys are whole
    }

    // keys (KEYS, d) += R_s μ E, where coded keys after rotation are less that.
    __device__ void add_turned_mean(int width, int first, int count) {
        int d = cache.d, half = d / 2;
        const float* angle = rotation + size_t(first + min(row, count - 1)) * size_t(d);
        float* turned = latent + row * (d + 1);
        for (int j = lane; j < half; j += 16) {
            float a = k.mean[j], b = k.mean[j + half];
            turn_pair(a, b, angle[j], angle[j + half]);
            turned[j] = a, turned[j + half] = b;
        }
        __syncthreads();  // the means are turned
        for (int j = lane; j < d; j += 16) {
            float key = j < width ? keys[row * (d + 1) + j] : 0;
            for (int i = 0; i < d; i++) key = fmaf(turned[i], k.encode[size_t(i) * size_t(d) + j], key);
            keys[row * (d + 1) + j] = key;
        }
        __syncthreads();  // the keys are whole
    }

    // This thread's row times this thread's key.
    __device__ float score(const RowStore& store, int first, int count) {
        int width = load(cache.rotated ? keys : latent, store, first, count);
        if (cache.rotated && k.mean && !lies_whole(store, cache.d))
            add_turned_mean(width, first, count), width = cache.d;
        if (!cache.rotated) rebuild(width, first, count), width = cache.d;
        float s = 0;
        const float *one = q + row * cache.d, *key = keys + lane * (cache.d + 1);
        for (int i = 0; i < width; i++) s = fmaf(one[i], key[i], s);
        return s;
    }

    // keys (KEYS, d) ← a head's own values c D, of a joint c, d columns of it after d.
    __device__ void gather_joint(const RowStore& store, int first, int count) {
        int d = cache.d, kept = kept_of(store.format);
        float* own = keys + row * (d + 1);
        for (int column = 0; column < kept || column == 0; column += d) {
            int columns = load(latent, store, first, count, column);
            const float* c = latent + row * (d + 1);
            for (int j = lane; j < d; j += 16) {
                const float* D = v.decode + size_t(column) * size_t(d) + j;
                float value = column ? own[j] : 0;
                for (int i = 0; i < columns; i++) value = fmaf(c[i], D[size_t(i) * size_t(d)], value);
                own[j] = value;
            }
        }
        __syncthreads();  // the values are whole
    }

    // acc += p ṽ
    __device__ void add_values(const RowStore& store, int first, int count) {
        int width = cache.d;
        if (cache.joint) gather_joint(store, first, count);
        else width = load(keys, store, first, count);
#pragma unroll
        for (int n = 0; n < PLAIN_WIDTH / 16; n++) {
            int j = lane + 16 * n;
            if (j < width)
                for (int s = 0; s < PLAIN_KEYS; s++)
                    acc[n] = fmaf(p[row * PLAIN_KEYS + s], keys[s * (cache.d + 1) + j], acc[n]);
        }
    }

    // One tile of keys, positions first … first + count − 1 of a stretch.
    __device__ void add_keys(const Stretch& one, int first, int count) {
        float s = score(k.store[one.k], first, count);
        int at = first + lane;
        if (lane >= count || at < one.begin_for(token) || at >= one.end_for(token)) s = -INFINITY;
        float most = fmaxf(max, row_max(s)), keep = max == most ? 1 : exp2f(max - most);
        float weight = s == -INFINITY ? 0 : exp2f(s - most);
        max = most, sum = sum * keep + row_sum(weight);
#pragma unroll
        for (int n = 0; n < PLAIN_WIDTH / 16; n++) acc[n] *= keep;
        // The last tile's weights were read before the barriers of load().
        p[row * PLAIN_KEYS + lane] = weight;
        add_values(v.store[one.v], first, count);
    }

    // Positions first … end − 1 for tokens pos … last.
    __device__ void add_range(const Seen& seen, int first, int end, int pos, int last) {
        for (int i = 0; i < seen.count; i++) {
            const Stretch one = seen.stretch[i];
            int until = min(end, one.end_for(last));
            for (int s = ::max(first, one.begin_for(pos)); s < until; s += PLAIN_KEYS)
                add_keys(one, s, min(PLAIN_KEYS, until - s));
        }
    }
};

}  // namespace stief
