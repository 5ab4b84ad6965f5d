#include "backend/cpu/rebuilt_keys.h"

#include <cassert>
#include <cstring>

namespace stief {

static size_t whole_lines(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static size_t split_bytes(size_t width) {
    return whole_lines(RebuiltKeys::BLOCK * width * 2);
}

static size_t panel_bytes(const Kernels& kernels, size_t width) {
    return width * size_t(kernels.lanes) * 2;
}

static size_t panel_count(const Kernels& kernels, int d) {
    return size_t((d + kernels.lanes - 1) / kernels.lanes);
}

// The last store has the oldest rows and so the most.
static int rank_of(const CacheRows& keys) {
    int r = 0;
    for (const RowStore& store : keys.store)
        if (store.data) r = store.format.kept();
    return r;
}

// Whether a store's rows are multiplied as integers.
static bool by_integers(const CpuBackend& cpu, const CacheLayer& layer, const RowStore& store) {
    return store.data && !store.format.is_whole() && !cpu.exact && cpu.kernels.coded_product &&
           !cpu.kernels.split[int(layer.dtype)];
}

static size_t code_bytes(const CpuBackend& cpu, const CacheLayer& layer, const RowStore& store) {
    if (!by_integers(cpu, layer, store)) return 0;
    return whole_lines(code_panel_bytes(cpu.layout(store.format, layer.dtype), layer.d));
}

size_t RebuiltKeys::bytes(const CpuBackend& cpu, const CacheLayer& layer, const CacheRows& keys) {
    size_t r = size_t(rank_of(keys)), width = whole_steps(3 * r), d = size_t(layer.d);
    size_t panels = panel_bytes(cpu.kernels, width) * panel_count(cpu.kernels, layer.d);
    size_t floats = std::max(size_t(BLOCK) * d, 2 * width * d), codes = 0;
    for (const RowStore& store : keys.store) codes += code_bytes(cpu, layer, store);
    return split_bytes(width) + panels + whole_lines(floats * sizeof(float)) +
           whole_lines(BLOCK * r * size_of(layer.dtype)) + codes;
}

RebuiltKeys::RebuiltKeys(const CpuBackend& backend, const CacheLayer& layer, const CacheRows& keys,
                         char* scratch)
    : kernels(backend.kernels),
      cache(layer),
      head(keys),
      r(rank_of(keys)),
      width(whole_steps(3 * size_t(r))),
      cpu(backend) {
    assert(head.decode);
    size_t d = size_t(cache.d), floats = std::max(size_t(BLOCK) * d, 2 * width * d);
    split = scratch, panels = split + split_bytes(width);
    latent = reinterpret_cast<float*>(panels +
                                      panel_bytes(kernels, width) * panel_count(kernels, cache.d));
    rounded = reinterpret_cast<char*>(latent) + whole_lines(floats * sizeof(float));
    char* next = rounded + whole_lines(BLOCK * size_t(r) * size_of(cache.dtype));
    for (size_t i = 0; i < MOST_STORES; i++) {
        const RowStore& store = head.store[i];
        if (!by_integers(cpu, cache, store)) continue;
        kernels.code_panel(next, head.decode, head.mean, cpu.layout(store.format, cache.dtype), cache.d);
        code_panel[i] = next;
        next += code_bytes(cpu, cache, store);
    }
    pairs = kernels.split[int(cache.dtype)] && !cpu.exact && r > 0;
    if (!pairs) return;

    std::memset(split, 0, split_bytes(width));  // beyond 3r it stays
    size_t n = size_t(r) * d;
    uint16_t* parts = reinterpret_cast<uint16_t*>(latent);
    float* rest = latent + width * d;  // (r, d)
    auto narrow = kernels.narrow[int(DType::BF16)];
    narrow(parts, head.decode, n);
    kernels.widen[int(DType::BF16)](rest, parts, n);
    std::copy(parts, parts + n, parts + n);
    for (size_t i = 0; i < n; i++) rest[i] = head.decode[i] - rest[i];
    narrow(parts + 2 * n, rest, n);
    char* panel = panels;
    for (int c = 0; c < cache.d; c += kernels.lanes, panel += panel_bytes(kernels, width))
        kernels.pair_rows(panel, parts + c, d, std::min(kernels.lanes, cache.d - c), 3 * r);
}

void RebuiltKeys::rebuild(float* keys, const Run& run) const {
    assert(run.count <= BLOCK);
    if (const char* panel = code_panel[&run.store - head.store])
        return kernels.coded_product(keys, size_t(cache.d), run.rows, panel,
                                     cpu.layout(run.store.format, cache.dtype), run.count, cache.d);
    multiply(keys, run);
    const float one = 1;  // of μ to each
    if (head.mean)
        kernels.accumulate[int(DType::F32)](keys, size_t(cache.d), &one, 0, head.mean, run.count, 1,
                                            cache.d);
}

void RebuiltKeys::multiply(float* keys, const Run& run) const {
    size_t d = size_t(cache.d), count = size_t(run.count);
    const RowFormat& format = run.store.format;
    int kept = format.kept();
    if (!pairs || kept > r) {
        unpack(cpu, latent, size_t(kept), run, cache.dtype);
        head_product(kernels, keys, d, latent, size_t(kept), head.decode, run.count, cache.d, kept);
        return;
    }
    const void* rows = run.rows;
    if (!format.is_whole() || kept < r) {
        if (kept < r) std::fill(latent, latent + count * size_t(r), 0.0f);
        unpack(cpu, latent, size_t(r), run, cache.dtype);
        kernels.narrow[int(cache.dtype)](rounded, latent, count * size_t(r));
        rows = rounded;
    }
    kernels.split[int(cache.dtype)](split, width, rows, run.count, r);
    const char* panel = panels;
    for (int c = 0; c < cache.d; c += kernels.lanes, panel += panel_bytes(kernels, width))
        kernels.product_pairs(keys + c, d, split, width, panel, run.count,
                              std::min(kernels.lanes, cache.d - c), int(width), false);
}

}  // namespace stief
