// The CPU backend: the reference meaning of the seam, and what runs where there is no GPU.
// Activations and weights are in ordinary memory; weights are the mapped checkpoint itself.
//
// Results do not depend on the number of threads: a piece computes whole outputs, or a fixed part
// of a sum that is merged in a fixed order.
#pragma once
#include <deque>
#include <unordered_map>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/threads.h"

namespace stief {

// A step's queries as rows of keys meet them (cache_rows.cpp).
struct Queries {
    const float* latent;        // (T, H, d)
    const float* against_mean;  // (T, H, d)  meets (cos, sin) of a position; null: no key is less a mean

    Queries from(size_t at) const { return {latent + at, against_mean ? against_mean + at : nullptr}; }
};

struct CpuBackend final : Backend {
    const Kernels& kernels;
    Threads& threads;
    std::vector<char> activations;      // (T, K) of one product, padded, f32 or bf16

    CpuBackend(const BackendOptions& options, Threads& pool);
    size_t available() const override;
    void* alloc(size_t bytes, const char* what) override;
    void* alloc_cold(size_t bytes, const char* what, const std::string& path) override;
    void release(void* memory, size_t bytes) override;
    Weight bind(const Tensor& tensor) override;
    void upload(void* to, const void* host, size_t bytes) override;
    void download(void* host, const void* from, size_t bytes) override;
    bool begin_step(const Step& step) override;
    void end_step() override;

    void embed(float* out, const Weight& table, const Step& step) override;
    void rmsnorm(float* out, const float* x, const Weight& w, float eps, int T) override;
    using Backend::matmul;
    void matmul(std::span<const Projection> all, const Input& x, int T, bool add) override;
    void matmul_transposed(float* out, const float* x, const Weight& w, int T) override;
    void rope(float* x, const float* rotation, int heads, int d, const Step& step,
              bool back = false) override;
    void swiglu(float* gate, const float* up, int T, int F) override;
    void gated(Operand gate, float* up, const Input& x, const Weight& w_gate, const Weight& w_up,
               int T) override;
    void append(const CacheLayer& cache, float* q, float* k, const float* v, const float* rotation,
                const Step& step) override;
    void attend(Operand out, const float* q, const float* rotation, const CacheLayer& cache,
                const Step& step) override;
    void argmax(int32_t* out, const float* x, int T, int V) override;
    void score(RowScore* out, const float* logits, const float* full, const int32_t* next, int rows,
               int V) override;
    uint64_t stream(const void* memory, size_t bytes) override;

    std::vector<const char*> code_panels;   // of keys before rotation: (G, MOST_STORES); null: no integers
    AngleTable angle_table;             // of the rotation, made by steps beyond Angles::SPAN positions

    // The tables of a format; they stay where they are as long as the backend. Makes what it does
    // not have yet: for the caller's thread, before threads.run.
    const RowLayout& layout(const RowFormat& format, DType dtype);
    // One that was made, for any thread.
    const RowLayout& layout(const RowFormat& format, DType dtype) const {
        return layouts.find({format, dtype})->second;
    }

    // What the threads of append and attend will look up: the layouts of rows, and of keys that are
    // rebuilt D as integers, once for all pieces of attention.
    void prepare_rows(const CacheLayer& cache);
    void prepare_keys(const CacheLayer& cache);

    // Calls rows(first, end) over pieces of 0 … n−1 worth about 16,384 elements each, some µs;
    // `cost` is elements a row. A single piece runs on the caller, without waking anybody.
    template <class Function>
    void for_rows(size_t n, size_t cost, const Function& rows) {
        constexpr size_t PIECE = 16384;
        size_t each = cost < PIECE ? PIECE / (cost ? cost : 1) : 1;
        threads.run((n + each - 1) / each, [&](size_t i) {
            size_t end = (i + 1) * each;
            rows(i * each, end < n ? end : n);
        });
    }

    // The same over the heads of tokens: part(first, end, h, h_end) for tokens first … end − 1 and
    // heads h … h_end − 1. Many tokens come TOGETHER, of which products have no tile left over (of
    // 4, 6, 10 or 12 tokens, product_impl.h).
    template <class Function>
    void for_heads(size_t T, size_t heads, size_t cost, const Function& part) {
        constexpr size_t TOGETHER = 60;
        if (T == 1)
            return for_rows(heads, cost, [&](size_t h, size_t end) { part(size_t(0), T, h, end); });
        size_t runs = (T + TOGETHER - 1) / TOGETHER, most = T < TOGETHER ? T : TOGETHER;
        for_rows(runs * heads, most * cost, [&](size_t i, size_t end) {
            for (; i < end; i++) {
                size_t first = i / heads * TOGETHER, left = T - first, h = i % heads;
                part(first, first + (left < TOGETHER ? left : TOGETHER), h, h + 1);
            }
        });
    }

  private:
    Queries turn_queries(const float* q, const CacheLayer& cache, int T);
    void attend_singly(float* out, const Queries& q, const float* rotation, const CacheLayer& cache,
                       const Step& step);
    void attend_alike(float* out, const Queries& q, const float* rotation, const CacheLayer& cache,
                      const Step& step);
    void attend_tiles(float* out, const float* q, const float* latent, const float* rotation,
                      const CacheLayer& cache, const Step& step);
    void decode_values(float* out, const float* latent, const CacheLayer& cache, int T);

    const int32_t* home = nullptr;      // of the step at hand
    std::deque<std::pair<const void*, int32_t>> arrived;  // what steps have left there, oldest first
    // They are looked up by every block of rows.
    struct LayoutKey {
        RowFormat format;
        DType dtype;
        bool operator==(const LayoutKey&) const = default;
    };
    struct HashOfLayout {
        size_t operator()(const LayoutKey& key) const {
            size_t hash = size_t(key.dtype);
            for (uint16_t n : key.format.count) hash = hash * 0x9e3779b97f4a7c15 + n;
            return hash ^ hash >> 32;
        }
    };
    std::unordered_map<LayoutKey, RowLayout, HashOfLayout> layouts;
    std::vector<char> panel_memory;     // of code_panels
    std::vector<float> partials;        // of decode attention: (T, splits, H, values + 2)
    std::vector<char> expanded;         // tiles of keys and values of attend_tiles
    std::vector<float> attended;        // its largest scores and sums of so many tiles: (T, H, 2)
    std::vector<float> joint_latents;   // of joint values, before their decode: (T, H, G·d)
    std::vector<float> latents;         // queries in the keys' coordinates: (T, H, d)
    std::vector<float> against_means;   // and against what their means become: (T, H, d)
};

// Memory of the calling thread for the length of one piece; it only grows.
char* thread_scratch(size_t bytes);

// Rows of that many bytes, spaced by an odd number of cache lines: rows 4096 bytes apart would all
// fall into one set of the nearest cache.
constexpr size_t padded_row(size_t bytes) {
    size_t lines = (bytes + 63) / 64;
    return (lines + (lines % 2 == 0)) * 64;
}

// k filled to what a product of pairs takes.
constexpr size_t whole_steps(size_t k) {
    return (k + PAIRS_K - 1) / PAIRS_K * PAIRS_K;
}

}  // namespace stief
