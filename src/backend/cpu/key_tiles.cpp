#include "backend/cpu/key_tiles.h"

namespace stief {

static size_t in_panels(size_t columns, int lanes) {
    size_t each = size_t(lanes);
    return (columns + each - 1) / each * each;
}

KeyTiles::KeyTiles(const CpuBackend& backend, const CacheLayer& layer, const float* turns)
    : cpu(backend),
      cache(layer),
      rotation(turns),
      pairs(cpu.kernels.pair_rows && !cpu.exact && cache.dtype != DType::F32) {
    size_t element = pairs ? 2 : 4, d = size_t(cache.d);
    key_bytes = in_panels(KEYS, cpu.kernels.lanes) * (pairs ? whole_steps(d) : d) * element;
    value_bytes = KEYS * value_stride() * element;
}

size_t KeyTiles::value_stride() const {
    return in_panels(size_t(cache.values_width()), cpu.kernels.lanes);
}

std::vector<KeyTile> KeyTiles::of(size_t g, int pos, int last) const {
    std::vector<KeyTile> tiles;
    for (int i = 0; i < cache.seen[g].count; i++) {
        const Stretch& one = cache.seen[g].stretch[i];
        int end = one.end_for(last);
        for (int first = one.begin_for(pos); first < end; first += KEYS)
            tiles.push_back({i, first, std::min(KEYS, end - first)});
    }
    return tiles;
}

size_t KeyTiles::key_width(size_t g, const KeyTile& tile) const {
    return size_t(plain(g) ? cache.d : keys(g, tile).format.kept());
}

// rows (count, d) ← keys as attention of the full cache would have them
void KeyTiles::rebuild(float* rows, char* scratch, size_t g, const KeyTile& tile) const {
    const RowStore& store = keys(g, tile);
    const float* mean = cache.k[g].mean;
    size_t d = size_t(cache.d);
    bool adds = cache.rotated && !store.format.keeps_all(cache.d);
    std::vector<float> turned(d);
    RebuiltKeys rebuilt(cpu, cache, g, scratch);
    for_runs(store, tile.first, tile.first + tile.count, [&](const Run& run) {
        float* row = rows + size_t(run.first - tile.first) * d;
        const float* angle = rotation + size_t(run.first) * d;
        rebuilt.rebuild(row, run);
        for (int s = 0; s < run.count; s++, row += d, angle += d) {
            if (!cache.rotated) cpu.kernels.rotate(row, angle, d / 2);
            if (!adds) continue;
            turned.assign(mean, mean + d);
            cpu.kernels.rotate(turned.data(), angle, d / 2);
            for (size_t i = 0; i < d; i++) row[i] += turned[i];
        }
    });
}

void KeyTiles::expand_keys(char* panel, size_t g, const KeyTile& tile) const {
    const Kernels& kernels = cpu.kernels;
    const RowStore& store = keys(g, tile);
    size_t width = key_width(g, tile), count = size_t(tile.count), lanes = size_t(kernels.lanes);
    size_t floats = KEYS * size_t(cache.d), more = plain(g) ? RebuiltKeys::bytes(cpu, cache, g) : 0;
    float* rows = reinterpret_cast<float*>(thread_scratch(floats * 4 + floats * 2 + more));
    char *rounded = reinterpret_cast<char*>(rows + floats), *from = reinterpret_cast<char*>(rows);
    DType type = DType::F32;
    if (plain(g)) rebuild(rows, rounded + floats * 2, g, tile);
    else
        for_runs(store, tile.first, tile.first + tile.count, [&](const Run& run) {
            bool as_it_lies = !pairs && run.count == tile.count && store.format.is_whole();
            if (as_it_lies) from = run.rows, type = cache.dtype;
            else unpack(cpu, rows + size_t(run.first - tile.first) * width, width, run, cache.dtype);
        });
    if (pairs) {
        kernels.narrow[int(DType::BF16)](rounded, rows, count * width);
        for (size_t c = 0; c < count; c += lanes, panel += whole_steps(width) * lanes * 2)
            kernels.pack_pairs(panel, rounded + c * width * 2, width, int(std::min(lanes, count - c)),
                               int(width));
        return;
    }
    for (size_t c = 0; c < count; c += lanes, panel += width * lanes * 4)
        kernels.pack[int(type)](reinterpret_cast<float*>(panel), from + c * width * size_of(type), width,
                                int(std::min(lanes, count - c)), int(width));
}

void KeyTiles::expand_values(char* panel, size_t g, const KeyTile& tile) const {
    const Kernels& kernels = cpu.kernels;
    size_t width = value_width(g, tile), stride = pairs ? width : value_stride();
    size_t floats = KEYS * width, lanes = size_t(kernels.lanes);
    float* rows = reinterpret_cast<float*>(pairs ? thread_scratch(floats * 6) : panel);
    for_runs(values(g, tile), tile.first, tile.first + tile.count, [&](const Run& run) {
        float* to = rows + size_t(run.first - tile.first) * stride;
        unpack(cpu, to, stride, run, cache.dtype);
        for (int s = 0; s < run.count && width < stride; s++, to += stride)
            std::fill(to + width, to + stride, 0.0f);
    });
    if (!pairs) return;
    char* rounded = reinterpret_cast<char*>(rows + floats);
    kernels.narrow[int(DType::BF16)](rounded, rows, size_t(tile.count) * width);
    for (size_t c = 0; c < width; c += lanes, panel += KEYS * lanes * 2)
        kernels.pair_rows(panel, rounded + c * 2, width, int(std::min(lanes, width - c)), tile.count);
}

}  // namespace stief
