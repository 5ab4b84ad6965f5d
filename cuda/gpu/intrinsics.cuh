// What only a GPU has (sm_80 and later), as the names that kernels use; tests/simt/intrinsics.cuh
// gives the same names a plain meaning on the CPU. Fragments: g = lane / 4, t = lane % 4, low half
// first. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k8", "ldmatrix", "cp.async".
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

namespace stief {

// Whether this machine lets a kernel begin while the one before it runs (programmatic dependent
// launch), in captured steps too: sm_90, runtime and driver 12.3.
inline bool starts_ahead() {
    static const bool can = [] {
        int major = 0, driver = 0, runtime = 0;
        CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
        CUDA_CHECK(cudaDriverGetVersion(&driver));
        CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
        return major >= 9 && driver >= 12030 && runtime >= 12030;
    }();
    return can;
}

template <class... Params, class... Args>
void start_kernel(bool ahead, void (*kernel)(Params...), dim3 grid, int block, size_t shared_bytes,
                  cudaStream_t stream, Args&&... args) {
    constexpr size_t WITHOUT_ASKING = 48 << 10;  // shared memory any kernel may have
    if (!grid.x || !grid.y || !grid.z) return;
    if (shared_bytes > WITHOUT_ASKING) {
        // The most there is and not what this launch takes: a captured launch keeps the larger one.
        static const int most = [] {
            int bytes = 0;
            CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
            return bytes;
        }();
        CUDA_CHECK(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3(unsigned(block));
    config.dynamicSmemBytes = shared_bytes, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = ahead && starts_ahead();
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
    CUDA_CHECK(cudaGetLastError());
}

// kernel(args...) on grid blocks of `block` threads, after everything before it on the stream.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, int block, size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
    start_kernel(false, kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}
// The same, but blocks may begin as soon as those of the kernel before it leave room. For kernels
// every thread of which calls await_kernels(): until then they read only what no kernel writes.
template <class... Params, class... Args>
void launch_ahead(void (*kernel)(Params...), dim3 grid, int block, size_t shared_bytes,
                  cudaStream_t stream, Args&&... args) {
    start_kernel(true, kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

// What launch_ahead has started waits here for all kernels before it, and for what they wrote.
__device__ __forceinline__ void await_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Once every block has come here, the blocks of the next kernel may begin.
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The block's dynamic shared memory.
__device__ __forceinline__ char* dynamic_shared() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

// threadIdx.x, read where it stands: what follows from it is found out again there, and fills no
// registers from a loop's beginning on.
__device__ __forceinline__ unsigned thread_again() {
    unsigned x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

// ---- conversions -------------------------------------------------------------------------------
// On the host those of base/bf16.h; on the device its own, NaN made canonical.

__host__ __device__ __forceinline__ float to_float(bf16 h) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(uint32_t(h.bits) << 16);
#else
    return to_float<>(h);
#endif
}
__host__ __device__ __forceinline__ float to_float(f16 h) {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
    return x;
#else
    return to_float<>(h);
#endif
}
__host__ __device__ __forceinline__ bf16 to_bf16(float x) {
#ifdef __CUDA_ARCH__
    bf16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
    return h;
#else
    return to_bf16<>(x);
#endif
}
__host__ __device__ __forceinline__ f16 to_f16(float x) {
#ifdef __CUDA_ARCH__
    f16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
    return h;
#else
    return to_f16<>(x);
#endif
}

// Two elements E (bf16 or f16) in one register, low first.
template <class E>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
    uint32_t pair;
    if constexpr (std::is_same_v<E, bf16>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// a − b of two elements E in each register, where the differences are elements.
template <class E>
__device__ __forceinline__ uint32_t subtract2(uint32_t a, uint32_t b) {
    uint32_t pair;
    if constexpr (std::is_same_v<E, bf16>)  // b · −1 + a: sm_80 has no other
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(b), "r"(0xbf80bf80u), "r"(a));
    else
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}

// a b, a b + c rounded once, and −a, of two f16 in each register.
__device__ __forceinline__ uint32_t multiply2(uint32_t a, uint32_t b) {
    uint32_t pair;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}
__device__ __forceinline__ uint32_t multiply_add2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t pair;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
}
__device__ __forceinline__ uint32_t negate2(uint32_t a) {
    uint32_t pair;
    asm("neg.f16x2 %0, %1;" : "=r"(pair) : "r"(a));
    return pair;
}

// Byte i of the result is the one of the eight of (low, high) that nibble i of the selector names,
// 0 … 7; of 8 … 15 its sign, eight times. Of the selector the lower half counts.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
    return bytes;
}
// Bits of `mask` from y, the others from x: one instruction, of which ptxas makes two unasked.
__device__ __forceinline__ uint32_t select_bits(uint32_t x, uint32_t y, uint32_t mask) {
    uint32_t bits;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(bits) : "r"(mask), "r"(y), "r"(x));
    return bits;
}
// The 32 bits of (low, high) from bit `shift` modulo 32 on.
__device__ __forceinline__ uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
    return __funnelshift_r(low, high, shift);
}

// 2^x, to two units of the last place; 0 where it would be subnormal.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// first + ⌊count · min(max(x y + 1/2, 0), 1)⌋, NaN as 0; below 2^23. In two instructions: the bits of a
// subnormal float are its number of units 2^-149, and a sum that is rounded down to one is ⌊ ⌋.
__device__ __forceinline__ uint32_t place_of(float x, float y, uint32_t count, uint32_t first) {
    float part, place;
    asm("fma.rn.sat.f32 %0, %1, %2, 0f3f000000;" : "=f"(part) : "f"(x), "f"(y));
    asm("fma.rm.f32 %0, %1, %2, %3;"
        : "=f"(place)
        : "f"(part), "f"(__uint_as_float(count)), "f"(__uint_as_float(first)));
    return __float_as_uint(place);
}
// A number of 32 bits: of 8 or 16 bits, as nvcc would have it, a conversion takes eight times as long.
__device__ __forceinline__ float float_of(int x) {
    float y;
    asm("cvt.rn.f32.s32 %0, %1;" : "=f"(y) : "r"(x));
    return y;
}
// The least of a warp's x, the same to all.
__device__ __forceinline__ uint32_t warp_least(uint32_t x) {
    return __reduce_min_sync(~0u, x);
}
// The number of the lowest bit of x that is one; −1 of 0.
__device__ __forceinline__ int lowest_bit(uint32_t x) {
    return __ffs(int(x)) - 1;
}

// ---- tensor cores: the 32 lanes of a warp together, none missing ------------------------------

// d (16, 8) += a (16, 16) b (16, 8), E = bf16 or f16. A register of a or b holds two neighbours:
//   a[0] (g, 2t)  a[1] (g+8, 2t)  a[2] (g, 2t+8)  a[3] (g+8, 2t+8), and the next column
//   b[0] (2t, g)  b[1] (2t+8, g), and the next row       d[0..1] (g, 2t..)  d[2..3] (g+8, 2t..)
template <class E>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<E, bf16>)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return unsigned(__cvta_generic_to_shared(shared));
}

// N matrices of 8 rows of 16 bytes. Lane 8i + j names row j of matrix i; r[i] is matrix i's
// elements (g, 2t) and (g, 2t+1). Transposed: (2t, g) and (2t+1, g).
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4],
                                                          const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
// A matrix of 8 x 8 elements of 16 bits, transposed: in, a lane holds (g, 2t) and (g, 2t+1); out, the
// elements (2t, g) and (2t+1, g).
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// ---- memory -----------------------------------------------------------------------------------

// 16 bytes, both ends aligned to 16, there after copy_async_wait; zeros where not valid (no read).
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}
// The same for 8 bytes, both ends aligned to 8.
__device__ __forceinline__ void copy_async_8(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 8 : 0)
                 : "memory");
}
// And 4.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
                 : "memory");
}
// This thread's copies since the last commit become one group.
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the N latest groups of this thread are unfinished.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 16 aligned bytes of memory that nobody writes while the kernel runs, nor, where it was launched ahead,
// the kernels before it: no barrier and no await_kernels() orders this load.
__device__ __forceinline__ uint4 load_16(const void* global) {
    uint4 x;
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(__cvta_generic_to_global(global)));
    return x;
}
// The same for what is read once: it does not push anything out of the first cache.
__device__ __forceinline__ uint4 load_16_stream(const void* global) {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(__cvta_generic_to_global(global)));
    return x;
}

}  // namespace stief
