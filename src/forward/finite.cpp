#include "forward/finite.h"

#include <algorithm>
#include <cstring>

#include "base/bf16.h"

namespace stief {

namespace {

struct Seen {
    bool infinite = false, nan = false;
    void add(f16 value) {
        uint16_t magnitude = value.bits & 0x7fffu;
        infinite = infinite || magnitude == 0x7c00u;
        nan = nan || magnitude > 0x7c00u;
    }
};

void look_at(Seen& seen, const KvCache& cache, const void* rows, size_t values) {
    constexpr size_t PIECE = size_t(1) << 20;
    std::vector<f16> piece(std::min(values, PIECE));
    for (size_t at = 0; at < values; at += PIECE) {
        size_t n = std::min(PIECE, values - at);
        cache.rows.backend->download(piece.data(), static_cast<const f16*>(rows) + at,
                                     n * sizeof(f16));
        for (size_t i = 0; i < n; i++) seen.add(piece[i]);
    }
}

Seen rows_of(const KvCache& cache, const CacheLayer& layer) {
    Seen seen;
    size_t used = size_t(cache.used);
    size_t exact = std::min(used, size_t(layer.sinks + layer.ring));
    for (const std::vector<CacheRows>* side : {&layer.k, &layer.v})
        for (const CacheRows& head : *side) {
            look_at(seen, cache, head.data, used * size_t(head.r));
            if (head.exact) look_at(seen, cache, head.exact, exact * size_t(layer.d));
        }
    return seen;
}

// Infinity and NaN have every exponent bit. A tensor may begin at any byte of its file.
template <class Bits>
bool all_finite(const Tensor& tensor, Bits exponent) {
    const char* bytes = static_cast<const char*>(tensor.data);
    for (size_t i = 0; i < tensor.count(); i++) {
        Bits value;
        std::memcpy(&value, bytes + i * sizeof value, sizeof value);
        if ((value & exponent) == exponent) return false;
    }
    return true;
}

bool finite(const Tensor& tensor) {
    if (tensor.dtype == DType::F32) return all_finite<uint32_t>(tensor, 0x7f800000u);
    return all_finite<uint16_t>(tensor, tensor.dtype == DType::F16 ? 0x7c00 : 0x7f80);
}

}  // namespace

int overflowing_layer(const Model& model, const KvCache& cache) {
    if (cache.dtype != DType::F16) return -1;
    for (size_t l = 0; l < cache.layer.size(); l++) {
        Seen seen = rows_of(cache, cache.layer[l]);
        if (!seen.infinite && !seen.nan) continue;
        const LayerWeights& w = model.weights.layer[l];
        bool sound = finite(w.wk) && finite(w.wv) && finite(w.attn_norm);
        return !seen.nan && sound ? int(l) : -1;
    }
    return -1;
}

static std::string too_large_for_f16(int layer) {
    return format("the keys or values of layer %d are too large for a cache in f16 (65504 at most); "
                  "use --cache bf16",
                  layer);
}

std::string why_not_finite(const Model& model, const KvCache& cache) {
    int layer = overflowing_layer(model, cache);
    return layer >= 0 ? too_large_for_f16(layer) : NotFinite().what();
}

void expect_rows_that_fit(const Model& model, const KvCache& cache) {
    int layer = overflowing_layer(model, cache);
    if (layer >= 0) throw Error(too_large_for_f16(layer));
}

}  // namespace stief
