#include "forward/finite.h"

#include <algorithm>
#include <cstring>

#include "base/bf16.h"

namespace stief {

namespace {

struct Found {
    bool infinite = false, nan = false;
    void add(f16 value) {
        uint16_t magnitude = value.bits & 0x7fffu;
        infinite = infinite || magnitude == 0x7c00u;
        nan = nan || magnitude > 0x7c00u;
    }
};

// The whole elements of a store's rows; codes are finite.
void look_at(Found& found, const KvCache& cache, const RowStore& store) {
    constexpr size_t PIECE = size_t(1) << 20;
    size_t row = size_t(store.bytes), rows = size_t(store.slots(cache.used));
    if (!store.data || store.format.count[0] == 0) return;
    std::vector<char> piece(std::min(rows, PIECE / row + 1) * row);
    for (size_t at = 0, n; at < rows; at += n) {
        n = std::min(piece.size() / row, rows - at);
        cache.rows.backend->download(piece.data(), static_cast<const char*>(store.data) + at * row,
                                     n * row);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < store.format.count[0]; j++) {
                f16 value;
                std::memcpy(&value, piece.data() + i * row + j * sizeof value, sizeof value);
                found.add(value);
            }
    }
}

Found rows_of(const KvCache& cache, const CacheLayer& layer) {
    Found found;
    for (const std::vector<CacheRows>* side : {&layer.k, &layer.v})
        for (const CacheRows& head : *side)
            for (const RowStore& store : head.store) look_at(found, cache, store);
    return found;
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

}  // namespace

bool finite(const Tensor& tensor) {
    if (tensor.dtype == DType::F32) return all_finite<uint32_t>(tensor, 0x7f800000u);
    return all_finite<uint16_t>(tensor, tensor.dtype == DType::F16 ? 0x7c00 : 0x7f80);
}

int overflowing_layer(const Model& model, const KvCache& cache) {
    if (cache.dtype != DType::F16) return -1;
    for (size_t l = 0; l < cache.layer.size(); l++) {
        Found found = rows_of(cache, cache.layer[l]);
        if (!found.infinite && !found.nan) continue;
        const LayerWeights& w = model.weights.layer[l];
        bool sound = finite(w.wk) && finite(w.wv) && finite(w.attn_norm);
        return !found.nan && sound ? int(l) : -1;
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
