// Products of one token, at the speed of memory: weights stream through shared memory, with the RMSNorm
// of x on the way where one is asked for. matvec_few.cu has several tokens that must come out alike,
// matmul.cu all others.
//
// A block has some rows of w, the same number for every multiprocessor; each of its warps has a slice of
// the columns, with that slice of x in registers, and meets every row of the block:
//
//              warp 0     warp 1      …           a lane: C · 16 bytes of a row
//     row 0   [chunk 0   |chunk 1    |…]          C = 1, or 2, 8 where rows are wider than 32, 64 chunks
//     row 1   [ …                      ]
//
// What a lane reads comes by cp.async into a ring of its own, SLOTS copies of 16 bytes ahead across all
// rows: no barrier, and nothing is read from memory twice. A ring is full before the kernels before this
// one are through (launch_ahead), as weights do not wait for them.
#include "matvec.cuh"

#include "dispatch.cuh"
#include "matvec_stream.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// out_i (+)= w_i · x for every row, or w_i · RMSNorm(x). GATED: of two matrices alike,
// out_j ← silu(w_0,j · x) (w_1,j · x). grid: blocks for every multiprocessor; block: a warp for each C
// chunks of 32 · 16 bytes of a row. Shared: StreamLayout. Reads every weight once, N·K·size
// bytes, and in every block x, and with a norm its weight.
template <class E, int C, bool NORM, bool GATED>
__global__ void __launch_bounds__(most_warps(C) * WARP, 1)
    matvec_kernel(Matrices<E> all, const float* x, NormOf<E> norm, int K, bool add) {
    using Part = LanePart<E, C>;
    constexpr int UNIT = GATED ? 2 : 1, ON = TURN<Part>;
    static_assert(SLOTS % C == 0 && ON % Part::AHEAD == 0 && ON % TOGETHER == 0 && PASS % ON == 0);
    int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
    int warps = int(blockDim.x) / WARP;
    StreamLayout own(dynamic_shared(), warps);
    float* sums = own.sums;
    int stride = own.stride;
    int first = all.template first<GATED>(int(blockIdx.x));
    int end = all.template first<GATED>(int(blockIdx.x) + 1);

    Part part(K, warp);
    RowCursor<E, GATED> next(all, first, K, part.column);
    ask_first(part, next, end);
    uint4 weight[C] = {};
    if constexpr (NORM) part.load(weight, norm.w);
    let_next_begin();
    await_kernels();
    part.load(part.x, x);
    float factor = 1;
    if constexpr (NORM) factor = norm_factor(weigh<E>(part.x, weight), norm, K, own.norm);

    for (int pass = first; pass < end; pass += PASS) {
        int stop = min(end, pass + PASS), mine = pass + int(threadIdx.x);
        float before = 0;  // a thread's first element of out, which comes while its sum is made
        if (!GATED && add && mine < stop)
            all.at(mine, [&](const E*, float* out, int j, int) { before = out[j]; });
        for (int turn = pass; turn < stop; turn += ON) {
#pragma unroll
            for (int offset = 0; offset < ON; offset += TOGETHER) {
                int r = turn + offset;
                if (r >= stop) break;
                float sum[TOGETHER] = {};  // of rows beyond the end: of anything
                meet_rows(part, next, offset, end, [&](int n, int c, const float (&w)[Part::EACH]) {
                    sum[n] = add_products(sum[n], part.x[c], w);
                });
                float one = warp_sums(sum);
                constexpr int LANES = WARP / TOGETHER;
                if (lane % LANES == 0) sums[(r - pass + lane / LANES) * stride + warp] = one;
            }
        }
        __syncthreads();  // all warps' sums of these rows are there
        auto total = [&](int i) {
            float sum = 0;
            for (int w = 0; w < warps; w++) sum += sums[i * stride + w];
            return sum;
        };
        for (int i = int(threadIdx.x); i < (stop - pass) / UNIT; i += int(blockDim.x)) {
            if constexpr (GATED) {
                all.out[0][pass / 2 + i] = gated_by(factor * total(2 * i), factor * total(2 * i + 1));
            } else {
                all.at(pass + i, [&](const E*, float* out, int j, int) {
                    out[j] = finished(total(i), factor, pass + i == mine ? before : add ? out[j] : 0);
                });
            }
        }
        if (stop < end) __syncthreads();  // the sums were read
    }
}

// The same for rows at any address and of any width, a warp a row.
template <class E>
__global__ void __launch_bounds__(256)
    plain_matvec_kernel(Matrices<E> all, const float* x, int K, bool add) {
    int lane = int(threadIdx.x) % WARP, i = int((blockIdx.x * blockDim.x + threadIdx.x) / WARP);
    let_next_begin();
    await_kernels();
    if (i >= all.rows) return;
    all.at(i, [&](const E* w, float* out, int j, int) {
        const E* row = w + size_t(j) * size_t(K);
        float sum = 0;
        for (int k = lane; k < K; k += WARP) sum = fmaf(x[k], to_float(row[k]), sum);
        sum = warp_sum(sum);
        if (lane == 0) out[j] = add ? out[j] + sum : sum;
    });
}

// ---- launchers ---------------------------------------------------------------------------------

template <class E>
static bool whole_loads(const void* x, const E* w, int K) {
    return size_t(K) * sizeof(E) % 16 == 0 && K % 4 == 0 &&
           reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(w) % 16 == 0;
}

template <class E, bool GATED>
static void matvec_streamed(CudaBackend& gpu, const Matrices<E>& all, const float* x,
                            const NormOf<E>& norm, int K, bool add) {
    StreamShape shape(gpu, K, sizeof(E));
    auto run = [&]<int C>() {
        int units = all.rows / (GATED ? 2 : 1);
        int blocks = std::min(units, gpu.multiprocessors * shape.blocks(gpu));
        check(uint64_t(all.rows) * uint64_t(blocks + 1) >> 32 == 0, "a product of %d rows: too many",
              all.rows);
        auto kernel = matvec_kernel<E, C, false, GATED>;
        if constexpr (takes_more(C))
            if (norm.w) kernel = matvec_kernel<E, C, true, GATED>;
        launch_ahead(kernel, dim3(unsigned(blocks)), shape.warps * WARP, shape.bytes, gpu.queue, all,
                     x, norm, K, add);
    };
    if (shape.C == 1) return run.template operator()<1>();
    if (shape.C == 2) return run.template operator()<2>();
    if constexpr (!GATED) return run.template operator()<8>();
    fail("gate and up of %d columns in one product", K);
}

// Whether the rows can stream: whole copies, and a block that takes them.
template <class E>
static bool can_stream(const CudaBackend& gpu, const Matrices<E>& all, const float* x, int K) {
    bool whole = StreamShape(gpu, K, sizeof(E)).C > 0;
    for (int i = 0; i < all.count; i++) whole = whole && whole_loads(x, all.w[i], K);
    return whole;
}

// x as products of weights of type E read it: its norm on the way where that can be, with a weight of the
// same type; or made before.
template <class E>
static const float* without_norm(CudaBackend& gpu, const Input& x, NormOf<E>& norm, bool streams, int K,
                                 int T) {
    norm = {};
    if (!x.norm) return x.x;
    const E* w = static_cast<const E*>(x.norm->data);
    bool takes = streams && takes_more(StreamShape(gpu, K, sizeof(E)).C);
    takes = takes && (T == 1 || reinterpret_cast<uintptr_t>(x.normed) % 16 == 0);
    if (takes && x.norm->dtype == DTYPE_OF<E> && whole_loads(x.x, w, K)) {
        norm = {w, x.eps};
        return x.x;
    }
    gpu.rmsnorm(x.normed, x.x, *x.norm, x.eps, T);
    return x.normed;
}

// The same matrices for token t of several.
template <class E>
static Matrices<E> of_token(Matrices<E> all, int t) {
    for (int i = 0; i < all.count; i++) all.out[i] += size_t(t) * size_t(all.N[i]);
    return all;
}

template <class E, bool GATED>
static void stream(CudaBackend& gpu, const Matrices<E>& all, const float* x, const NormOf<E>& norm,
                   float* normed, int K, int T, bool add) {
    StreamShape shape(gpu, K, sizeof(E));
    if (T > 1) return matvec_few<E, GATED>(gpu, shape, all, x, norm, normed, K, T, add);
    matvec_streamed<E, GATED>(gpu, all, x, norm, K, add);
}

template <class E>
static void matvec(CudaBackend& gpu, const Matrices<E>& all, const Input& input, int K, int T, bool add) {
    bool streams = can_stream(gpu, all, input.x, K);
    NormOf<E> norm;
    const float* x = without_norm(gpu, input, norm, streams, K, T);
    if (streams && can_stream(gpu, all, x, K))
        return stream<E, false>(gpu, all, x, norm, input.normed, K, T, add);
    for (int t = 0; t < T; t++)
        launch_ahead(plain_matvec_kernel<E>, dim3(unsigned((all.rows + 7) / 8)), 256, 0, gpu.queue,
                     of_token(all, t), x + size_t(t) * size_t(K), K, add);
}

// Products of one dtype go together, in the order in which they come.
void matvecs(CudaBackend& gpu, std::span<const Projection> all, const Input& x, int T, bool add) {
    for (size_t i = 0; i < all.size();) {
        DType dtype = all[i].w.dtype;
        for_dtype(dtype, [&]<class E>(E) {
            Matrices<E> together = {};
            for (; i < all.size() && all[i].w.dtype == dtype && together.count < MOST_PROJECTIONS;
                 i++) {
                int n = together.count++;
                together.out[n] = all[i].out, together.N[n] = all[i].w.N;
                together.w[n] = static_cast<const E*>(all[i].w.data);
                together.rows += all[i].w.N;
            }
            matvec(gpu, together, x, all[i - 1].w.K, T, add);
        });
    }
}

void gated_singly(CudaBackend& gpu, float* gate, float* up, const Input& x, const Weight& w_gate,
                  const Weight& w_up, int T) {
    for_dtype(w_gate.dtype, [&]<class E>(E) {
        const E *g = static_cast<const E*>(w_gate.data), *u = static_cast<const E*>(w_up.data);
        int N = w_gate.N, K = w_gate.K;
        Matrices<E> both = {{gate, up}, {g, u}, {N, N}, 2, 2 * N};
        NormOf<E> norm;
        bool streams = can_stream(gpu, both, x.x, K) && takes_more(StreamShape(gpu, K, sizeof(E)).C);
        const float* from = without_norm(gpu, x, norm, streams, K, T);
        if (streams && can_stream(gpu, both, from, K))
            return stream<E, true>(gpu, both, from, norm, x.normed, K, T, false);
        matvec(gpu, both, from, K, T, false);
        gpu.swiglu(gate, up, T, N);
    });
}

}  // namespace stief
