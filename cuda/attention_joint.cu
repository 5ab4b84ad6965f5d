// Decode attention over joint values (CacheLayer::joint) on tensor cores. Keys are each kv head's own, and
// their scores come from attention_tensor.cu; a row of values is met here by all query heads at once, so
// that each of its codes is taken apart once. Then the splits are merged, and each head's sums leave their
// coordinates. Without tensor cores values become each head's own, tile by tile (attention_plain.cuh).
#include <optional>

#include "attention_joint.cuh"
#include "joint_values.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid (splits, pieces of 64 columns a warp, chunks of 8 Q query heads), block of 2 to 8 warps. Reads each
// row once for a piece and chunk, and scores, 4·H bytes a key. Shared: JointLayout.
template <class E, int Q>
__global__ void __launch_bounds__(JOINT_WARPS* WARP, 2)
    attend_joint_kernel(Partial partials, CacheView cache, HeadScores scores, const int* pos, int stage) {
    JointLayout<Q> own(dynamic_shared(), stage);
    JointShared<Q>& shared = *own.shared;
    int tid = int(threadIdx.x), threads = int(blockDim.x), h0 = int(blockIdx.z) * 8 * Q;
    copy_words(&shared.v, &cache.v(0), tid, threads);
    copy_words(&shared.seen, &cache.seen(0), tid, threads);
    shared.levels.fill(tid, threads);
    let_next_begin();
    await_kernels();
    __syncthreads();  // the description is there, and the levels
    int S = *pos + 1;
    Share share(S, int(blockIdx.x), int(gridDim.x), JOINT_STEP);
    JointWarp<E, Q> one(shared, own.stages, stage, scores, h0, min(8 * Q, cache.H - h0));
#pragma unroll 1
    for (int i = 0; i < shared.seen.count; i++) {
        const Stretch& stretch = shared.seen.stretch[i];
        int s = max(share.first, stretch.begin_for(S - 1)), end = min(share.end, stretch.end_for(S - 1));
        if (s >= end) continue;
        const RowStore& store = shared.v.store[stretch.v];
        one.enter(store);
        for (int until; s < end; s = until) {
            until = min(end, run_end(store, s));
            one.run(s, until);
        }
    }
    one.put(partials, shared.v.width);
}

constexpr int JOINT_MERGE = 512, JOINT_COLUMNS = 64;

struct JointMergeLayout {
    float *sums, *weights;  // (SLICES, JOINT_COLUMNS), (warps, splits)  shared
    size_t bytes;

    __host__ __device__ __forceinline__ JointMergeLayout(char* memory, int splits) {
        Carve carve{memory};
        sums = carve.take<float>(JOINT_MERGE), weights = carve.take<float>(JOINT_MERGE / WARP * splits);
        bytes = carve.bytes;
    }
};

// merged_h (G·d) ← Σ_i 2^(max_i − max) acc_i / Σ_i 2^(max_i − max) sum_i over the splits. grid (H, pieces
// of 64 columns), block 512: a column by 8 threads. Shared: JointMergeLayout. Reads the partials once.
__global__ void __launch_bounds__(JOINT_MERGE, 1)
    merge_joint_kernel(float* merged, int stride, int width, Partial partials, int splits) {
    constexpr int SLICES = JOINT_MERGE / JOINT_COLUMNS;
    int h = int(blockIdx.x), tid = int(threadIdx.x);
    int column = int(blockIdx.y) * JOINT_COLUMNS + tid % JOINT_COLUMNS, slice = tid / JOINT_COLUMNS;
    JointMergeLayout own(dynamic_shared(), splits);
    float *sums = own.sums, *weight = own.weights + tid / WARP * splits;
    let_next_begin();
    await_kernels();
    split_weights(weight, partials, splits, h);
    float total = 0;
#pragma unroll 4
    for (int i = slice; i < splits; i += SLICES)
        if (column < width && weight[i] > 0) total = fmaf(weight[i], partials.of(i, h)[2 + column], total);
    sums[tid] = total;
    __syncthreads();  // all slices' are there
    if (slice > 0 || column >= width) return;
    for (int i = 1; i < SLICES; i++) total += sums[i * JOINT_COLUMNS + tid];
    merged[size_t(h) * size_t(stride) + size_t(column)] = total;
}

// ---- launchers ---------------------------------------------------------------------------------

static size_t stage_of(const CacheLayer& cache) {
    int most = 0;
    for (const Stretch& one : cache.seen[0]) most = std::max(most, joint_stage(cache.v[0].store[one.v]));
    return size_t(most);
}

// f<E, Q>() of the kernel that such a cache takes.
template <class F>
static void for_kernel(const CacheLayer& cache, const F& f) {
    auto heads = [&]<class E>() {
        cache.H <= 8    ? f.template operator()<E, 1>()
        : cache.H <= 16 ? f.template operator()<E, 2>()
                        : f.template operator()<E, 4>();
    };
    cache.dtype == DType::F16 ? heads.template operator()<f16>() : heads.template operator()<bf16>();
}

static size_t joint_bytes(const CacheLayer& cache) {
    size_t bytes = 0;
    for_kernel(cache, [&]<class E, int Q>() { bytes = JointLayout<Q>(nullptr, int(stage_of(cache))).bytes; });
    return bytes;
}

bool joint_in_slots(const CacheLayer& cache) {
    for (const Stretch& one : cache.seen[0]) {
        const RowStore& store = cache.v[0].store[one.v];
        if (coded(store.format) && elements_of(store) % ROW_GROUP) return false;
    }
    return true;
}

bool joint_fits(const CudaBackend& gpu, const CacheLayer& cache) {
    return joint_bytes(cache) <= gpu.shared_limit;
}

void attend_joint(CudaBackend& gpu, float* out, const HeadScores& scores, const CacheLayer& cache,
                  int reach) {
    constexpr int LEAST = 256;  // positions worth a split, which is a partial of all coordinates
    int width = cache.v[0].width, slices = std::max((width + SLICE - 1) / SLICE, 1);
    size_t bytes = joint_bytes(cache);
    std::optional<Splits> splits;
    for_kernel(cache, [&]<class E, int Q>() {
        int warps = std::clamp(slices, 2, JOINT_WARPS), pieces = (slices + warps - 1) / warps;
        int chunks = (cache.H + 8 * Q - 1) / (8 * Q), each = std::max(2 * JOINT_WARPS / warps, 1);
        each = std::max(std::min(each, int(gpu.shared_limit / (bytes + 1024))), 1);
        splits.emplace(gpu, cache,
                       splits_for(gpu, cache, pieces * chunks, each, JOINT_STEP, reach / LEAST + 1),
                       (width + 1) / 2 * 2);
        launch_ahead(attend_joint_kernel<E, Q>,
                     dim3(unsigned(splits->count), unsigned(pieces), unsigned(chunks)), warps * WARP, bytes,
                     gpu.queue, splits->partials, CacheView(cache), scores, gpu.pos, int(stage_of(cache)));
    });
    size_t floats = size_t(cache.H) * size_t(cache.joint);
    float* merged = static_cast<float*>(gpu.scratch(CudaBackend::Scratch::Rows, floats * sizeof(float)));
    size_t shared = JointMergeLayout(nullptr, splits->count).bytes;
    dim3 grid(unsigned(cache.H), unsigned((width + JOINT_COLUMNS - 1) / JOINT_COLUMNS));
    launch_ahead(merge_joint_kernel, grid, JOINT_MERGE, shared, gpu.queue, merged, cache.joint, width,
                 splits->partials, splits->count);
    joint_product(gpu, out, merged, cache, JointBasis::Decode, cache.H);
}

}  // namespace stief
