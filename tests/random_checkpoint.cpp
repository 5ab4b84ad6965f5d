#include "random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "formats/safetensors.h"
#include "model/weights.h"

namespace stief {

namespace {

constexpr size_t PIECE = size_t(1) << 20;   // values made and written at once

// Four 16-bit uniforms added: Irwin and Hall's distribution, a bell of mean 0 and variance 1 that
// ends at ±3.5. One step of the generator a value; Box and Muller's would take ten times as long.
float bell(Random& random) {
    static const float scale = float(1 / std::sqrt(4 * (0x1p32 - 1) / 12));
    uint64_t z = random.next();
    int sum = int(z & 0xffff) + int(z >> 16 & 0xffff) + int(z >> 32 & 0xffff) + int(z >> 48);
    return float(sum - 2 * 0xffff) * scale;
}

template <class T, class Convert>
void write_values(AtomicFile& file, size_t count, float mean, float std, Random& random,
                  const Convert& convert) {
    std::vector<T> piece(std::min(count, PIECE));
    for (size_t done = 0; done < count; done += piece.size()) {
        if (count - done < piece.size()) piece.resize(count - done);
        for (T& value : piece) value = convert(mean + std * bell(random));
        file.write(piece.data(), piece.size() * sizeof(T));
    }
}

void write_tensor(AtomicFile& file, const NamedTensor& named, const RandomCheckpoint& options) {
    uint64_t seed = options.seed;
    for (char c : named.name) seed = Random(seed ^ uint8_t(c)).next();
    Random random(seed);
    const Tensor& tensor = named.tensor;
    bool norm = tensor.shape.size() == 1;                       // near 1, as trained ones are
    float mean = norm ? 1.0f : 0.0f;
    double width = options.std > 0 ? options.std : 1 / std::sqrt(double(tensor.shape.back()));
    float std = norm ? 0.1f : float(width);
    if (tensor.dtype == DType::F32)
        write_values<float>(file, tensor.count(), mean, std, random, [](float x) { return x; });
    else if (tensor.dtype == DType::F16)
        write_values<f16>(file, tensor.count(), mean, std, random,
                          [](float x) { return to_f16(x); });
    else
        write_values<bf16>(file, tensor.count(), mean, std, random,
                           [](float x) { return to_bf16(x); });
}

}  // namespace

void write_random_checkpoint(const Config& config, const RandomCheckpoint& options) {
    std::vector<NamedTensor> all = tensors_of(config, options.dtype);
    size_t total = 0, before = 0, begin = 0;
    for (const NamedTensor& named : all) total += named.tensor.bytes();
    check(options.shards >= 1 && size_t(options.shards) <= all.size(),
          "expected 1 to %zu shards, found %d", all.size(), options.shards);

    std::string index;
    for (int shard = 0; shard < options.shards; shard++) {
        std::string name = options.shards == 1 ? "model.safetensors"
            : format("model-%05d-of-%05d.safetensors", shard + 1, options.shards);
        // At least one tensor, this shard's share of the bytes, one left for each shard to come.
        size_t end = begin, last = all.size() - size_t(options.shards - shard - 1);
        size_t share = total / size_t(options.shards) * size_t(shard + 1);
        do before += all[end++].tensor.bytes();
        while (end < last && (before < share || shard + 1 == options.shards));

        std::vector<NamedTensor> part(all.begin() + long(begin), all.begin() + long(end));
        AtomicFile file(join(config.folder, name));
        file.write(safetensors_header(part, {{"format", "pt"}}));
        for (const NamedTensor& named : part) {
            write_tensor(file, named, options);
            index += (index.empty() ? "" : ",\n    ") + quote(named.name) + ": " + quote(name);
        }
        file.commit();
        begin = end;
    }
    if (options.shards == 1) return;
    AtomicFile file(join(config.folder, "model.safetensors.index.json"));
    file.write(
        format("{\n  \"metadata\": {\"total_size\": %zu},\n  \"weight_map\": {\n    ", total));
    file.write(index + "\n  }\n}\n");
    file.commit();
}

}  // namespace stief
