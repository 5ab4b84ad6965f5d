// Decode attention: out_h = softmax(q_h Kᵀ / √d) V, one query row per head. Positions are split
// over blocks and merged by their running max and sum (Dao et al. 2023, Flash-Decoding). Twin:
// src/backend/cpu/attention.cpp.
#include "attention_merge.cuh"
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
    int width = cache.values_of(g);
#pragma unroll
    for (int n = 0; n < PLAIN_WIDTH / 16; n++)
        if (tile.lane + 16 * n < width) to[2 + tile.lane + 16 * n] = tile.acc[n];
}

constexpr int MERGE_BLOCK = 512, MERGE_PIECE = 64;  // threads; columns of out of one block
constexpr int MERGE_LOADS = 20;                     // of a thread, on their way at once

// Shared memory of a block that merges.
struct MergeLayout {
    float *basis, *sums;      // (d, MERGE_PIECE) where it is staged; of the slices, and of the product
    float *merged, *decoded;  // (d), (MERGE_PIECE)
    float* weights;           // (warps, splits)
    size_t bytes;

    __host__ __device__ __forceinline__ MergeLayout(char* memory, int d, int splits, bool staged) {
        Carve carve{memory};
        basis = carve.take<float>(staged ? d * MERGE_PIECE : 0);
        sums = carve.take<float>(product_sums(MERGE_BLOCK));
        merged = carve.take<float>(d), decoded = carve.take<float>(MERGE_PIECE);
        weights = carve.take<float>(MERGE_BLOCK / WARP * splits);
        bytes = carve.bytes;
    }
};

// out_h ← (Σ_i 2^(max_i − max) acc_i) D / Σ_i 2^(max_i − max) sum_i over the splits.
// grid (H, pieces of columns), block 512: a second launch, which decodes besides. Shared: MergeLayout, where
// the piece of D has come before attention is through. Reads the partials: from the second cache, as they are
// small. Its time is that of one read and two barriers, or four.
__global__ void __launch_bounds__(MERGE_BLOCK, 1)
    merge_kernel(float* out, Partial partials, CacheView cache, int splits, bool staged) {
    int h = int(blockIdx.x), d = cache.d, tid = int(threadIdx.x);
    const CacheRows& head = cache.v(h / (cache.H / cache.G));
    int width = cache.values_of(h / (cache.H / cache.G)), column = int(blockIdx.y) * MERGE_PIECE;
    int n = min(MERGE_PIECE, d - column);
    const float* decode = head.decode && !cache.joint ? head.decode + column : nullptr;
    MergeLayout own(dynamic_shared(), d, splits, staged);
    float *basis = own.basis, *sums = own.sums, *merged = own.merged, *decoded = own.decoded;
    float* weight = own.weights + tid / WARP * splits;
    for (int i = tid; decode && staged && i < width * n / 4; i += MERGE_BLOCK) {
        int row = i / (n / 4), four = i % (n / 4) * 4;
        copy_async_16(basis + row * MERGE_PIECE + four, decode + row * d + four, true);
    }
    copy_async_commit();
    let_next_begin();
    await_kernels();

    // A thread has a column and a slice of the splits, the same whether values are decoded or not.
    int slices = MERGE_BLOCK / d, slice = tid / d, j = tid % d;
    bool mine = slice < slices && j < width && (decode || (j >= column && j < column + n));
    size_t each = size_t(cache.H) * size_t(d + 2);
    float part[MERGE_LOADS], total = 0;
    auto load = [&](int from) {
        const float* at = partials.of(from + slice, h) + 2 + j;
#pragma unroll
        for (int i = 0; i < MERGE_LOADS; i++, at += size_t(slices) * each)
            part[i] = mine && from + slice + i * slices < splits ? *at : 0;
    };
    load(0);
    split_weights(weight, partials, splits, h);
    for (int from = 0; from < splits; from += MERGE_LOADS * slices) {
        if (from > 0) load(from);
#pragma unroll
        for (int i = 0; i < MERGE_LOADS; i++) {
            int split = from + slice + i * slices;
            float by = mine && split < splits ? weight[split] : 0;
            if (by > 0) total = fmaf(by, part[i], total);  // no keys: nobody wrote it
        }
    }
    sums[tid] = total;
    copy_async_wait<0>();
    __syncthreads();  // all slices' are there, and the basis
    for (int i = tid; i < d; i += MERGE_BLOCK) {
        float all = 0;
        for (int k = 0; k < slices; k++) all += sums[k * d + i];
        if (decode) merged[i] = all;
        else if (i >= column && i < column + n) out[size_t(h) * size_t(d) + size_t(i)] = all;
    }
    if (!decode) return;
    __syncthreads();  // merged is whole
    row_product(decoded, merged, staged ? basis : decode, size_t(staged ? MERGE_PIECE : d), width, n,
                sums);
    for (int i = tid; i < n; i += MERGE_BLOCK)
        out[size_t(h) * size_t(d) + size_t(column + i)] = decoded[i];
}

// ---- launchers ---------------------------------------------------------------------------------

int most_splits(int reach) {
    constexpr int LEAST = 64;  // positions worth a split; windows have one of their own
    return reach / LEAST + 1;
}

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
    auto bytes = [&](bool staged) { return MergeLayout(nullptr, cache.d, splits.count, staged).bytes; };
    bool staged =
        cache.v[0].decode && !cache.joint && cache.d % 4 == 0 && bytes(true) <= gpu.shared_limit;
    launch_ahead(merge_kernel, grid, MERGE_BLOCK, bytes(staged), gpu.queue, out, splits.partials,
                 CacheView(cache), splits.count, staged);
}

void attend_one(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                const CacheLayer& cache, int reach) {
    bool tensor = tensor_cores(gpu, cache);
    int most = most_splits(reach);
    if (tensor && cache.joint && joint_in_slots(cache) && tensor_splits_fit(gpu, cache) &&
        joint_fits(gpu, cache))
        return attend_joint(gpu, out, attend_scores(gpu, q, rotation, cache, most), cache, reach);
    tensor = tensor && !cache.joint;
    if (tensor && plain_cache(gpu, cache)) return attend_plain_cache(gpu, out, q, {}, cache, reach);
    merge_splits(gpu, out,
                 tensor && plain_rows(gpu, cache) ? attend_splits_whole(gpu, q, cache, most)
                 : tensor                         ? attend_splits_tensor(gpu, q, rotation, cache, most)
                                                  : attend_splits_plain(gpu, q, rotation, cache, most),
                 cache);
}

}  // namespace stief
