// What every .cu file uses: checked calls, element types, reductions over a warp and a block.
// Common to the GPU and to the harness (tests/simt), which differ in <intrinsics.cuh> alone.
#pragma once
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include "base/bf16.h"
#include "base/check.h"

namespace stief {

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would report it once more
    fail("CUDA: %s (%s:%d: %s)", cudaGetErrorString(status), file, line, call);
}
inline void check_cublas(cublasStatus_t status, const char* call, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fail("cuBLAS: %s (%s:%d: %s)", cublasGetStatusString(status), file, line, call);
}

}  // namespace stief

// Throw an Error with the call and its place unless it succeeds.
#define CUDA_CHECK(call) ::stief::check_cuda((call), #call, __FILE__, __LINE__)
#define CUBLAS_CHECK(call) ::stief::check_cublas((call), #call, __FILE__, __LINE__)

#include <intrinsics.cuh>

namespace stief {

constexpr int WARP = 32;

// Takes a block's shared memory piece by piece, each aligned to 16 bytes. A layout is a constructor that
// takes its pieces: of dynamic_shared() in a kernel, and of null on the host, which learns how many bytes
// they are.
struct Carve {
    char* memory;
    size_t bytes = 0;

    template <class T>
    __host__ __device__ __forceinline__ T* take(size_t n = 1) {
#ifdef __CUDA_ARCH__  // where null is not asked for, the compiler knows this for shared memory
        T* piece = reinterpret_cast<T*>(memory + bytes);
#else
        T* piece = memory ? reinterpret_cast<T*>(memory + bytes) : nullptr;
#endif
        bytes += (n * sizeof(T) + 15) / 16 * 16;
        return piece;
    }
};

// A float is an element type like bf16 and f16.
__device__ __forceinline__ float to_float(float x) {
    return x;
}

// E ← float, rounded to nearest.
template <class E>
__device__ __forceinline__ E to_element(float x);
template <>
__device__ __forceinline__ float to_element<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 to_element<bf16>(float x) {
    return to_bf16(x);
}
template <>
__device__ __forceinline__ f16 to_element<f16>(float x) {
    return to_f16(x);
}

// The two elements E of a register, low first: the inverse of pack2.
template <class E>
__device__ __forceinline__ float2 unpack2(uint32_t pair) {
    return make_float2(to_float(E{uint16_t(pair)}), to_float(E{uint16_t(pair >> 16)}));
}

// The 16 / sizeof(E) elements of a 16-byte load.
template <class E>
__device__ __forceinline__ void unpack(float (&x)[16 / sizeof(E)], uint4 bytes) {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(E) == 4) {
            x[i] = __uint_as_float(words[i]);
        } else {
            float2 pair = unpack2<E>(words[i]);
            x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
        }
    }
}

// Coordinates j and j + d/2 of a head ← the same turned by an angle, as rope.cu says.
__device__ __forceinline__ void turn_pair(float& low, float& high, float cos, float sin) {
    float x = low;
    low = x * cos - high * sin, high = high * cos + x * sin;
}

// Four elements at an address that whole_4 is true of, in one load.
template <class E>
__device__ __forceinline__ float4 load_4(const E* x) {
    if constexpr (sizeof(E) == 4) {
        return *reinterpret_cast<const float4*>(x);
    } else {
        uint2 bits = *reinterpret_cast<const uint2*>(x);
        float2 low = unpack2<E>(bits.x), high = unpack2<E>(bits.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }
}
// The same the other way; E: float, bf16 or f16.
template <class E>
__device__ __forceinline__ void store_4(E* to, float4 x) {
    if constexpr (sizeof(E) == 4)
        *reinterpret_cast<float4*>(to) = x;
    else
        *reinterpret_cast<uint2*>(to) = make_uint2(pack2<E>(x.x, x.y), pack2<E>(x.z, x.w));
}
template <class E>
bool whole_4(const E* x) {
    return reinterpret_cast<uintptr_t>(x) % (4 * sizeof(E)) == 0;
}

// Σ x over the lanes of a warp, the same to all.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}

// Σ over the lanes of a warp of each of N numbers, N a power of two, transposed on the way: lane l has the
// sum of number l / (32 / N). One exchange a halving, N + 4 − log2 N in all instead of 5 N.
template <int N, int MASK = WARP / 2>
__device__ __forceinline__ float warp_sums(const float (&x)[N]) {
    if constexpr (N == 1) {
        float sum = x[0];
#pragma unroll
        for (int mask = MASK; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        return sum;
    } else {
        bool upper = int(threadIdx.x) % WARP & MASK;
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float other = __shfl_xor_sync(~0u, upper ? x[i] : x[i + N / 2], MASK);
            half[i] = (upper ? x[i + N / 2] : x[i]) + other;
        }
        return warp_sums<N / 2, MASK / 2>(half);
    }
}

// max x over the lanes of a warp, the same to all.
template <class T>
__device__ __forceinline__ T warp_max(T x) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        T other = __shfl_xor_sync(~0u, x, mask);
        x = other > x ? other : x;
    }
    return x;
}

// Σ x over the threads of a block, the same to all. Every thread of the block must come here.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {  // (blockDim / 32) shared
    x = warp_sum(x);
    __syncthreads();  // scratch is written only after every thread has read what it held before
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();  // and read only after every warp has written its sum
    x = scratch[0];
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) x += scratch[warp];
    return x;
}

// max x over the threads of a block, the same to all. Every thread of the block must come here.
template <class T>
__device__ __forceinline__ T block_max(T x, T* scratch) {  // (blockDim / 32) shared
    x = warp_max(x);
    __syncthreads();  // as in block_sum
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = scratch[0];
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++)
        x = scratch[warp] > x ? scratch[warp] : x;
    return x;
}

}  // namespace stief
