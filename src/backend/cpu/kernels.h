// The inner loops of the CPU backend as one table for each instruction set. All that is fast on the
// CPU is behind these pointers; what is above them is compiled for the plainest processor. Every
// function works on one thread, for any size, with weights and cache rows at any address.
//
// n lanes: outputs of one panel, the packed form of up to `lanes` rows of a matrix:
//     plain   (k, lanes) f32                       panel[i][j] = w_j,i
//     pairs   (k/2, lanes, 2) bf16                 as vdpbf16ps (AVX-512) and tdpbf16ps (AMX) read
// Lanes beyond n are zero.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/cpu/angles.h"
#include "backend/cpu/row_layout.h"

namespace stief {

constexpr int MATVEC_ROWS = 12;   // scans of a matvec: of a multiple of them no row is left over
constexpr int PAIRS_K = 32;       // the pairs product takes k in multiples, x and panel zero-filled

// Two rows of logits as distributions: softmax(z)_j = e^(z_j − most) scale.
struct DivergenceOf {
    float most_p, most_q, scale_p, scale_q;
    float shift;  // of ln q − ln p: ln scale_p − ln scale_q
};

// What coded_product may round away of what the codes of a row have lost, in mean squares. SmolLM2's
// default cache measures 0.00177 nats with it and 0.00178 without.
constexpr float PRODUCT_LOSS = 1.0f / 64;

struct Kernels {
    const char* name;
    int lanes;

    // out_j = w_j · x, or += where add                     w (rows, K), rows = outputs
    void (*matvec[3])(float* out, const float* x, const void* w, size_t rows, size_t K, bool add);
    // The same for T tokens, each to the last bit as matvec has it; a row of w is read once.
    // out (T, ·), x (T, K)
    void (*matvecs[3])(float* out, size_t out_stride, const float* x, const void* w, size_t rows,
                       size_t K, int T, bool add);

    // out_h,s = q_h · row_s                                 out (m, ·), q (m, ·), rows (count, r)
    void (*scores[3])(float* out, size_t out_stride, const float* q, size_t q_stride,
                      const void* rows, int m, int count, int r);
    // acc_h += Σ_s p_h,s row_s                              acc (m, ·), p (m, ·), rows (count, r)
    void (*accumulate[3])(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                          const void* rows, int m, int count, int r);

    // Rows of mixed widths (row_format.h), `count` of them layout.bytes apart. Up to
    // ROW_SLACK bytes beyond the last one may be read.
    //
    // The same search as pack_row: the same bytes, but where a coordinate lies on a rounding's edge
    // or two scales cost the same.                        x (count, ·), weight (kept) or null
    void (*pack_rows)(void* rows, const float* x, size_t x_stride, const float* weight,
                      const RowLayout& layout, int count);
    // As unpack_row, to f32's roundings.                  out (count, ·)
    void (*unpack_rows)(float* out, size_t out_stride, const void* rows, const RowLayout& layout,
                        int count);
    // scores and accumulate over such rows. With AVX2 and VBMI codes are multiplied as integers: q and
    // p in 16 bits of a fixed point (vbmi_*.h have the bounds), sums exact. Where f32 arithmetic
    // is asked for (Backend::exact), unpack_rows and the functions of f32 rows are it.
    void (*coded_scores)(float* out, size_t out_stride, const float* q, size_t q_stride,
                         const void* rows, const RowLayout& layout, int m, int count);
    void (*coded_accumulate)(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                             const void* rows, const RowLayout& layout, int m, int count);

    // out (count, d) ← μ + c[:kept] D of such rows: keys rebuilt. D (kept, d) and μ (d), null: 0, come
    // as a panel of code_panel_bytes, made once for many rows. As exact as coded_scores, but for
    // PRODUCT_LOSS. Null where unpack_rows and product are as fast.
    void (*code_panel)(void* panel, const float* D, const float* mean, const RowLayout& layout, int d);
    void (*coded_product)(float* out, size_t out_stride, const void* rows, const void* panel,
                          const RowLayout& layout, int count, int d);

    // out_h,s = q_h · x_s rotated by its own angles         x, angle (count, 2, half)
    void (*turned_scores)(float* out, size_t out_stride, const float* q, size_t q_stride,
                          const float* x, const float* angle, int m, int count, size_t half);

    // out_h,s += w_h · (cos, sin) of positions first … first + count − 1: of the first Angles::SPAN by
    // their own, of others by those of SPAN positions, cos(a + b) = cos a cos b − sin a sin b.
    // w (m, ·), rotation (·, 2, half) from position 0 on; angles: of it, read only for positions from SPAN on
    void (*add_angles)(float* out, size_t out_stride, const float* w, size_t w_stride,
                       const Angles& angles, const float* rotation, int first, int count, int m,
                       size_t half);

    float (*largest)(const float* x, size_t n);              // NaN is passed over; −∞ where n = 0
    float (*exp_sum)(float* x, size_t n, float shift);       // x ← e^(x − shift), returns Σ x
    // Σ e^(x − shift), and Σ p (e^δ − 1 − δ) with δ = ln q − ln p: of at most 1024 terms in float, of
    // those in double. x, zp, zq (n)
    double (*exp_total)(const float* x, size_t n, float shift);
    double (*divergence)(const float* zp, const float* zq, size_t n, const DivergenceOf& of);
    void (*scale)(float* x, size_t n, float factor);         // x ← factor · x
    // x_j, x_j+half turned by one position's angles          x (2, half), angle (2, half) cos, sin
    void (*rotate)(float* x, const float* angle, size_t half);
    void (*swiglu)(float* gate, const float* up, size_t n);  // gate ← gate / (1 + e^−gate) · up
    void (*widen[3])(float* out, const void* in, size_t n);  // exact
    void (*narrow[3])(void* out, const float* in, size_t n); // to nearest, ties to even

    // panel ← n <= lanes rows of k elements that are w_stride elements apart
    void (*pack[3])(float* panel, const void* w, size_t w_stride, int n, int k);
    void (*pack_pairs)(void* panel, const void* w, size_t w_stride, int n, int k);
    // panel ← n <= lanes columns of k rows of bf16; null as product_pairs is.
    void (*pair_rows)(void* panel, const void* rows, size_t row_stride, int n, int k);

    // out = x panel, or += where add                        out (T, n <= lanes), x (T, k)
    void (*product)(float* out, size_t out_stride, const float* x, size_t x_stride,
                    const float* panel, size_t panel_stride, int T, int n, int k, bool add);
    // The same in bf16, with any n: the panels of `lanes` outputs each lie one after another. Null
    // where the processor has no unit for it.
    void (*product_pairs)(float* out, size_t out_stride, const void* x, size_t x_stride,
                          const void* panels, int T, int n, int k, bool add);
    // out (count, ·) ← c₁ c₂ c₁ of each row c (r), in bf16, with c₁ + c₂ = c to the last bit. Null
    // for f32, and where three products of pairs are no faster than one of f32.
    void (*split[3])(void* out, size_t out_stride, const void* rows, int count, int r);

    uint64_t (*checksum)(const void* memory, size_t bytes);  // Σ of its 64-bit words, zero-filled
};

// A panel of integers of up to 16 bits, its columns' units, what biased levels add, μ, D's rows of whole
// elements as they are (CodePanel of integers_impl.h).
constexpr size_t code_panel_bytes(const RowLayout& layout, int d) {
    size_t columns = (size_t(d) + 15) / 16 * 16;
    return 64 + columns * (12 + 2 * size_t(layout.codes) + 4 * size_t(layout.whole));
}

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_neon;

void pack_rows_vbmi(void* rows, const float* x, size_t x_stride, const float* weight,
                    const RowLayout& layout, int count);
void unpack_rows_vbmi(float* out, size_t out_stride, const void* rows, const RowLayout& layout,
                      int count);
void coded_scores_vbmi(float* out, size_t out_stride, const float* q, size_t q_stride,
                       const void* rows, const RowLayout& layout, int m, int count);
void coded_accumulate_vbmi(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                           const void* rows, const RowLayout& layout, int m, int count);
void code_panel_vbmi(void* panel, const float* D, const float* mean, const RowLayout& layout, int d);
void coded_product_vbmi(float* out, size_t out_stride, const void* rows, const void* panel,
                        const RowLayout& layout, int count, int d);

void product_pairs_amx(float* out, size_t out_stride, const void* x, size_t x_stride,
                       const void* panels, int T, int n, int k, bool add);
void split_f16_amx(void* out, size_t out_stride, const void* rows, int count, int r);
void split_bf16_amx(void* out, size_t out_stride, const void* rows, int count, int r);

// The table of that name, or the fastest for "auto". Error where this machine cannot run it.
const Kernels& choose_kernels(const char* name);

}  // namespace stief
