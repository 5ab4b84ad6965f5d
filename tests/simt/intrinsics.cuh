// cuda/gpu/intrinsics.cuh for the host compiler: the same names, played (simt.h). What the names
// compute and how fragments lie is said there; warp.cpp and async.cpp do it from PTX's tables.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "simt.h"

// ---- threads of a block -----------------------------------------------------------------------

inline void __syncthreads(stief::simt::Site site = stief::simt::Site::current()) {
    stief::simt::barrier(site);
}
inline void __syncwarp(unsigned mask = ~0u, stief::simt::Site site = stief::simt::Site::current()) {
    stief::simt::meet(mask, nullptr, nullptr, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace stief::simt {

template <class T>
struct Shuffle {
    T mine, got;
    unsigned from;  // lane
};

template <class T>
T shuffle(unsigned mask, T x, unsigned from, const Site& site) {
    Shuffle<T> operands{x, x, from};
    meet(
        mask, &operands,
        [](void** lanes, unsigned here) {
            for (unsigned i = 0; i < 32; i++) {
                if (!lanes[i]) continue;
                Shuffle<T>& lane = *static_cast<Shuffle<T>*>(lanes[i]);
                if (!(here >> lane.from & 1))
                    fail("lane %u shuffles from lane %u outside the mask %08x", i, lane.from, here);
                lane.got = static_cast<Shuffle<T>*>(lanes[lane.from])->mine;
            }
        },
        site);
    return operands.got;
}

inline unsigned lane() {
    return threadIdx.x % 32;
}

struct Vote {
    bool mine;
    unsigned all;
};

}  // namespace stief::simt

template <class T>
T __shfl_sync(unsigned mask, T x, int from, stief::simt::Site site = stief::simt::Site::current()) {
    return stief::simt::shuffle(mask, x, unsigned(from) % 32, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int by,
                  stief::simt::Site site = stief::simt::Site::current()) {
    return stief::simt::shuffle(mask, x, (stief::simt::lane() ^ unsigned(by)) % 32, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned by,
                   stief::simt::Site site = stief::simt::Site::current()) {
    unsigned lane = stief::simt::lane();
    return stief::simt::shuffle(mask, x, lane + by < 32 ? lane + by : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned by,
                 stief::simt::Site site = stief::simt::Site::current()) {
    unsigned lane = stief::simt::lane();
    return stief::simt::shuffle(mask, x, lane >= by ? lane - by : lane, site);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              stief::simt::Site site = stief::simt::Site::current()) {
    using stief::simt::Vote;
    Vote vote{predicate, 0};
    stief::simt::meet(
        mask, &vote,
        [](void** lanes, unsigned) {
            unsigned all = 0;
            for (unsigned i = 0; i < 32; i++)
                if (lanes[i] && static_cast<Vote*>(lanes[i])->mine) all |= 1u << i;
            for (unsigned i = 0; i < 32; i++)
                if (lanes[i]) static_cast<Vote*>(lanes[i])->all = all;
        },
        site);
    return vote.all;
}

template <class T>
__attribute__((no_sanitize("thread"), noinline)) T atomicAdd(T* sum, std::type_identity_t<T> x) {
    stief::simt::watch(sum, sizeof(T), stief::simt::Access::Atomic, SIMT_CODE);
    T before = *sum;
    *sum = before + x;
    return before;
}

// ---- functions that CUDA has and C++ has not --------------------------------------------------

using std::max;
using std::min;
inline float rsqrtf(float x) {
    return 1 / std::sqrt(x);
}
#define __expf(x) expf(x)  // glibc declares an __expf, but has none to link
inline float __uint_as_float(unsigned bits) {
    return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}

namespace stief {

// Gives the stream the grid to play, with its arguments copied.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, int block, size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
    std::tuple<Params...> copies(static_cast<Params>(args)...);
    simt::launch(grid, block, shared_bytes, stream, reinterpret_cast<const void*>(kernel),
                 [kernel, copies] { std::apply(kernel, copies); });
    CUDA_CHECK(cudaGetLastError());
}
template <class... Params, class... Args>
void launch_ahead(void (*kernel)(Params...), dim3 grid, int block, size_t shared_bytes,
                  cudaStream_t stream, Args&&... args) {
    std::tuple<Params...> copies(static_cast<Params>(args)...);
    simt::launch(grid, block, shared_bytes, stream, reinterpret_cast<const void*>(kernel),
                 [kernel, copies] { std::apply(kernel, copies); }, true);
    CUDA_CHECK(cudaGetLastError());
}
inline void await_kernels() {
    simt::await_kernels();
}
inline void let_next_begin() {}

inline char* dynamic_shared() {
    return simt::shared_memory();
}
inline unsigned thread_again() {
    return threadIdx.x;
}

// ---- registers, tensor cores, asynchronous copies ---------------------------------------------

template <class E>
uint32_t pack2(float low, float high) {
    if constexpr (std::is_same_v<E, bf16>)
        return to_bf16(low).bits | uint32_t(to_bf16(high).bits) << 16;
    else
        return to_f16(low).bits | uint32_t(to_f16(high).bits) << 16;
}
template <class E>
uint32_t subtract2(uint32_t a, uint32_t b) {
    auto half = [](uint32_t pair, int i) { return to_float(E{uint16_t(pair >> (16 * i))}); };
    return pack2<E>(half(a, 0) - half(b, 0), half(a, 1) - half(b, 1));
}
// In double, where a product of two f16 is exact and a sum with a third nearly so.
inline uint32_t multiply_add2(uint32_t a, uint32_t b, uint32_t c) {
    auto half = [](uint32_t pair, int i) { return double(to_float(f16{uint16_t(pair >> (16 * i))})); };
    return pack2<f16>(float(half(a, 0) * half(b, 0) + half(c, 0)),
                      float(half(a, 1) * half(b, 1) + half(c, 1)));
}
inline uint32_t multiply2(uint32_t a, uint32_t b) {
    return multiply_add2(a, b, 0x80008000);  // −0, which leaves a product's sign
}
inline uint32_t negate2(uint32_t a) {
    return a ^ 0x80008000;
}
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    uint64_t all = uint64_t(high) << 32 | low;
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t from = selector >> (4 * i) & 15, byte = uint32_t(all >> (8 * (from & 7)) & 255);
        bytes |= (from < 8 ? byte : byte & 128 ? 255u : 0u) << (8 * i);
    }
    return bytes;
}
inline uint32_t select_bits(uint32_t x, uint32_t y, uint32_t mask) {
    return (x & ~mask) | (y & mask);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
    return uint32_t((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline float power_of_two(float x) {
    float y = std::exp2(x);
    return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}
inline uint32_t place_of(float x, float y, uint32_t count, uint32_t first) {
    float part = std::fma(x, y, 0.5f);
    part = part > 0 ? std::min(part, 1.0f) : 0.0f;  // NaN: 0
    return first + uint32_t(double(count) * double(part));
}
inline float float_of(int x) {
    return float(x);
}
inline uint32_t warp_least(uint32_t x, simt::Site site = simt::Site::current()) {
    for (int mask = 16; mask > 0; mask /= 2) x = std::min(x, __shfl_xor_sync(~0u, x, mask, site));
    return x;
}
inline int lowest_bit(uint32_t x) {
    return x ? std::countr_zero(x) : -1;
}
namespace simt {

struct Mma {
    float* d;           // [4]
    const uint32_t* a;  // [4]
    const uint32_t* b;  // [2]
};
void mma_bf16(void** lanes, unsigned mask);  // each a Mma
void mma_f16(void** lanes, unsigned mask);

void transpose(void** lanes, unsigned mask);  // each (in, out)
// count matrices of 8 rows of 16 bytes.
void load_matrices(uint32_t* r, int count, bool transposed, const void* row, const Site& site);

}  // namespace simt

template <class E>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 simt::Site site = simt::Site::current()) {
    simt::Mma mine{d, a, b};
    simt::meet(~0u, &mine, std::is_same_v<E, bf16> ? simt::mma_bf16 : simt::mma_f16, site);
}
inline void load_matrix_x4(uint32_t (&r)[4], const void* shared_row,
                           simt::Site site = simt::Site::current()) {
    simt::load_matrices(r, 4, false, shared_row, site);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row,
                                      simt::Site site = simt::Site::current()) {
    simt::load_matrices(r, 4, true, shared_row, site);
}
inline uint32_t transpose_8x8(uint32_t pair, simt::Site site = simt::Site::current()) {
    uint32_t operands[2] = {pair, 0};
    simt::meet(~0u, operands, simt::transpose, site);
    return operands[1];
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
    simt::copy_async(shared, global, 16, valid);
}
inline void copy_async_8(void* shared, const void* global, bool valid) {
    simt::copy_async(shared, global, 8, valid);
}
inline void copy_async_4(void* shared, const void* global, bool valid) {
    simt::copy_async(shared, global, 4, valid);
}
inline void copy_async_commit() {
    simt::copy_async_commit();
}
template <int N>
void copy_async_wait(simt::Site site = simt::Site::current()) {
    simt::copy_async_wait(N, site);
}

uint4 load_16(const void* global);
inline uint4 load_16_stream(const void* global) {
    return load_16(global);
}

}  // namespace stief
