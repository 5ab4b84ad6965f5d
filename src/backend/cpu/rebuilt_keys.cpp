#include "backend/cpu/rebuilt_keys.h"

#include <cassert>
#include <cstring>
#include <utility>

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

void CpuBackend::prepare_keys(const CacheLayer& cache) {
    size_t each = 0;
    code_panels.assign(cache.k.size() * MOST_STORES, nullptr);
    auto layout_of = [&cache, &cpu = std::as_const(*this)](size_t i) {
        const RowStore& store = cache.k[i / MOST_STORES].store[i % MOST_STORES];
        return by_integers(cpu, cache, store) ? &cpu.layout(store.format, cache.dtype) : nullptr;
    };
    for (size_t i = 0; i < code_panels.size(); i++)
        if (const RowLayout* rows = layout_of(i))
            each = std::max(each, whole_lines(code_panel_bytes(*rows, cache.d)));
    if (!each) return;
    panel_memory.resize(each * code_panels.size() + 64);
    char* memory = panel_memory.data() + 64 - reinterpret_cast<uintptr_t>(panel_memory.data()) % 64;
    for_rows(code_panels.size(), size_t(cache.d) * size_t(cache.d), [&](size_t i, size_t end) {
        for (; i < end; i++) {
            const RowLayout* rows = layout_of(i);
            if (!rows) continue;
            const CacheRows& head = cache.k[i / MOST_STORES];
            char* to = memory + i * each;
            kernels.code_panel(to, head.decode, cache.rotated ? nullptr : head.mean, *rows, cache.d);
            code_panels[i] = to;
        }
    });
}

size_t RebuiltKeys::bytes(const CpuBackend& cpu, const CacheLayer& layer, size_t g) {
    size_t r = size_t(rank_of(layer.k[g])), width = whole_steps(3 * r), d = size_t(layer.d);
    size_t panels = panel_bytes(cpu.kernels, width) * panel_count(cpu.kernels, layer.d);
    size_t floats = std::max(size_t(BLOCK) * d, 2 * width * d);
    return split_bytes(width) + panels + whole_lines(floats * sizeof(float)) +
           whole_lines(BLOCK * r * size_of(layer.dtype));
}

RebuiltKeys::RebuiltKeys(const CpuBackend& backend, const CacheLayer& layer, size_t g, char* scratch)
    : kernels(backend.kernels),
      cache(layer),
      head(layer.k[g]),
      mean(cache.rotated ? nullptr : head.mean),
      r(rank_of(head)),
      width(whole_steps(3 * size_t(r))),
      cpu(backend) {
    assert(head.decode);
    size_t d = size_t(cache.d), floats = std::max(size_t(BLOCK) * d, 2 * width * d);
    split = scratch, panels = split + split_bytes(width);
    latent = reinterpret_cast<float*>(panels +
                                      panel_bytes(kernels, width) * panel_count(kernels, cache.d));
    rounded = reinterpret_cast<char*>(latent) + whole_lines(floats * sizeof(float));
    code_panel = cpu.code_panels.data() + g * MOST_STORES;
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
    if (mean)
        kernels.accumulate[int(DType::F32)](keys, size_t(cache.d), &one, 0, mean, run.count, 1, cache.d);
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
