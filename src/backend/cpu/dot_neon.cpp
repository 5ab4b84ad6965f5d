// NEON of ARMv8: 4 lanes. What every 64-bit ARM has, so it needs no choice at start-up.
#include <arm_neon.h>

#include "backend/cpu/kernels_impl.h"

namespace stief {
namespace {

struct V {
    // 10 tokens × 2 vectors: 20 sums, 2 vectors of weights, and x, of 32 registers
    static constexpr int W = 4, COLUMNS = 2, TOKENS = 10, REGISTERS = 32;
    using F = float32x4_t;
    typedef uint64_t Words __attribute__((vector_size(16)));

    static F zero() { return vdupq_n_f32(0); }
    static F set1(float x) { return vdupq_n_f32(x); }
    static F broadcast(const char* p) {
        float x;
        __builtin_memcpy(&x, p, 4);
        return vdupq_n_f32(x);
    }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F larger(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static F smaller(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
    static F where_less(F a, F b, F yes, F no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
    static F round(F x) { return vrndnq_f32(x); }
    static F floor(F x) { return vrndmq_f32(x); }
    static F lookup(const float* table, F index) {
        int32_t at[4];
        vst1q_s32(at, vcvtq_s32_f32(index));
        F x = vdupq_n_f32(table[at[0]]);
        x = vsetq_lane_f32(table[at[1]], x, 1), x = vsetq_lane_f32(table[at[2]], x, 2);
        return vsetq_lane_f32(table[at[3]], x, 3);
    }
    // Two factors: 2^n alone would leave the range before the product does. |n| <= 254.
    static F times_power_of_2(F x, F n) {
        int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
        return mul(mul(x, power_of_2(half)), power_of_2(vsubq_s32(whole, half)));
    }
    static F power_of_2(int32x4_t n) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
    }
    static float sum(F x) { return vaddvq_f32(x); }
    // out (4) = the sums of four vectors
    static void sums(float* out, F a, F b, F c, F d) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }
    static float largest(F x) { return vmaxnmvq_f32(x); }

    template <DType E>
    static F load(const char* p) {
        if constexpr (E == DType::F32)
            return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p)));
        uint8x8_t bytes = vld1_u8(reinterpret_cast<const uint8_t*>(p));
        if constexpr (E == DType::F16) return vcvt_f32_f16(vreinterpret_f16_u8(bytes));
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(bytes), 16));
    }
    template <DType E>
    static F load(const char* p, int n) {
        char part[16] = {};
        __builtin_memcpy(part, p, size_t(n) * BYTES<E>);
        return load<E>(part);
    }

    static uint16x4_t to_bf16(F x) {
        uint32x4_t u = vreinterpretq_u32_f32(x);
        uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
        uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
        return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
    }
    template <DType E>
    static void store(char* p, F x) {
        uint8_t* to = reinterpret_cast<uint8_t*>(p);
        if constexpr (E == DType::F32) vst1q_u8(to, vreinterpretq_u8_f32(x));
        else if constexpr (E == DType::F16) vst1_u8(to, vreinterpret_u8_f16(vcvt_f16_f32(x)));
        else vst1_u8(to, vreinterpret_u8_u16(to_bf16(x)));
    }
    template <DType E>
    static void store(char* p, F x, int n) {
        char part[16];
        store<E>(part, x);
        __builtin_memcpy(p, part, size_t(n) * BYTES<E>);
    }

    // out (8) ← step level[code] of one group (coded_impl.h)
    template <class Table>
    static void levels(float* out, const char* from, const Table& table, const float* level,
                       float step) {
        uint8x16_t bytes = vld1q_u8(reinterpret_cast<const uint8_t*>(from));
        for (int n = 0; n < 8; n += 4) {
            uint32x4_t words =
                vreinterpretq_u32_u8(vqtbl1q_u8(bytes, vld1q_u8(table.spread + 4 * n)));
            words = vshlq_u32(words, vnegq_s32(vld1q_s32(table.shift + n)));
            words = vandq_u32(words, vdupq_n_u32(uint32_t(table.mask)));
            uint32_t code[4];
            vst1q_u32(code, words);
            for (int i = 0; i < 4; i++) out[n + i] = step * level[code[i]];
        }
    }

    static void transpose(F (&a)[4]) {
        float32x4x2_t top = vtrnq_f32(a[0], a[1]), bottom = vtrnq_f32(a[2], a[3]);
        a[0] = vcombine_f32(vget_low_f32(top.val[0]), vget_low_f32(bottom.val[0]));
        a[1] = vcombine_f32(vget_low_f32(top.val[1]), vget_low_f32(bottom.val[1]));
        a[2] = vcombine_f32(vget_high_f32(top.val[0]), vget_high_f32(bottom.val[0]));
        a[3] = vcombine_f32(vget_high_f32(top.val[1]), vget_high_f32(bottom.val[1]));
    }
};

}  // namespace

const Kernels kernels_neon = make_table<V>("neon");

}  // namespace stief
