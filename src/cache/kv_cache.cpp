#include "cache/kv_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace stief {

constexpr size_t SLACK = 64;  // floats that a product may read beyond a matrix (CacheRows)

// Blocks begin on a cache line, so that two heads never share one.
static size_t block_bytes(size_t positions, int r, DType dtype) {
    return (positions * size_t(r) * size_of(dtype) + 63) / 64 * 64;
}

// The ring must hold what the first token of a batch still sees and the batch itself.
static int ring_rows(const Bases& bases, int batch) {
    return bases.sinks + bases.recent > 0 ? bases.recent + batch : 0;
}

static size_t head_bytes(int r, int d, int capacity, int exact_rows, DType dtype) {
    size_t bytes = block_bytes(size_t(capacity), r, dtype);
    return r < d && exact_rows ? bytes + block_bytes(size_t(exact_rows), d, dtype) : bytes;
}

size_t KvCache::bytes_for(const Config& c, int capacity, DType dtype, const Bases* bases,
                          int batch) {
    size_t heads = size_t(c.L) * size_t(c.G), table = 2 * heads * sizeof(CacheRows);
    if (!bases) return table + 2 * heads * block_bytes(size_t(capacity), c.d, dtype);
    int ring = ring_rows(*bases, batch), exact_rows = ring ? bases->sinks + ring : 0;
    size_t bytes = table + (heads * 5 * size_t(c.d) * size_t(c.d) + SLACK) * sizeof(float);
    for (const LayerBasis& layer : bases->layer)
        for (const std::vector<HeadBasis>* side : {&layer.k, &layer.v})
            for (const HeadBasis& head : *side)
                bytes += head_bytes(head.r, c.d, capacity, exact_rows, dtype);
    return bytes;
}

// Hands out one piece of memory from front to back.
struct Carver {
    char* next;
    void* take(size_t bytes) {
        void* block = next;
        next += bytes;
        return block;
    }
};

static const float* upload_matrix(Backend& backend, Carver& memory, const std::vector<float>& M,
                                  int d, bool transposed) {
    size_t n = size_t(d);
    assert(M.size() == n * n);
    std::vector<float> T = M;
    for (size_t i = 0; transposed && i < n; i++)
        for (size_t j = 0; j < n; j++) T[j * n + i] = M[i * n + j];
    void* to = memory.take(n * n * sizeof(float));
    backend.upload(to, T.data(), n * n * sizeof(float));
    return static_cast<const float*>(to);
}

KvCache::KvCache(Backend& backend, const Config& c, int positions, DType type, const Bases* bases,
                 int batch, const std::string* cold)
    : capacity(positions), dtype(type) {
    size_t floats = bases ? size_t(c.L * c.G) * 5 * size_t(c.d) * size_t(c.d) + SLACK : 0;
    size_t table = 2 * size_t(c.G) * sizeof(CacheRows), tables = size_t(c.L) * table;
    size_t total = bytes_for(c, positions, type, bases, batch) - tables;
    heads = Buffer(backend, tables, "the KV cache's table of heads");
    std::string what = format("the KV cache of %d positions in %s", positions, name_of(type));
    size_t row_bytes = total - floats * sizeof(float);
    rows = cold ? Buffer::cold(backend, row_bytes, what.c_str(), *cold)
                : Buffer(backend, row_bytes, what.c_str());
    if (bases) matrices = Buffer(backend, floats * sizeof(float), "the bases of the KV cache");
    Carver blocks{static_cast<char*>(rows.data)}, basis{static_cast<char*>(matrices.data)};

    int ring = bases ? ring_rows(*bases, batch) : 0, exact_rows = ring ? bases->sinks + ring : 0;
    auto head = [&](const HeadBasis* from, bool key) {
        CacheRows one;
        one.r = from ? from->r : c.d;
        one.data = blocks.take(block_bytes(size_t(capacity), one.r, dtype));
        if (one.r < c.d && exact_rows)
            one.exact = blocks.take(block_bytes(size_t(exact_rows), c.d, dtype));
        if (!from) return one;
        one.encode = upload_matrix(backend, basis, from->encode, c.d, false);
        one.decode = upload_matrix(backend, basis, from->decode, c.d, false);
        if (key) one.decode_t = upload_matrix(backend, basis, from->decode, c.d, true);
        return one;
    };
    for (size_t l = 0; l < size_t(c.L); l++) {
        const LayerBasis* from = bases ? &bases->layer[l] : nullptr;
        CacheLayer& one = layer.emplace_back();
        one.dtype = dtype, one.capacity = capacity;
        one.H = c.H, one.G = c.G, one.d = c.d;
        if (from) one.rotated = from->rotated;
        if (ring) one.sinks = bases->sinks, one.recent = bases->recent, one.ring = ring;
        for (size_t g = 0; g < size_t(c.G); g++)
            one.k.push_back(head(from ? &from->k[g] : nullptr, true));
        for (size_t g = 0; g < size_t(c.G); g++)
            one.v.push_back(head(from ? &from->v[g] : nullptr, false));

        std::vector<CacheRows> both = one.k;
        both.insert(both.end(), one.v.begin(), one.v.end());
        void* to = static_cast<char*>(heads.data) + l * table;
        backend.upload(to, both.data(), table);
        one.rows = static_cast<const CacheRows*>(to);
    }
}

size_t KvCache::bytes_per_token() const {
    size_t coordinates = 0;
    for (const CacheLayer& one : layer) {
        for (const CacheRows& head : one.k) coordinates += size_t(head.r);
        for (const CacheRows& head : one.v) coordinates += size_t(head.r);
    }
    return coordinates * size_of(dtype);
}

// Calls copy(rows, bytes) for the first `positions` rows of every head, and for its exact rows, in
// a fixed order.
template <class Copy>
static void for_each_block(const KvCache& cache, int positions, const Copy& copy) {
    for (const CacheLayer& one : cache.layer)
        for (const std::vector<CacheRows>* side : {&one.k, &one.v})
            for (const CacheRows& head : *side) {
                size_t element = size_of(cache.dtype);
                copy(head.data, size_t(positions) * size_t(head.r) * element);
                size_t exact_rows = size_t(one.sinks + one.ring);
                if (head.exact) copy(head.exact, exact_rows * size_t(one.d) * element);
            }
}

size_t KvCache::snapshot_bytes(int positions) const {
    size_t sum = 0;
    for_each_block(*this, positions, [&](void*, size_t bytes) { sum += bytes; });
    return sum;
}

void KvCache::save(void* host) const {
    char* to = static_cast<char*>(host);
    for_each_block(*this, used, [&](void* block, size_t bytes) {
        rows.backend->download(to, block, bytes);
        to += bytes;
    });
}

void KvCache::load(const void* host, int positions) {
    check(positions <= capacity, "%d positions do not fit a cache of %d", positions, capacity);
    const char* from = static_cast<const char*>(host);
    for_each_block(*this, positions, [&](void* block, size_t bytes) {
        rows.backend->upload(block, from, bytes);
        from += bytes;
    });
    used = positions;
}

}  // namespace stief
