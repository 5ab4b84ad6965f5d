// One warp's part of decode attention on tensor cores: rows of 16 bits, heads of 64 or 128.
//
// The warps of a block share nothing but the queries and the basis: each takes every fourth step of
// 16 positions, copies its rows on its own (cp.async, two or three steps at once, no barrier of the
// block), and has its own running max and sum. A step, keys on the M side and 8 query heads on the
// N side:
//   keys after rotation    s = C (q Dᵀ)ᵀ: the latents as they lie are the fragments
//   keys before rotation   the 16 keys are rebuilt, C D, and rotated by their distance from the
//   step's
//                          first position p, 0 … 15 (a table of the block); q is rotated back by p:
//                          q · R_{p+i} k = (R_pᵀ q) · (R_i k), since RoPE's angles are linear in
//                          the position. A table row for each key would be d·4 bytes a key, more
//                          than its latents; so it is one for 16.
//   values                 acc += Cᵀ p in latent coordinates, weights rounded to E and transposed
// Steps with rows that do not lie by position (the young ages) are copied row by row, and taken
// last, one at a time.
#pragma once
#include "attention_tensor.cuh"

namespace stief {

constexpr int TENSOR_WARPS = 4, TENSOR_BLOCK = TENSOR_WARPS * WARP;
constexpr int SHARE = TENSOR_WARPS * STEP;  // positions: a block's share is a multiple of these

// One warp's work on Q tiles of 8 query heads. After every step, for each of them:
//     max = max s,  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
template <class E, int D, int Q, bool ROTATED>
struct Warp {
    static constexpr int Q_STRIDE = D + 8, FRAGMENTS = D / 16;
    const CacheView& cache;
    const CacheRows &k, &v;
    const float *rotation, *q;  // q: shared (8 Q, Q_STRIDE), scaled by log₂ e / √d
    const Rebuild<E, D>& basis;
    int lane, g, t;
    uint32_t fragment[ROTATED ? Q : 1][FRAGMENTS][2];  // q, where the keys are rotated
    float acc[Q][FRAGMENTS][4], max[Q][2], sum[Q][2];  // (coordinates g, g+8) x (heads 2t, 2t+1)

    __device__ __forceinline__ Warp(const CacheView& view, const CacheRows& keys,
                                    const CacheRows& values, const float* angles,
                                    const float* queries, const Rebuild<E, D>& rebuild)
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
            uint32_t a[2][4];  // keys, columns from c and from D/2 + c
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {  // keys g, g + 8
                    const float* by = basis.angles + (g + 8 * i) * basis.STRIDE + c + 8 * n + 2 * t;
                    float2 cos = load_pair(by), sin = load_pair(by + HALF);
                    float *x = lo[n] + 2 * i, *y = hi[n] + 2 * i;
                    a[0][2 * n + i] =
                        pack2<E>(x[0] * cos.x - y[0] * sin.x, x[1] * cos.y - y[1] * sin.y);
                    a[1][2 * n + i] =
                        pack2<E>(y[0] * cos.x + x[0] * sin.x, y[1] * cos.y + x[1] * sin.y);
                }
#pragma unroll
            for (int n = 0; n < Q; n++) {
                uint32_t b[2][2];
#pragma unroll
                for (int i = 0; i < 2; i++) {  // R_pᵀ q
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

    // Takes tile n's scores into max and sum and gives its weights (16 keys, 8 heads) as a
    // fragment.
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
                                         int v_stride, int v_width, const float* angle, int count) {
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

    // Steps s0, s0 + SHARE, … below end by position, in 3 or 2 stages: while one is read the others
    // are on their way.
    __device__ __forceinline__ void old_steps(char* memory, int stages, int s0, int end) {
        const Oldest old(k, v);
        int kr = elements_of(old.k), vr = elements_of(old.v);
        RowCopy<E> copy_keys(kr, lane, WARP), copy_values(vr, lane, WARP);
        int ks = copy_keys.stride, vs = copy_values.stride;
        size_t bytes = stage_bytes(ks, vs);
        int next = 0, now = 0;  // stages
        auto begin = [&](int s) {
            if (s < end) {
                float* angle = reinterpret_cast<float*>(memory + size_t(next) * bytes);
                E* keys = reinterpret_cast<E*>(angle + (ROTATED ? 0 : D));
                int count = min(STEP, end - s);
                copy_angle(angle, s);
                copy_keys.begin(keys, elements_at<E>(old.k, s), count, STEP);
                copy_values.begin(keys + STEP * ks, elements_at<E>(old.v, s), count, STEP);
            }
            copy_async_commit();
            next = next + 1 == stages ? 0 : next + 1;
        };
        for (int i = 0; i < stages - 1; i++) begin(s0 + i * SHARE);
        for (int s = s0; s < end; s += SHARE) {
            if (stages == 3)
                copy_async_wait<1>();
            else
                copy_async_wait<0>();
            __syncwarp();  // every lane's copies of this step are there; the last step was read
            begin(s + (stages - 1) * SHARE);
            const float* angle = reinterpret_cast<float*>(memory + size_t(now) * bytes);
            const E* keys = reinterpret_cast<const E*>(angle + (ROTATED ? 0 : D));
            step(keys, ks, kr, keys + STEP * ks, vs, vr, angle, min(STEP, end - s));
            now = now + 1 == stages ? 0 : now + 1;
        }
        copy_async_wait<0>();
        __syncwarp();  // the stages are free
    }

    // Steps of any rows, as a token at pos sees them.
    __device__ __forceinline__ void mixed_steps(char* memory, const Seen& seen, int s0, int end,
                                                int pos) {
        constexpr int ks = D + 8, vs = D + 8;
        float* angle = reinterpret_cast<float*>(memory);
        E *keys = reinterpret_cast<E*>(angle + (ROTATED ? 0 : D)), *values = keys + STEP * ks;
        auto stretch_of = [&](int s) -> const Stretch& {
            int i = 0;
            while (s < seen.stretch[i].begin_for(pos) || s >= seen.stretch[i].end_for(pos)) i++;
            return seen.stretch[i];
        };
        for (int s = s0; s < end; s += SHARE) {
            int count = min(STEP, end - s);
            copy_angle(angle, s);
            copy_wide_rows<E, D>(keys, ks, k, s, count, STEP, lane, WARP,
                                 [&](int at) { return stretch_of(at).k; });
            copy_wide_rows<E, D>(values, vs, v, s, count, STEP, lane, WARP,
                                 [&](int at) { return stretch_of(at).v; });
            copy_async_commit();
            copy_async_wait<0>();
            __syncwarp();  // every lane's copies are there
            step(keys, ks, D, values, vs, D, angle, count);
            __syncwarp();  // and were read
        }
    }
};

}  // namespace stief
