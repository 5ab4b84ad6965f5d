// Products of a few tokens that come out as each alone does in matvec.cu (Backend::singly), and read the
// weights once for up to eight of them: what verifying a draft rests on.
//
// A warp has a slice of the columns, as there, with that slice of every token's x in registers, and meets
// some of the rows. Its sums over the lanes go to memory, (slices, rows, tokens), where a second kernel adds
// the slices up in their order:
//
//              slice 0    slice 1     …
//     row 0   [warp      |warp       |…]   a block: FEW_WARPS slices of some rows
//     row 1   [ …                      ]
//
// A norm is two things, as there: x ⊙ w before, by a kernel of a token a block, and 1 / √(mean(x²) + ε) of
// all its sums behind.
#include "dispatch.cuh"
#include "matvec.cuh"
#include "matvec_stream.cuh"

namespace stief {

constexpr int FEW_WARPS = 4;  // slices of a block
// Tokens whose x a lane holds: 64 registers with weights of 16 bits, or 128 where a lane has more chunks.
constexpr int most_few(int C) {
    return C <= 2 ? 8 : 2;
}
// Blocks that a multiprocessor has then.
constexpr int few_blocks(int C) {
    return C == 1 ? 4 : 2;
}

// ---- kernels -----------------------------------------------------------------------------------

// to_t ← x_t ⊙ w, factor_t ← 1 / √(mean(x_t²) + ε).   grid T, block as matvec_kernel's, whose sums of squares
// it makes in the same order. Shared: a float a warp. Bound by its latency: one read, a sum.
template <class E, int C>
__global__ void __launch_bounds__(most_warps(C) * WARP, 1)
    weigh_kernel(float* to, float* factor, const float* x, NormOf<E> norm, int K) {
    LaneColumns<E, C> part(K, int(threadIdx.x) / WARP);
    size_t row = size_t(blockIdx.x) * size_t(K);
    uint4 weight[C] = {};
    float own[C][part.EACH];
    part.load(weight, norm.w);
    let_next_begin();
    await_kernels();
    part.load(own, x + row);
    float square = weigh<E>(own, weight);
    float all = norm_factor(square, norm, K, reinterpret_cast<float*>(dynamic_shared()));
    if (threadIdx.x == 0) factor[blockIdx.x] = all;
#pragma unroll
    for (int c = 0; c < C; c++)
        for (int e = 0; e < part.EACH; e += 4)
            if (part.there(c))
                store_4(to + row + part.column + c * part.CHUNK + e,
                        make_float4(own[c][e], own[c][e + 1], own[c][e + 2], own[c][e + 3]));
}

// sums (slices, count, tokens) ← each slice's part of w_i · x_t for `count` rows from `from` on, tokens ≤ T.
// grid (pieces of the rows, slices / FEW_WARPS), block FEW_WARPS warps. Shared: rings. Reads every weight
// once, count·K·size bytes; x, tokens·K·4, once for each piece, and writes slices·count·tokens·4.
template <class E, int C, int T>
__global__ void __launch_bounds__(FEW_WARPS * WARP, few_blocks(C))
    few_kernel(float* sums, Matrices<E> all, int from, int count, const float* x, int K, int slices,
               int tokens) {
    using Part = LanePart<E, C>;
    constexpr int ON = TURN<Part>;
    static_assert(ON % Part::AHEAD == 0 && ON % TOGETHER == 0 && TOGETHER * T <= WARP);
    int lane = int(threadIdx.x) % WARP, slice = int(blockIdx.y) * FEW_WARPS + int(threadIdx.x) / WARP;
    int first = from + first_of(count, int(blockIdx.x));
    int end = slice < slices ? from + first_of(count, int(blockIdx.x) + 1) : first;

    Part part(K, slice);
    RowCursor<E, false> next(all, first, K, part.column);
    ask_first(part, next, end);
    let_next_begin();
    await_kernels();
    float own[T][C][Part::EACH] = {};
#pragma unroll
    for (int t = 0; t < T; t++)
        if (t < tokens) part.load(own[t], x + size_t(t) * size_t(K));

    sums += size_t(slice) * size_t(count) * size_t(tokens);
    for (int turn = first; turn < end; turn += ON) {
#pragma unroll
        for (int offset = 0; offset < ON; offset += TOGETHER) {
            int r = turn + offset;
            if (r >= end) break;
            float sum[TOGETHER * T] = {};
            meet_rows(part, next, offset, end, [&](int n, int c, const float (&w)[Part::EACH]) {
#pragma unroll
                for (int t = 0; t < T; t++)
                    sum[n * T + t] = add_products(sum[n * T + t], own[t][c], w);
            });
            float one = warp_sums(sum);
            constexpr int LANES = WARP / (TOGETHER * T);
            int row = r + lane / LANES / T, t = lane / LANES % T;
            if (lane % LANES == 0 && row < end && t < tokens)
                sums[size_t(row - from) * size_t(tokens) + size_t(t)] = one;
        }
    }
}

// out_t,j (+)= factor_t Σ sums_t,j over the slices, of `count` rows from `from` on; or, GATED, of all rows
// silu and product of rows j and N + j.
// grid: all units and tokens, block 256. factor: null: 1. Reads the sums: from the second cache.
template <class E, bool GATED>
__global__ void __launch_bounds__(256)
    finish_few_kernel(Matrices<E> all, int from, int count, const float* sums, const float* factor,
                      int slices, int tokens, bool add) {
    int i = int(blockIdx.x * blockDim.x + threadIdx.x), unit = i / tokens, t = i % tokens;
    let_next_begin();
    await_kernels();
    if (unit >= count / (GATED ? 2 : 1)) return;
    float by = factor ? factor[t] : 1;
    auto total = [&](int row) {
        const float* one = sums + size_t(row) * size_t(tokens) + size_t(t);
        float sum = 0;
#pragma unroll 8
        for (int s = 0; s < slices; s++) sum += one[size_t(s) * size_t(count) * size_t(tokens)];
        return sum;
    };
    if constexpr (GATED) {
        int N = all.N[0];
        all.out[0][size_t(t) * size_t(N) + size_t(unit)] = gated_by(by * total(unit), by * total(N + unit));
    } else {
        all.at(from + unit, [&](const E*, float* out, int j, int N) {
            float* to = out + size_t(t) * size_t(N) + size_t(j);
            *to = finished(total(unit), by, add ? *to : 0);
        });
    }
}

// ---- launchers ---------------------------------------------------------------------------------

// x as the products read it: with a norm, ⊙ its weight, and the factors of their sums.
template <class E, int C>
static const float* weighed(CudaBackend& gpu, const StreamShape& shape, const float* x, const NormOf<E>& norm,
                            float* normed, float* factor, int K, int T) {
    if constexpr (takes_more(C)) {
        if (!norm.w) return x;
        launch_ahead(weigh_kernel<E, C>, dim3(unsigned(T)), shape.warps * WARP,
                     size_t(shape.warps) * sizeof(float), gpu.queue, normed, factor, x, norm, K);
        return normed;
    }
    return x;
}

template <class E, int C, bool GATED>
static void few(CudaBackend& gpu, const StreamShape& shape, Matrices<E> all, const float* x,
                const NormOf<E>& norm, float* normed, int K, int T, bool add) {
    constexpr int MOST = most_few(C), FINISH_BLOCK = 256;
    int slices = shape.warps, across = (slices + FEW_WARPS - 1) / FEW_WARPS;
    size_t of_row = size_t(slices) * size_t(std::min(T, MOST)) * sizeof(float);
    int rows = GATED ? all.rows  // gate and up are done together, and never as many as a vocabulary
                     : int(std::min(size_t(all.rows), std::max(size_t(1), gpu.most_sums / of_row)));
    int pieces = std::clamp(gpu.multiprocessors * few_blocks(C) / across, 1, rows);
    check(uint64_t(rows) * uint64_t(pieces + 1) >> 32 == 0, "a product of %d rows: too many", rows);
    size_t factors = size_t(T + 63) / 64 * 64;
    float* factor = static_cast<float*>(gpu.scratch(CudaBackend::Scratch::Reduction,
                                                    factors * sizeof(float) + size_t(rows) * of_row));
    float* sums = factor + factors;
    x = weighed<E, C>(gpu, shape, x, norm, normed, factor, K, T);
    for (int t = 0; t < T; t += MOST) {
        int tokens = std::min(MOST, T - t);
        for (int from = 0; from < all.rows; from += rows) {
            int count = std::min(rows, all.rows - from), results = count / (GATED ? 2 : 1) * tokens;
            launch_ahead(few_kernel<E, C, MOST>, dim3(unsigned(pieces), unsigned(across)), FEW_WARPS * WARP,
                         size_t(FEW_WARPS * SLOTS * WARP * 16), gpu.queue, sums, all, from, count,
                         x + size_t(t) * size_t(K), K, slices, tokens);
            launch_ahead(finish_few_kernel<E, GATED>,
                         dim3(unsigned((results + FINISH_BLOCK - 1) / FINISH_BLOCK)), FINISH_BLOCK, 0,
                         gpu.queue, all, from, count, sums, norm.w ? factor + t : nullptr, slices, tokens,
                         add);
        }
        for (int i = 0; i < all.count; i++) all.out[i] += size_t(tokens) * size_t(all.N[i]);
    }
}

template <class E, bool GATED>
void matvec_few(CudaBackend& gpu, const StreamShape& shape, const Matrices<E>& all, const float* x,
                const NormOf<E>& norm, float* normed, int K, int T, bool add) {
    if (shape.C == 1) return few<E, 1, GATED>(gpu, shape, all, x, norm, normed, K, T, add);
    if (shape.C == 2) return few<E, 2, GATED>(gpu, shape, all, x, norm, normed, K, T, add);
    if constexpr (!GATED) return few<E, 8, false>(gpu, shape, all, x, norm, normed, K, T, add);
    fail("gate and up of %d columns in one product", K);
}

template <class E>
using Few = void(CudaBackend&, const StreamShape&, const Matrices<E>&, const float*, const NormOf<E>&, float*,
                 int, int, bool);
template Few<float> matvec_few<float, false>;
template Few<float> matvec_few<float, true>;
template Few<f16> matvec_few<f16, false>;
template Few<f16> matvec_few<f16, true>;
template Few<bf16> matvec_few<bf16, false>;
template Few<bf16> matvec_few<bf16, true>;

}  // namespace stief
