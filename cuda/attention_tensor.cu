// Decode attention on tensor cores: rows of 16 bits, heads of 64 or 128. What attention.cu does for
// the rest.
//
// The warps of a block share nothing but the queries and the basis: each takes every fourth step of 16
// positions, copies its rows on its own (cp.async, STAGES steps in flight, no barrier of the block),
// and has its own running max and sum. A step, keys on the M side and 8 query heads on the N side:
//   keys after rotation    s = C (q Dᵀ)ᵀ: the latents as they lie are the fragments
//   keys before rotation   the 16 keys are rebuilt, C D, and rotated by their distance from the step's
//                          first position p, 0 … 15 (a table of the block); q is rotated back by p:
//                          q · R_{p+i} k = (R_pᵀ q) · (R_i k), since RoPE's angles are linear in the
//                          position. A table row for each key would be d·4 bytes a key, more than its
//                          latents; so it is one for 16.
//   values                 acc += Cᵀ p in latent coordinates, weights rounded to E and transposed
// Steps with exact rows (the window) are copied row by row, and taken last, one at a time.
#include <algorithm>

#include "attention_tensor.cuh"
#include "dispatch.cuh"

namespace stief {

constexpr int TENSOR_WARPS = 4, TENSOR_BLOCK = TENSOR_WARPS * WARP, STAGES = 3;
constexpr int SHARE = TENSOR_WARPS * STEP;  // positions: a block's share is a multiple of these

// ---- device helpers
// ------------------------------------------------------------------------------

// One warp's work on Q tiles of 8 query heads. After every step, for each of them:
//     max = max s,  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
template <class E, int D, int Q, bool ROTATED>
struct Warp {
    static constexpr int Q_STRIDE = D + 8, FRAGMENTS = D / 16;
    const CacheView& cache;
    const CacheRows &k, &v;
    const float *rotation, *q;              // q: shared (8 Q, Q_STRIDE), scaled by log₂ e / √d
    const Rebuild<E, D>& basis;
    int lane, g, t;
    uint32_t fragment[ROTATED ? Q : 1][FRAGMENTS][2];  // q, where the keys are rotated
    float acc[Q][FRAGMENTS][4], max[Q][2], sum[Q][2];  // (coordinates g, g+8) x (heads 2t, 2t+1)

    __device__ __forceinline__ Warp(const CacheView& view, const CacheRows& keys, const CacheRows& values,
                    const float* angles, const float* queries, const Rebuild<E, D>& rebuild)
        : cache(view), k(keys), v(values), rotation(angles), q(queries), basis(rebuild) {
        lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < Q; n++) {
            max[n][0] = max[n][1] = -INFINITY, sum[n][0] = sum[n][1] = 0;
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                for (int i = 0; i < 4; i++) acc[n][f][i] = 0;
                if constexpr (ROTATED)
                    for (int i = 0; i < 2; i++) {
                        float2 pair =
                            load_pair(q + (8 * n + g) * Q_STRIDE + 16 * f + 8 * i + 2 * t);
                        fragment[n][f][i] = pack2<E>(pair.x, pair.y);
                    }
            }
        }
    }

    // s[n] (16 keys, 8 heads) of tile n, keys after rotation.
    __device__ __forceinline__ void score(float (&s)[Q][4], const E* keys, int stride, int width) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < width) {
                uint32_t a[4];
                load_a(a, keys, stride, 0, 16 * f);
#pragma unroll
                for (int n = 0; n < Q; n++) mma_16x8x16<E>(s[n], a, fragment[ROTATED ? n : 0][f]);
            }
    }

    // The same for keys before rotation. angle: shared (D)  cosines, sines of the first position.
    __device__ __forceinline__ void score_rebuilt(float (&s)[Q][4], const E* latents, int stride,
                                                  int width, const float* angle) {
        constexpr int HALF = D / 2;
#pragma unroll 1
        for (int c = 0; c < HALF; c += 16) {
            float lo[2][4], hi[2][4];
            basis.product(lo, hi, latents, stride, 0, c, width);
            uint32_t a[2][4];                          // keys, columns from c and from D/2 + c
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {          // keys g, g + 8
                    const float* by = basis.angles + (g + 8 * i) * basis.STRIDE + c + 8 * n + 2 * t;
                    float2 cos = load_pair(by), sin = load_pair(by + HALF);
                    float *x = lo[n] + 2 * i, *y = hi[n] + 2 * i;
                    a[0][2 * n + i] = pack2<E>(x[0] * cos.x - y[0] * sin.x,
                                               x[1] * cos.y - y[1] * sin.y);
                    a[1][2 * n + i] = pack2<E>(y[0] * cos.x + x[0] * sin.x,
                                               y[1] * cos.y + x[1] * sin.y);
                }
#pragma unroll
            for (int n = 0; n < Q; n++) {
                uint32_t b[2][2];
#pragma unroll
                for (int i = 0; i < 2; i++) {          // R_pᵀ q
                    int column = c + 8 * i + 2 * t;
                    const float* one = q + (8 * n + g) * Q_STRIDE + column;
                    float2 x = load_pair(one), y = load_pair(one + HALF);
                    float2 cos = load_pair(angle + column), sin = load_pair(angle + HALF + column);
                    b[0][i] = pack2<E>(x.x * cos.x + y.x * sin.x, x.y * cos.y + y.y * sin.y);
                    b[1][i] = pack2<E>(y.x * cos.x - x.x * sin.x, y.y * cos.y - x.y * sin.y);
                }
                mma_16x8x16<E>(s[n], a[0], b[0]);
                mma_16x8x16<E>(s[n], a[1], b[1]);
            }
        }
    }

    // Takes tile n's scores into max and sum and gives its weights (16 keys, 8 heads) as a fragment.
    __device__ __forceinline__ void softmax(uint32_t (&p)[2], float (&s)[4], int n, int count) {
        if (g >= count) s[0] = s[1] = -INFINITY;
        if (g + 8 >= count) s[2] = s[3] = -INFINITY;
        float keep[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float most = fmaxf(s[i], s[2 + i]);
            for (int mask = 4; mask < WARP; mask *= 2)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
            most = fmaxf(max[n][i], most);
            keep[i] = exp2f(max[n][i] - most);
            s[i] = exp2f(s[i] - most), s[2 + i] = exp2f(s[2 + i] - most);
            max[n][i] = most, sum[n][i] = sum[n][i] * keep[i] + s[i] + s[2 + i];
        }
        if (__ballot_sync(~0u, keep[0] != 1 || keep[1] != 1))
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 4; i++) acc[n][f][i] *= keep[i % 2];
        p[0] = transpose_8x8(pack2<E>(s[0], s[1]));
        p[1] = transpose_8x8(pack2<E>(s[2], s[3]));
    }

    // One step: 16 keys and values that lie in shared memory, the first `count` of them real.
    __device__ __forceinline__ void step(const E* keys, int k_stride, int k_width, const E* values,
                                         int v_stride, int v_width, const float* angle,
                                         int count) {
        float s[Q][4] = {};
        if constexpr (ROTATED)
            score(s, keys, k_stride, k_width);
        else
            score_rebuilt(s, keys, k_stride, k_width, angle);
        uint32_t p[Q][2];
#pragma unroll
        for (int n = 0; n < Q; n++) softmax(p[n], s[n], n, count);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < v_width) {
                uint32_t a[4];
                load_a_transposed(a, values, v_stride, 0, 16 * f);
#pragma unroll
                for (int n = 0; n < Q; n++) mma_16x8x16<E>(acc[n][f], a, p[n]);
            }
    }

    // ---- rows

    static __host__ __device__ size_t stage_bytes(int k_stride, int v_stride) {
        return size_t(STEP * (k_stride + v_stride)) * sizeof(E) + (ROTATED ? 0 : D * sizeof(float));
    }
    __device__ __forceinline__ void copy_angle(float* to, int s) const {
        if (!ROTATED && lane < D / 4)
            copy_async_16(to + 4 * lane, rotation + size_t(s) * D + 4 * lane, true);
    }

    // Truncated steps s0, s0 + SHARE, … below end, STAGES − 1 of them in flight.
    __device__ __forceinline__ void cut_steps(char* memory, int s0, int end) {
        int ks = stride_of(k.r), vs = stride_of(v.r);
        size_t bytes = stage_bytes(ks, vs);
        auto begin = [&](int i) {
            int s = s0 + i * SHARE;
            if (s < end) {
                float* angle = reinterpret_cast<float*>(memory + size_t(i % STAGES) * bytes);
                E *keys = reinterpret_cast<E*>(angle + (ROTATED ? 0 : D)), *values = keys + STEP * ks;
                int count = min(STEP, end - s);
                copy_angle(angle, s);
                copy_rows(keys, ks, row_of<E>(cache, k, false, s), k.r, count, STEP, lane, WARP);
                copy_rows(values, vs, row_of<E>(cache, v, false, s), v.r, count, STEP, lane, WARP);
            }
            copy_async_commit();
        };
        for (int i = 0; i < STAGES - 1; i++) begin(i);
        for (int i = 0; s0 + i * SHARE < end; i++) {
            copy_async_wait<STAGES - 2>();
            __syncwarp();  // every lane's copies of step i are there; step i − 1 was read
            begin(i + STAGES - 1);
            const float* angle = reinterpret_cast<float*>(memory + size_t(i % STAGES) * bytes);
            const E* keys = reinterpret_cast<const E*>(angle + (ROTATED ? 0 : D));
            step(keys, ks, k.r, keys + STEP * ks, vs, v.r, angle, min(STEP, end - s0 - i * SHARE));
        }
        copy_async_wait<0>();
        __syncwarp();  // the stages are free
    }

    // Steps with exact rows among theirs.
    __device__ __forceinline__ void mixed_steps(char* memory, int s0, int end, int near) {
        int ks = stride_of(width_of(k, D)), vs = stride_of(width_of(v, D));
        float* angle = reinterpret_cast<float*>(memory);
        E *keys = reinterpret_cast<E*>(angle + (ROTATED ? 0 : D)), *values = keys + STEP * ks;
        auto exact = [&](int s) { return s < cache.sinks || s >= near; };
        auto copy = [&](E* to, int stride, const CacheRows& head, int s, int count) {
            if (head.exact)
                copy_mixed_rows<E, D>(to, stride, cache, head, s, count, STEP, lane, WARP, exact);
            else
                copy_rows(to, stride, row_of<E>(cache, head, false, s), head.r, count, STEP, lane,
                          WARP);
        };
        for (int s = s0; s < end; s += SHARE) {
            int count = min(STEP, end - s);
            copy_angle(angle, s);
            copy(keys, ks, k, s, count);
            copy(values, vs, v, s, count);
            copy_async_commit();
            copy_async_wait<0>();
            __syncwarp();  // every lane's copies are there
            step(keys, ks, width_of(k, D), values, vs, width_of(v, D), angle, count);
            __syncwarp();  // and were read
        }
    }
};

// Where a block keeps what: queries, basis, each warp's stages; and in their place the turning of
// queries before them and the merging of warps after them.
template <class E, int D, int Q, bool ROTATED>
struct TensorShared {
    using One = Warp<E, D, Q, ROTATED>;
    static constexpr int ROWS = 8 * Q;
    static constexpr size_t QUERIES = ROWS * One::Q_STRIDE * sizeof(float);
    static constexpr size_t TURNING = (ROWS * D + 8 * TENSOR_BLOCK) * sizeof(float);
    static constexpr size_t MERGING = TENSOR_WARPS * ROWS * (D + 2) * sizeof(float);

    static __host__ __device__ size_t warp_bytes(const CacheRows& k, const CacheRows& v) {
        size_t cut = STAGES * One::stage_bytes(stride_of(k.r), stride_of(v.r));
        size_t mixed = One::stage_bytes(stride_of(width_of(k, D)), stride_of(width_of(v, D)));
        return cut > mixed ? cut : mixed;
    }
    static size_t bytes(const CacheRows& k, const CacheRows& v) {
        size_t rebuild = ROTATED ? 0 : Rebuild<E, D>::shared_bytes(width_of(k, D));
        return QUERIES + rebuild +
               std::max({TENSOR_WARPS * warp_bytes(k, v), size_t(TURNING), size_t(MERGING)});
    }
};

// to (8 Q, Q_STRIDE) ← the block's R queries, scaled and, where the keys are rotated, q Dᵀ.
template <class E, int D, int Q, bool ROTATED>
__device__ void turn_queries(float* to, float* scratch, const float* q, const CacheRows& k, int R) {
    constexpr int ROWS = 8 * Q, STRIDE = Warp<E, D, Q, ROTATED>::Q_STRIDE;
    bool turned = ROTATED && k.decode_t;
    float *from = turned ? scratch : to, scale = LOG2_E / sqrtf(float(D));
    int stride = turned ? D : STRIDE, width = turned ? width_of(k, D) : D;
    for (int i = int(threadIdx.x); i < ROWS * D; i += TENSOR_BLOCK)
        from[i / D * stride + i % D] = i < R * D ? scale * q[i] : 0;
    if (turned)
        for (int i = int(threadIdx.x); i < ROWS * D; i += TENSOR_BLOCK)
            if (i % D >= width || i >= R * D) to[i / D * STRIDE + i % D] = 0;
    __syncthreads();  // the queries are there
    if (turned)
        block_product<8>(to, STRIDE, from, D, k.decode_t, D, R, D, width, scratch + ROWS * D);
}

// The block's partial ← those of its warps. memory: shared (4, ROWS, D + 2), free once all are here.
template <class E, int D, int Q, bool ROTATED>
__device__ void merge_warps(const Partial& partials, const Warp<E, D, Q, ROTATED>& one,
                            float* memory, int h0, int R, int width) {
    constexpr int ROWS = 8 * Q, EACH = D + 2;
    int warp = int(threadIdx.x) / WARP;
    __syncthreads();  // every warp has read its last step
    float* mine = memory + warp * ROWS * EACH;
#pragma unroll
    for (int n = 0; n < Q; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = one.sum[n][i], *to = mine + (8 * n + 2 * one.t + i) * EACH;
            for (int mask = 4; mask < WARP; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
            if (one.g == 0) to[0] = one.max[n][i], to[1] = sum;
#pragma unroll
            for (int f = 0; f < D / 16; f++) {
                to[2 + 16 * f + one.g] = one.acc[n][f][i];
                to[2 + 16 * f + 8 + one.g] = one.acc[n][f][2 + i];
            }
        }
    __syncthreads();  // all warps' are there
    for (int i = int(threadIdx.x); i < R * D; i += TENSOR_BLOCK) {
        int row = i / D, j = i % D;
        const float* from = memory + row * EACH;
        float most = from[0], sum = 0, value = 0;
        for (int w = 1; w < TENSOR_WARPS; w++) most = fmaxf(most, from[w * ROWS * EACH]);
        for (int w = 0; w < TENSOR_WARPS; w++, from += ROWS * EACH) {
            float weight = exp2f(from[0] - most);
            sum += weight * from[1], value += weight * from[2 + j];
        }
        float* to = partials.of(int(blockIdx.y), h0 + row);
        if (j == 0) to[0] = most, to[1] = sum;
        if (j < width) to[2 + j] = value;
    }
}

// ---- kernels
// -------------------------------------------------------------------------------------

// grid (G · chunks of 8 Q query heads, splits), block 128. Shared: as TensorShared says, 3 steps of
// each warp's rows: at full rank 4 · 3 · 16 · 2 · 136 · 2 = 104 KB, at a quarter 31 KB.
// Reads K and V once for each chunk, S·G·(r_K + r_V)·2 bytes, and D or Dᵀ once for each block. With
// 16 query heads a group or fewer (Q = 2) that is once in all.
template <class E, int D, int Q, bool ROTATED>
__global__ void __launch_bounds__(TENSOR_BLOCK, 3)
    attend_one_tensor(Partial partials, CacheView cache, const float* q, const float* rotation,
                      const int* pos, int chunks) {
    using Shared = TensorShared<E, D, Q, ROTATED>;
    constexpr int ROWS = Shared::ROWS;
    int g = int(blockIdx.x) / chunks, m = cache.H / cache.G, h0 = int(blockIdx.x) % chunks * ROWS;
    int R = min(ROWS, m - h0), S = *pos + 1, warp = int(threadIdx.x) / WARP;
    Share share(S, int(blockIdx.y), int(gridDim.y), SHARE);
    const CacheRows k = cache.k(g), v = cache.v(g);
    if (share.first >= share.end) {
        for (int i = int(threadIdx.x); i < R; i += TENSOR_BLOCK) {
            float* to = partials.of(int(blockIdx.y), g * m + h0 + i);
            to[0] = -INFINITY, to[1] = 0;
        }
        return;
    }

    float* queries = reinterpret_cast<float*>(dynamic_shared());
    char* memory = dynamic_shared() + Shared::QUERIES;
    Rebuild<E, D> basis = {};
    if constexpr (!ROTATED) memory = basis.fill(memory, cache, k, rotation);
    turn_queries<E, D, Q, ROTATED>(queries, reinterpret_cast<float*>(memory),
                                   q + size_t(g * m + h0) * D, k, R);

    // Columns that no copy writes are zero: a product must not meet what is no number.
    size_t warp_bytes = Shared::warp_bytes(k, v);
    uint32_t* words = reinterpret_cast<uint32_t*>(memory);
    for (int i = int(threadIdx.x); i < int(TENSOR_WARPS * warp_bytes / 4); i += TENSOR_BLOCK)
        words[i] = 0;
    __syncthreads();  // and are so before the first copy

    int near = cache.near_begin(S - 1), cut0 = share.first, cut1 = share.end;
    if (k.exact || v.exact) {
        cut0 = min(share.end, max(share.first, (cache.sinks + STEP - 1) / STEP * STEP));
        cut1 = min(share.end, max(cut0, near / STEP * STEP));
    }
    auto own = [&](int from) {  // the warp's first step from there on
        int behind = (from - share.first) / STEP % TENSOR_WARPS;
        return from + (warp - behind + TENSOR_WARPS) % TENSOR_WARPS * STEP;
    };
    Warp<E, D, Q, ROTATED> one(cache, k, v, rotation, queries, basis);
    char* stages = memory + size_t(warp) * warp_bytes;
    one.cut_steps(stages, own(cut0), cut1);
#pragma unroll 1
    for (int side = 0; side < 2; side++)
        one.mixed_steps(stages, own(side ? cut1 : share.first), side ? share.end : cut0, near);
    merge_warps(partials, one, reinterpret_cast<float*>(memory), g * m + h0, R, width_of(v, D));
}

// ---- launchers
// -----------------------------------------------------------------------------------

template <class E, int D, int Q, bool ROTATED>
static Splits run(CudaBackend& gpu, const float* q, const float* rotation,
                  const CacheLayer& cache) {
    int m = cache.H / cache.G, chunks = (m + 8 * Q - 1) / (8 * Q), blocks = cache.G * chunks;
    size_t shared = 0;
    for (size_t g = 0; g < size_t(cache.G); g++)
        shared = std::max(shared, TensorShared<E, D, Q, ROTATED>::bytes(cache.k[g], cache.v[g]));
    Splits splits(gpu, cache, blocks, 2, SHARE);
    launch(attend_one_tensor<E, D, Q, ROTATED>, dim3(unsigned(blocks), unsigned(splits.count)),
           TENSOR_BLOCK, shared, gpu.queue, splits.partials, CacheView(cache), q, rotation, gpu.pos,
           chunks);
    return splits;
}

template <class E, int D>
static Splits run(CudaBackend& gpu, const float* q, const float* rotation,
                  const CacheLayer& cache) {
    if (cache.H / cache.G > 8)
        return cache.rotated ? run<E, D, 2, true>(gpu, q, rotation, cache)
                             : run<E, D, 2, false>(gpu, q, rotation, cache);
    return cache.rotated ? run<E, D, 1, true>(gpu, q, rotation, cache)
                         : run<E, D, 1, false>(gpu, q, rotation, cache);
}

Splits attend_splits_tensor(CudaBackend& gpu, const float* q, const float* rotation,
                            const CacheLayer& cache) {
    bool wide = cache.d == 128;
    if (cache.dtype == DType::F16)
        return wide ? run<f16, 128>(gpu, q, rotation, cache) : run<f16, 64>(gpu, q, rotation, cache);
    return wide ? run<bf16, 128>(gpu, q, rotation, cache) : run<bf16, 64>(gpu, q, rotation, cache);
}

}  // namespace stief
