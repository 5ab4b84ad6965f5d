// Operations on single elements and rows: embed, swiglu, argmax, and the stream that measures
// memory. Twin: src/backend/cpu/elementwise.cpp.
#include <climits>

#include "cuda_backend.h"
#include "dispatch.cuh"

namespace stief {

constexpr int EMBED_BLOCK = 256;

// grid (T, pieces of EMBED_BLOCK · EACH elements), block 256: a thread has EACH elements beside
// each other. EACH = 4: D is a multiple of 4, and table and out begin at multiples of 4 elements.
template <class E, int EACH>
__global__ void __launch_bounds__(EMBED_BLOCK)
    embed_kernel(float* out, const E* table, const int32_t* ids, int D) {
    let_next_begin();
    await_kernels();
    size_t t = blockIdx.x;
    int i = (int(blockIdx.y) * EMBED_BLOCK + int(threadIdx.x)) * EACH;
    if (i >= D) return;
    const E* from = table + size_t(max(ids[t], 0)) * size_t(D) + i;
    float* to = out + t * size_t(D) + i;
    if constexpr (EACH == 4)
        *reinterpret_cast<float4*>(to) = load_4(from);
    else
        *to = to_float(*from);
}

__device__ __forceinline__ float silu_times(float gate, float up) {
    return gate / (1.0f + expf(-gate)) * up;
}

// One thread an element.
__global__ void swiglu_kernel(float* gate, const float* up, size_t n) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) gate[i] = silu_times(gate[i], up[i]);
}

// The same, rounded to bf16, which take the place of the row's first floats. grid T, block 1024.
// A turn of the block reads as many elements as it has threads, or WHOLE four times as many, and then
// writes them where all has been read before. WHOLE: F is a multiple of 4, rows are aligned to 16 bytes.
template <bool WHOLE>
__global__ void __launch_bounds__(1024) swiglu_rounded_kernel(float* gate, const float* up, int F) {
    constexpr int EACH = WHOLE ? 4 : 1;
    size_t row = size_t(blockIdx.x) * size_t(F);
    gate += row, up += row;
    bf16* to = reinterpret_cast<bf16*>(gate);
    for (int first = 0; first < F; first += EACH * int(blockDim.x)) {
        int i = first + EACH * int(threadIdx.x);
        float4 g = make_float4(0, 0, 0, 0), u = g;
        if (WHOLE && i < F) g = load_4(gate + i), u = load_4(up + i);
        if (!WHOLE && i < F) g.x = gate[i], u.x = up[i];
        __syncthreads();  // what lies under the bf16 of this turn was read
        if (WHOLE && i < F)
            store_4(to + i, make_float4(silu_times(g.x, u.x), silu_times(g.y, u.y),
                                        silu_times(g.z, u.z), silu_times(g.w, u.w)));
        if (!WHOLE && i < F) to[i] = to_bf16(silu_times(g.x, u.x));
    }
}

// The first of the largest elements of a piece of a row; index −1: one of them is NaN.
struct Largest {
    float x;
    int index;
};
// What a thread has: index INT_MAX: no element.
struct Candidate {
    float x = -INFINITY;
    int index = INT_MAX, damaged = 0;

    __device__ __forceinline__ void meet(float other, int at) {
        damaged |= other != other;
        if (other > x || index == INT_MAX) x = other, index = at;
    }
    // Of the whole block, the same to all. Shared: a float and an int a warp.
    __device__ __forceinline__ Largest of_block() const {
        float* largest = reinterpret_cast<float*>(dynamic_shared());
        int* numbers = reinterpret_cast<int*>(largest + blockDim.x / WARP);
        float all = block_max(x, largest);
        // Of those that hold the largest, the lowest index: the largest of its negative.
        int lowest = -block_max(x == all && index != INT_MAX ? -index : -INT_MAX, numbers);
        return {all, block_max(damaged, numbers) ? -1 : lowest};
    }
};

// grid (T, pieces of a row), block 1024; each element of out, or of parts (T, pieces). A turn of the block
// has AT_ONCE loads of a thread on their way, of 16 bytes where rows are WHOLE: V is a multiple of 4, x
// aligned. Its time is that of one turn where there are pieces, else V·4 bytes of one multiprocessor.
template <bool WHOLE>
__global__ void __launch_bounds__(1024)
    argmax_kernel(int32_t* out, Largest* parts, const float* x, int V, int piece) {
    constexpr int AT_ONCE = 8, EACH = WHOLE ? 4 : 1;
    int begin = int(blockIdx.y) * piece, end = min(V, begin + piece);
    x += size_t(blockIdx.x) * size_t(V);
    let_next_begin();
    await_kernels();

    Candidate best;
    int on = EACH * int(blockDim.x);
    for (int from = begin + EACH * int(threadIdx.x); from < end; from += AT_ONCE * on) {
        float one[AT_ONCE][EACH];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int j = from + n * on;
            if constexpr (WHOLE) {
                float4 four = j < end ? load_4(x + j) : make_float4(0, 0, 0, 0);
                one[n][0] = four.x, one[n][1] = four.y, one[n][2] = four.z, one[n][3] = four.w;
            } else {
                one[n][0] = j < end ? x[j] : 0;
            }
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++)
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int j = from + n * on + i;
                if (j < end) best.meet(one[n][i], j);
            }
    }
    Largest found = best.of_block();
    if (threadIdx.x > 0) return;
    if (parts) parts[blockIdx.x * gridDim.y + blockIdx.y] = found;
    else out[blockIdx.x] = found.index;
}

// The same of the pieces' largest, in the order of the row. grid T, block 128
__global__ void argmax_parts_kernel(int32_t* out, const Largest* parts, int pieces) {
    let_next_begin();
    await_kernels();
    Candidate best;
    for (int i = int(threadIdx.x); i < pieces; i += int(blockDim.x)) {
        Largest one = parts[int(blockIdx.x) * pieces + i];
        best.meet(one.x, one.index), best.damaged |= one.index < 0;
    }
    Largest found = best.of_block();
    if (threadIdx.x == 0) out[blockIdx.x] = found.index;
}

// sums_b ← the sum of block b's 64-bit words. grid any, block 256; 16 bytes a load, four in flight.
// Shared: one word a warp.
__global__ void stream_kernel(uint64_t* sums, const char* memory, size_t bytes) {
    unsigned long long* partial = reinterpret_cast<unsigned long long*>(dynamic_shared());
    constexpr int UNROLL = 4;
    size_t loads = bytes / 16, threads = size_t(gridDim.x) * blockDim.x;
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    unsigned long long sum = 0;
    auto add = [&](uint4 x) {
        sum += (static_cast<unsigned long long>(x.y) << 32 | x.x) +
               (static_cast<unsigned long long>(x.w) << 32 | x.z);
    };
    for (; i + (UNROLL - 1) * threads < loads; i += UNROLL * threads) {
        uint4 x[UNROLL];
        for (int u = 0; u < UNROLL; u++)
            x[u] = load_16_stream(memory + (i + size_t(u) * threads) * 16);
        for (int u = 0; u < UNROLL; u++) add(x[u]);
    }
    for (; i < loads; i += threads) add(load_16_stream(memory + i * 16));
    if (blockIdx.x == 0 && threadIdx.x < bytes % 16) {
        size_t at = loads * 16 + threadIdx.x;
        sum += static_cast<unsigned long long>(static_cast<unsigned char>(memory[at]))
               << 8 * (at % 8);
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

void CudaBackend::embed(float* out, const Weight& table, const Step& step) {
    int D = table.K;
    for_dtype(table.dtype, [&]<class E>(E) {
        const E* rows = static_cast<const E*>(table.data);
        bool whole = D % 4 == 0 && whole_4(out) && whole_4(rows);
        int each = EMBED_BLOCK * (whole ? 4 : 1);
        launch_ahead(whole ? embed_kernel<E, 4> : embed_kernel<E, 1>,
               dim3(unsigned(step.T), unsigned((D + each - 1) / each)), EMBED_BLOCK, 0, queue, out,
               rows, step.token ? step.token : ids, D);
    });
}

void CudaBackend::swiglu(float* gate, const float* up, int T, int F) {
    constexpr size_t BLOCK = 256;
    size_t n = size_t(T) * size_t(F);
    launch(swiglu_kernel, dim3(unsigned((n + BLOCK - 1) / BLOCK)), BLOCK, 0, queue, gate, up, n);
}

void CudaBackend::swiglu_rounded(float* gate, const float* up, int T, int F) {
    bool whole = F % 4 == 0 && whole_4(gate) && whole_4(up);
    launch(whole ? swiglu_rounded_kernel<true> : swiglu_rounded_kernel<false>, dim3(unsigned(T)), 1024,
           0, queue, gate, up, F);
}

void CudaBackend::argmax(int32_t* out, const float* x, int T, int V) {
    constexpr int BLOCK = 1024, PIECE = 4 * BLOCK, PARTS_BLOCK = 128;
    constexpr size_t A_WARP = sizeof(float) + sizeof(int);
    bool whole = V % 4 == 0 && whole_4(x);
    // Rows that are many have a block each.
    int pieces = T > 8 ? 1 : (V + PIECE - 1) / PIECE, piece = pieces > 1 ? PIECE : V;
    Largest* parts = nullptr;
    if (pieces > 1)
        parts = static_cast<Largest*>(scratch(Scratch::Reduction, size_t(T * pieces) * sizeof(Largest)));
    launch_ahead(whole ? argmax_kernel<true> : argmax_kernel<false>, dim3(unsigned(T), unsigned(pieces)),
                 BLOCK, BLOCK / WARP * A_WARP, queue, out, parts, x, V, piece);
    if (pieces > 1)
        launch_ahead(argmax_parts_kernel, dim3(unsigned(T)), PARTS_BLOCK, PARTS_BLOCK / WARP * A_WARP,
                     queue, out, parts, pieces);
}

uint64_t CudaBackend::stream(const void* memory, size_t bytes) {
    constexpr int BLOCK = 256, BLOCKS_EACH = 8;  // 2,048 threads a multiprocessor
    size_t blocks = size_t(multiprocessors) * BLOCKS_EACH;
    uint64_t* sums = static_cast<uint64_t*>(scratch(Scratch::Reduction, blocks * sizeof(uint64_t)));
    launch(stream_kernel, dim3(unsigned(blocks)), BLOCK, BLOCK / WARP * sizeof(uint64_t), queue,
           sums, static_cast<const char*>(memory), bytes);
    std::vector<uint64_t> host(blocks);
    download(host.data(), sums, blocks * sizeof(uint64_t));
    uint64_t sum = 0;
    for (uint64_t one : host) sum += one;
    return sum;
}

}  // namespace stief
