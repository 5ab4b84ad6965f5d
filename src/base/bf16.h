// The two 16-bit floating-point formats of checkpoints and caches, and their conversion to float.
// bf16: 8 exponent bits, 7 mantissa bits, the upper half of a float. f16: IEEE 754 binary16.
// The conversions are templates of nothing, so that the processor's own instructions, plain
// functions of the same names in cuda/gpu/intrinsics.cuh, go first where those are included.
#pragma once
#include <bit>
#include <cstdint>

namespace stief {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <class = void>
constexpr float to_float(bf16 h) {
    return std::bit_cast<float>(uint32_t(h.bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN, overflow becomes infinity.
template <class = void>
constexpr bf16 to_bf16(float x) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t(u >> 16 | 0x40u)};
    return {uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

template <class = void>
constexpr float to_float(f16 h) {
    uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
    uint32_t rest = h.bits & 0x7fffu;                       // exponent and mantissa
    if (rest >= 0x7c00u)                                    // infinity, NaN
        return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u)                                     // normal: rebias 15 → 127
        return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000u));
    float magnitude = float(rest) * 0x1p-24f;               // subnormal: exact in a float
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Round to nearest, ties to even; NaN stays NaN, overflow becomes infinity.
template <class = void>
constexpr f16 to_f16(float x) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    uint16_t sign = uint16_t(u >> 16 & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
    if (u >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65520 or more
    if (u < 0x38800000u) {                                    // below 2⁻¹⁴: subnormal or zero
        float scaled = std::bit_cast<float>(u) + 0.5f;        // adding rounds to multiples of 2⁻²⁴
        return {uint16_t(sign | uint16_t(std::bit_cast<uint32_t>(scaled) - 0x3f000000u))};
    }
    return {uint16_t(sign | uint16_t((u - 0x38000000u + 0xfffu + (u >> 13 & 1u)) >> 13))};
}

}  // namespace stief
