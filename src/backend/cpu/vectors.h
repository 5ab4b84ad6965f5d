// Four floats at a time for the loops of the way back (backward*.cpp): 128-bit
// vectors are in every x86-64 and aarch64, so that none has to be chosen.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace stief::vectors {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));

inline Four load(const float* x, size_t width = 4) {
    Four v = {};
    if (width == 4)
        std::memcpy(&v, x, 16);
    else
        for (size_t j = 0; j < width; j++) v[j] = x[j];
    return v;
}
inline void store(float* x, Four v, size_t width = 4) {
    if (width == 4)
        std::memcpy(x, &v, 16);
    else
        for (size_t j = 0; j < width; j++) x[j] = v[j];
}
inline float sum(Four v) {
    return (v[0] + v[2]) + (v[1] + v[3]);
}

// at(i, width) for i = 0, 4, 8, …; width is 4 but for the last.
template <class F>
void by_fours(size_t n, const F& at) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) at(i, size_t(4));
    if (i < n) at(i, n - i);
}

// e^x to 2 units in the last place for −87 ≤ x ≤ 88, clamped there (Cephes: x = n ln 2 + r, |r| ≤ ½
// ln 2, a polynomial in r, and n into the exponent).
inline Four exp(Four x) {
    const Four zero = {};
    x = x < -87.0f ? zero - 87.0f : x;
    x = x > 88.0f ? zero + 88.0f : x;
    Four shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2²³: rounds to an integer
    Four n = shifted - 12582912.0f;
    Four r = x - n * 0.693359375f;  // ln 2 in two parts
    r = r + n * 2.12194440e-4f;
    Four p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    FourInts bits, exponent;
    std::memcpy(&bits, &p, 16);
    std::memcpy(&exponent, &shifted, 16);
    bits += (exponent - 0x4b400000) << 23;
    std::memcpy(&p, &bits, 16);
    return p;
}

}  // namespace stief::vectors
