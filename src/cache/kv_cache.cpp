#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/bf16.h"
#include "base/random.h"

namespace stief {

// Blocks begin on a cache line, so that two heads never share one.
static size_t block_bytes(int capacity, int r, DType dtype) {
    size_t bytes = size_t(capacity) * size_t(r) * size_of(dtype);
    return (bytes + 63) / 64 * 64;
}

size_t KvCache::bytes_for(const Config& config, int capacity, DType dtype) {
    return size_t(config.L) * size_t(config.G) * 2 * block_bytes(capacity, config.d, dtype);
}

KvCache::KvCache(Backend& backend, const Config& config, int positions, DType type)
    : capacity(positions),
      dtype(type),
      rows(backend, bytes_for(config, positions, type),
           format("the KV cache of %d positions in %s", positions, name_of(type)).c_str()) {
    char* next = static_cast<char*>(rows.data);
    auto block = [&] {
        CacheRows head{next, config.d};
        next += block_bytes(capacity, head.r, dtype);
        return head;
    };
    for (int l = 0; l < config.L; l++) {
        CacheLayer& one = layer.emplace_back();
        one.dtype = dtype;
        one.capacity = capacity;
        one.H = config.H, one.G = config.G, one.d = config.d;
        for (int g = 0; g < config.G; g++) one.k.push_back(block());
        for (int g = 0; g < config.G; g++) one.v.push_back(block());
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

size_t KvCache::snapshot_bytes(int positions) const {
    return size_t(positions) * bytes_per_token();
}

// Calls copy(head's rows, bytes of its first `positions` rows) for every head in a fixed order.
template <class Copy>
static void for_each_head(const KvCache& cache, int positions, const Copy& copy) {
    for (const CacheLayer& one : cache.layer)
        for (const std::vector<CacheRows>* side : {&one.k, &one.v})
            for (const CacheRows& head : *side)
                copy(head.data, size_t(positions) * size_t(head.r) * size_of(cache.dtype));
}

void KvCache::save(void* host) const {
    char* to = static_cast<char*>(host);
    for_each_head(*this, used, [&](void* data, size_t bytes) {
        rows.backend->download(to, data, bytes);
        to += bytes;
    });
}

void KvCache::load(const void* host, int positions) {
    check(positions <= capacity, "%d positions do not fit a cache of %d", positions, capacity);
    const char* from = static_cast<const char*>(host);
    for_each_head(*this, positions, [&](void* data, size_t bytes) {
        rows.backend->upload(data, from, bytes);
        from += bytes;
    });
    used = positions;
}

void KvCache::fill_random(int positions) {
    check(positions <= capacity, "%d positions do not fit a cache of %d", positions, capacity);
    Random random(1);
    std::vector<char> noise(size_t(1) << 20);
    for (size_t i = 0; i + 4 <= noise.size(); i += size_of(dtype)) {
        float value = float(random.uniform() - 0.5);
        bf16 b = to_bf16(value);
        f16 h = to_f16(value);
        const void* from = dtype == DType::F32    ? static_cast<const void*>(&value)
                           : dtype == DType::BF16 ? static_cast<const void*>(&b)
                                                  : static_cast<const void*>(&h);
        std::memcpy(noise.data() + i, from, size_of(dtype));
    }
    for_each_head(*this, positions, [&](void* data, size_t bytes) {
        for (size_t at = 0; at < bytes; at += noise.size())
            rows.backend->upload(static_cast<char*>(data) + at, noise.data(),
                                 std::min(noise.size(), bytes - at));
    });
    used = positions;
}

}  // namespace stief
