// Decode attention: out_h = softmax(q_h Kᵀ / √d) V, one query row per head. Positions are split
// over blocks and merged by their running max and sum (Dao et al. 2023, Flash-Decoding). Twin:
// src/backend/cpu/attention.cpp.
#include "attention_plain.cuh"
#include "dispatch.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid (G · chunks of 16 query heads, splits), block 256. Shared: queries, a tile of keys, as
// PlainTile says. Reads K and V once for each chunk: S·G·(r_K + r_V)·size bytes. Not bound by them
// but by reads of shared memory, one for each multiplication.
template <class E>
__global__ void __launch_bounds__(PLAIN_BLOCK, 2)
    attend_one_plain(Partial partials, CacheView cache, const float* q, const float* rotation,
                     const int* pos, int chunks) {
    int g = int(blockIdx.x) / chunks, m = cache.H / cache.G, d = cache.d;
    int h0 = int(blockIdx.x) % chunks * PLAIN_ROWS, R = min(PLAIN_ROWS, m - h0);
    let_next_begin();
    await_kernels();
    int S = *pos + 1;
    Share share(S, int(blockIdx.y), int(gridDim.y), PLAIN_KEYS);
    PlainTile<E> tile(cache, g, rotation);
    tile.token = S - 1;

    float scale = LOG2_E / sqrtf(float(d));
    for (int i = int(threadIdx.x); i < PLAIN_ROWS * d; i += PLAIN_BLOCK)
        tile.q[i] = i < R * d ? scale * q[size_t(g * m + h0) * size_t(d) + size_t(i)] : 0;
    // Its first barrier orders q.
    tile.add_range(cache.seen(g), share.first, share.end, S - 1, S - 1);

    if (tile.row >= R) return;
    float* to = partials.of(int(blockIdx.y), g * m + h0 + tile.row);
    if (tile.lane == 0) to[0] = tile.max, to[1] = tile.sum;
    int width = tile.v.width;
#pragma unroll
    for (int n = 0; n < PLAIN_WIDTH / 16; n++)
        if (tile.lane + 16 * n < width) to[2 + tile.lane + 16 * n] = tile.acc[n];
}

constexpr int MERGE_BLOCK = 256, MERGE_PIECE = 64;  // threads; columns of out of one block

// out_h ← (Σ_i 2^(max_i − max) acc_i) D / Σ_i 2^(max_i − max) sum_i over the splits.
// grid (H, pieces of columns), block 256: a second launch, which decodes besides, so that a step of
// one token has three: append, attention, this. Shared: weights, the merged values, the slices'
// sums. Reads the partials, and D once for each query head: from the second cache, as they are
// small. Its time is that of two or three dependent reads.
__global__ void __launch_bounds__(MERGE_BLOCK)
    merge_kernel(float* out, Partial partials, CacheView cache, int splits) {
    int h = int(blockIdx.x), d = cache.d, tid = int(threadIdx.x);
    const CacheRows& head = cache.v(h / (cache.H / cache.G));
    int width = head.width, column = int(blockIdx.y) * MERGE_PIECE;
    int n = min(MERGE_PIECE, d - column);
    float* merged = reinterpret_cast<float*>(dynamic_shared());  // (d)
    float *decoded = merged + d, *sums = decoded + MERGE_PIECE, *weight = sums + MERGE_BLOCK;
    for (int i = tid; head.decode && i < width; i += MERGE_BLOCK)
        for (int j = 0; j < n; j += 32) prefetch_line(head.decode + i * d + column + j);
    let_next_begin();
    await_kernels();

    float most = -INFINITY, sum = 0;
    for (int i = tid; i < splits; i += MERGE_BLOCK) most = fmaxf(most, partials.of(i, h)[0]);
    most = block_max(most, sums);
    for (int i = tid; i < splits; i += MERGE_BLOCK) {
        const float* one = partials.of(i, h);
        weight[i] = one[0] == -INFINITY ? 0 : exp2f(one[0] - most);
        sum += weight[i] * one[1];
    }
    sum = block_sum(sum, sums);  // its barriers order weight as well
    for (int j = tid; j < width; j += MERGE_BLOCK) {
        float total = 0;
#pragma unroll 8
        for (int i = 0; i < splits; i++) {  // eight loads in flight
            float part = weight[i] > 0 ? partials.of(i, h)[2 + j] : 0;
            total = fmaf(weight[i], part, total);
        }
        merged[j] = total / sum;
    }
    __syncthreads();  // merged is whole; sums is free
    if (head.decode)
        block_product<1>(decoded, 0, merged, 0, head.decode + column, size_t(d), 1, width, n, sums);
    for (int j = tid; j < n; j += MERGE_BLOCK)
        out[size_t(h) * size_t(d) + size_t(column + j)] = head.decode          ? decoded[j]
                                                          : column + j < width ? merged[column + j]
                                                                               : 0;
}

// ---- launchers ---------------------------------------------------------------------------------

Splits attend_splits_plain(CudaBackend& gpu, const float* q, const float* rotation,
                           const CacheLayer& cache, int most) {
    int chunks = (cache.H / cache.G + PLAIN_ROWS - 1) / PLAIN_ROWS, blocks = cache.G * chunks;
    Splits splits(gpu, cache, blocks, 4, PLAIN_KEYS, most);
    for_dtype(cache.dtype, [&]<class E>(E) {
        launch_ahead(attend_one_plain<E>, dim3(unsigned(blocks), unsigned(splits.count)), PLAIN_BLOCK,
               PlainTile<E>::shared_bytes(cache.d), gpu.queue, splits.partials, CacheView(cache), q,
               rotation, gpu.pos, chunks);
    });
    return splits;
}

void merge_splits(CudaBackend& gpu, float* out, const Splits& splits, const CacheLayer& cache) {
    dim3 grid(unsigned(cache.H), unsigned((cache.d + MERGE_PIECE - 1) / MERGE_PIECE));
    size_t floats = size_t(splits.count + cache.d + MERGE_PIECE + MERGE_BLOCK);
    launch_ahead(merge_kernel, grid, MERGE_BLOCK, floats * sizeof(float), gpu.queue, out,
                 splits.partials, CacheView(cache), splits.count);
}

void attend_one(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                const CacheLayer& cache) {
    bool tensor = tensor_cores(gpu, cache);
    merge_splits(gpu, out,
                 tensor && plain_rows(gpu, cache) ? attend_splits_whole(gpu, q, cache)
                 : tensor                         ? attend_splits_tensor(gpu, q, rotation, cache)
                                                  : attend_splits_plain(gpu, q, rotation, cache),
                 cache);
}

}  // namespace stief
