// out = x wᵀ, and out = x w for gradients. One token of x wᵀ, or several that are to come out as
// each alone would: inner products with the rows of w as they lie, one token at the speed of
// memory. All else: the blocked product of product_impl.h, exact in f32 or with x rounded to bf16
// for a matrix unit.
#include <algorithm>
#include <iterator>
#include <vector>

#include "backend/cpu/cpu_backend.h"

namespace stief {

// Rows of a piece of about 256 KB of weights, so that a kernel's scans cross pages; less where that
// would leave a thread with fewer than 4 pieces, but at least one row a scan.
static size_t piece_rows(const CpuBackend& cpu, const Weight& w) {
    constexpr size_t PIECE = size_t(256) << 10, SHARE = 4;
    size_t row = size_t(w.K) * size_of(w.dtype);
    size_t wanted = PIECE / (row * MATVEC_ROWS) + 1;
    size_t fair = size_t(w.N) / (MATVEC_ROWS * SHARE * size_t(cpu.threads.count()));
    return std::max<size_t>(1, std::min(wanted, fair)) * MATVEC_ROWS;
}

// Pieces of the outputs of several products are one job of the threads. count(one): outputs of one;
// most(one): of a piece; piece(one, first, n).
template <class Count, class Most, class Piece>
static void for_pieces(CpuBackend& cpu, std::span<const Projection> all, const Count& count,
                       const Most& most, const Piece& piece) {
    auto pieces = [&](const Projection& one) { return (count(one) + most(one) - 1) / most(one); };
    size_t total = 0;
    for (const Projection& one : all) total += pieces(one);
    cpu.threads.run(total, [&](size_t i) {
        const Projection* one = all.data();
        for (; i >= pieces(*one); one++) i -= pieces(*one);
        size_t first = i * most(*one);
        piece(*one, first, std::min(most(*one), count(*one) - first));
    });
}

// Tokens one by one through several matrices.
static void matvecs(CpuBackend& cpu, std::span<const Projection> all, const float* x, int T,
                    bool add) {
    auto outputs = [](const Projection& one) { return size_t(one.w.N); };
    auto most = [&](const Projection& one) { return piece_rows(cpu, one.w); };
    for_pieces(cpu, all, outputs, most, [&](const Projection& one, size_t first, size_t count) {
        const Weight& w = one.w;
        size_t N = size_t(w.N), K = size_t(w.K);
        const char* from = static_cast<const char*>(w.data) + first * K * size_of(w.dtype);
        if (T == 1) cpu.kernels.matvec[int(w.dtype)](one.out + first, x, from, count, K, add);
        else cpu.kernels.matvecs[int(w.dtype)](one.out + first, N, x, from, count, K, T, add);
    });
}

// What blocked products are of: out (T, N) = x (T, K) times matrices (K, N) that come in panels, of
// one x.
struct Blocked {
    std::span<const Projection> all;
    bool transposed;               // x w instead of x wᵀ
    const float* x;
    int T;
    bool add, pairs;               // pairs: x and panels in bf16

    size_t K() const { return size_t(transposed ? all[0].w.N : all[0].w.K); }
    size_t N(const Projection& one) const { return size_t(transposed ? one.w.K : one.w.N); }
};

// At most `width` columns of a matrix at a time.
template <class Piece>
static void for_columns(CpuBackend& cpu, const Blocked& p, size_t width, const Piece& piece) {
    for_pieces(
        cpu, p.all, [&](const Projection& one) { return p.N(one); },
        [&](const Projection&) { return width; }, piece);
}

// Copies x into rows that suit the caches, rounded where they are bf16, and zero beyond K.
static const char* stage_rows(CpuBackend& cpu, const Blocked& p, size_t row) {
    size_t element = p.pairs ? 2 : 4;
    std::vector<char>& memory = cpu.activations;
    memory.resize(size_t(p.T) * row + 64);
    char* rows = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    cpu.for_rows(size_t(p.T), p.K(), [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            char* to = rows + t * row;
            cpu.kernels.narrow[int(p.pairs ? DType::BF16 : DType::F32)](to, p.x + t * p.K(), p.K());
            std::fill(to + p.K() * element, to + row, char(0));
        }
    });
    return rows;
}

// Pieces are blocks of `lanes` outputs. Over k a block goes in chunks whose panel, at most 128 KB,
// stays in the second cache while all tokens pass. A chunk's sum starts at zero and has at most
// 1,024 terms, so that rounding errors hardly grow with K. pack(panel, w, j, n, i, k): the panel of
// outputs j … j + n − 1 and coordinates i … i + k − 1.
template <class Pack>
static void plain_products(CpuBackend& cpu, const Blocked& p, const Pack& pack) {
    size_t lanes = size_t(cpu.kernels.lanes);
    size_t chunk = std::min((size_t(128) << 10) / lanes, size_t(4096)) / 4;
    size_t stride = padded_row(p.K() * 4) / 4;
    const float* rows = reinterpret_cast<const float*>(stage_rows(cpu, p, stride * 4));
    for_columns(cpu, p, lanes, [&](const Projection& one, size_t j, size_t n) {
        char* panel = thread_scratch(lanes * chunk * 4);
        for (size_t i = 0; i < p.K(); i += chunk) {
            size_t k = std::min(chunk, p.K() - i);
            pack(panel, one.w, j, n, i, k);
            cpu.kernels.product(one.out + j, p.N(one), rows + i, stride,
                                reinterpret_cast<float*>(panel), lanes, p.T, int(n), int(k),
                                p.add || i > 0);
        }
    });
}

// A matrix unit outruns the caches: a panel of CHUNK coordinates (16 KB) stays in the nearest cache
// while all tokens pass, and the tokens' chunk in the second while GROUP panels do. So do the sums;
// out, whose rows are far apart, is written once.
template <class Pack>
static void pairs_products(CpuBackend& cpu, const Blocked& p, const Pack& pack) {
    constexpr size_t CHUNK = 256, GROUP = 8;
    const Kernels& kernels = cpu.kernels;
    size_t lanes = size_t(kernels.lanes), N = 0;
    for (const Projection& one : p.all) N += p.N(one);
    size_t fair = N / (lanes * 4 * size_t(cpu.threads.count()));
    size_t width = lanes * std::clamp<size_t>(fair, 1, GROUP), stride = padded_row(width * 4) / 4;
    size_t row = padded_row(whole_steps(p.K()) * 2);
    const char* rows = stage_rows(cpu, p, row);
    for_columns(cpu, p, width, [&](const Projection& one, size_t first, size_t n) {
        char* panels = thread_scratch(width * CHUNK * 2 + size_t(p.T) * stride * 4);
        float* sums = reinterpret_cast<float*>(panels + width * CHUNK * 2);   // (T, stride)
        for (size_t i = 0; i < p.K(); i += CHUNK) {
            size_t k = std::min(CHUNK, p.K() - i);
            for (size_t j = 0; j < n; j += lanes)
                pack(panels + j * whole_steps(k) * 2, one.w, first + j, std::min(lanes, n - j), i, k);
            kernels.product_pairs(sums, stride, rows + i * 2, row / 2, panels, p.T, int(n),
                                  int(whole_steps(k)), i > 0);
        }
        for (size_t t = 0; t < size_t(p.T); t++) {
            float *to = one.out + t * p.N(one) + first, *from = sums + t * stride;
            if (p.add)
                for (size_t j = 0; j < n; j++) to[j] += from[j];
            else std::copy(from, from + n, to);
        }
    });
}

template <class Pack>
static void blocked_products(CpuBackend& cpu, const Blocked& p, const Pack& pack) {
    if (p.pairs) pairs_products(cpu, p, pack);
    else plain_products(cpu, p, pack);
}

static bool in_pairs(const CpuBackend& cpu, const Weight& w, int T) {
    return !cpu.exact && w.dtype == DType::BF16 && cpu.kernels.product_pairs && T > 1;
}

static void matmul_tokens(CpuBackend& cpu, std::span<const Projection> all, const float* x, int T,
                          bool add) {
    for (bool pairs : {false, true}) {
        std::vector<Projection> some;
        std::copy_if(all.begin(), all.end(), std::back_inserter(some),
                     [&](const Projection& one) { return in_pairs(cpu, one.w, T) == pairs; });
        if (some.empty()) continue;
        Blocked products{some, false, x, T, add, pairs};
        blocked_products(cpu, products, [&](char* panel, const Weight& w, size_t j, size_t n, size_t i,
                                            size_t k) {
            const Kernels& kernels = cpu.kernels;
            size_t K = size_t(w.K);
            const char* from = static_cast<const char*>(w.data) + (j * K + i) * size_of(w.dtype);
            if (pairs) kernels.pack_pairs(panel, from, K, int(n), int(k));
            else kernels.pack[int(w.dtype)](reinterpret_cast<float*>(panel), from, K, int(n), int(k));
        });
    }
}

void CpuBackend::matmul(std::span<const Projection> all, const Input& input, int T, bool add) {
    const float* x = input.norm ? input.normed : input.x;
    if (input.norm) rmsnorm(input.normed, input.x, *input.norm, input.eps, T);
    if (T == 1 || singly) return matvecs(*this, all, x, T, add);
    matmul_tokens(*this, all, x, T, add);
}

// Here the rows of w are the rows of the panel: nothing to transpose.
void CpuBackend::matmul_transposed(float* out, const float* x, const Weight& w, int T) {
    size_t columns = size_t(w.K), width = size_of(w.dtype), lanes = size_t(kernels.lanes);
    Projection one[] = {{out, w}};
    Blocked product{one, true, x, T, false, in_pairs(*this, w, T)};
    blocked_products(*this, product, [&](char* panel, const Weight&, size_t j, size_t n, size_t i, size_t k) {
        const char* from = static_cast<const char*>(w.data) + (i * columns + j) * width;
        if (product.pairs) return kernels.pair_rows(panel, from, columns, int(n), int(k));
        for (size_t s = 0; s < k; s++, from += columns * width) {
            float* to = reinterpret_cast<float*>(panel) + s * lanes;
            kernels.widen[int(w.dtype)](to, from, n);
            std::fill(to + n, to + lanes, 0.0f);
        }
    });
}

}  // namespace stief
