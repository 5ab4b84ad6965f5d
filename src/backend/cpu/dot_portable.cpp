// The plain set: 4 lanes of the compiler's own vector type, which is SSE2, NEON or scalar code as
// the processor has it. Also the meaning of every other set.
#include "backend/cpu/kernels_impl.h"
#include "base/bf16.h"

namespace stief {
namespace {

struct V {
    static constexpr int W = 4, COLUMNS = 2, TOKENS = 4, REGISTERS = 16;
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    typedef uint64_t Words __attribute__((vector_size(16)));

    static F zero() { return F{}; }
    static F set1(float x) { return F{x, x, x, x}; }
    static F broadcast(const char* p) {
        float x;
        __builtin_memcpy(&x, p, 4);
        return set1(x);
    }
    static F add(F a, F b) { return a + b; }
    static F sub(F a, F b) { return a - b; }
    static F mul(F a, F b) { return a * b; }
    static F div(F a, F b) { return a / b; }
    static F fma(F a, F b, F c) { return a * b + c; }
    static F larger(F a, F b) { return a > b ? a : b; }
    static F smaller(F a, F b) { return a < b ? a : b; }
    static F where_less(F a, F b, F yes, F no) { return a < b ? yes : no; }
    static F round(F x) {  // |x| < 2²²: the adder drops the fraction
        F magic = set1(12582912.0f);
        return (x + magic) - magic;
    }
    static F floor(F x) {
        F near = round(x);
        return near + __builtin_convertvector(near > x, F);    // true is −1
    }
    static F lookup(const float* table, F index) {
        F x;
        for (int i = 0; i < 4; i++) x[i] = table[int32_t(index[i])];
        return x;
    }
    // Two factors: 2^n alone would leave the range before the product does. |n| <= 254.
    static F times_power_of_2(F x, F n) {
        I whole = __builtin_convertvector(n == n ? n : zero(), I), half = whole >> 1;
        return x * F((half + 127) << 23) * F((whole - half + 127) << 23);
    }
    static float sum(F x) { return (x[0] + x[1]) + (x[2] + x[3]); }
    // out (4) = the sums of four vectors
    static void sums(float* out, F a, F b, F c, F d) {
        out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
    }
    static float largest(F x) {
        float most = x[0];
        for (int i = 1; i < 4; i++) most = x[i] > most ? x[i] : most;
        return most;
    }

    template <DType E>
    static F load(const char* p) {
        if constexpr (E == DType::F32) {
            F x;
            __builtin_memcpy(&x, p, sizeof x);
            return x;
        } else {
            typedef uint16_t Halves __attribute__((vector_size(8)));
            Halves halves;
            __builtin_memcpy(&halves, p, sizeof halves);
            return from_half<E>(__builtin_convertvector(halves, I));
        }
    }
    template <DType E>
    static F load(const char* p, int n) {
        char part[16] = {};
        __builtin_memcpy(part, p, size_t(n) * BYTES<E>);
        return load<E>(part);
    }
    template <DType E>
    static F from_half(I bits) {
        if constexpr (E == DType::BF16) return F(bits << 16);
        // 2¹¹² rebiases the exponent, of subnormals too; infinity and NaN keep all exponent bits.
        F magnitude = F((bits & 0x7fff) << 13) * set1(0x1p112f);
        I special = ((bits & 0x7fff) >= 0x7c00) & 0x7f800000;
        return F(I(magnitude) | special | (bits & 0x8000) << 16);
    }
    template <DType E>
    static void store(char* p, F x) {
        store<E>(p, x, W);
    }
    template <DType E>
    static void store(char* p, F x, int n) {
        if constexpr (E == DType::F32) {
            __builtin_memcpy(p, &x, size_t(n) * 4);
        } else {
            uint16_t h[W];
            for (int i = 0; i < W; i++)
                h[i] = E == DType::F16 ? to_f16(x[i]).bits : to_bf16(x[i]).bits;
            __builtin_memcpy(p, h, size_t(n) * 2);
        }
    }

    // out (8) ← step level[code] of one group (coded_impl.h)
    template <class Table>
    static void levels(float* out, const char* from, const Table& table, const float* level,
                       float step) {
        for (int n = 0; n < 8; n++) {
            uint32_t word;
            __builtin_memcpy(&word, from + table.spread[4 * n], 4);
            out[n] = step * level[word >> table.shift[n] & uint32_t(table.mask)];
        }
    }

    static void transpose(F (&a)[4]) {
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < i; j++) {
                float above = a[j][i];
                a[j][i] = a[i][j];
                a[i][j] = above;
            }
    }
};

}  // namespace

const Kernels kernels_portable = make_table<V>("portable");

}  // namespace stief
