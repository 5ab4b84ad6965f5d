#include "cache/basis.h"

#include <algorithm>

#include "base/hash.h"

namespace stief {

static std::vector<float> unit_matrix(int d) {
    std::vector<float> I(size_t(d) * size_t(d), 0.0f);
    for (int i = 0; i < d; i++) I[size_t(i) * size_t(d) + size_t(i)] = 1.0f;
    return I;
}

HeadBasis HeadBasis::whole(int r, std::vector<float> q, std::vector<float> encode,
                           std::vector<float> decode) {
    size_t d = 0;
    while (d * d < q.size()) d++;
    return {{RowFormat::whole(r)},
            std::vector<float>(d, 1.0f),
            std::move(q),
            std::move(encode),
            std::move(decode)};
}

Bases Bases::identity(const Config& config, int rank) {
    std::vector<float> I = unit_matrix(config.d);
    std::vector<HeadBasis> heads(size_t(config.G), HeadBasis::whole(rank, I, I, I));
    Bases bases;
    bases.layer.assign(size_t(config.L), {true, heads, heads});
    return bases;
}

size_t Bases::Layer::bytes(DType dtype) const {
    size_t sum = 0;
    for (const std::vector<HeadBasis>* side : {&k, &v})
        for (const HeadBasis& head : *side) sum += head.format.back().bytes(dtype);
    return sum;
}

size_t Bases::bytes_per_token(DType dtype) const {
    return bytes_per_token(ages.size(), dtype);
}

size_t Bases::bytes_per_token(size_t age, DType dtype) const {
    size_t sum = 0;
    for (const Layer& one : layer)
        for (const std::vector<HeadBasis>* side : {&one.k, &one.v})
            for (const HeadBasis& head : *side) sum += head.format[age].bytes(dtype);
    return sum;
}

double Bases::bits_read(int positions, DType dtype) const {
    size_t elements = 0;  // of a token
    for (const Layer& one : layer)
        for (const std::vector<HeadBasis>* side : {&one.k, &one.v})
            for (const HeadBasis& head : *side)
                elements += head.width();
    double whole = double(elements) * double(size_of(dtype));
    double bytes = std::min(positions, sinks) * whole, rest = std::max(positions - sinks, 0);
    double from = std::min<double>(recent, rest);
    bytes += from * whole;
    for (size_t age = 0; age <= ages.size(); age++) {
        double end = age < ages.size() ? std::min<double>(ages[age], rest) : rest;
        bytes += std::max(end - from, 0.0) * double(bytes_per_token(age, dtype));
        from = std::max(from, end);
    }
    return 8 * bytes / (double(positions) * double(elements));
}

uint64_t Bases::hash(uint64_t seed) const {
    Hash hash;
    for (uint64_t word : {seed, uint64_t(sinks), uint64_t(recent)}) hash.add(word);
    for (int age : ages) hash.add(uint64_t(age));
    for (const Bases::Layer& one : layer) {
        hash.add(uint64_t(one.rotated));
        if (one.joint) hash.add(uint64_t(one.joint));
        for (const std::vector<HeadBasis>* side : {&one.k, &one.v})
            for (const HeadBasis& head : *side) {
                for (const RowFormat& format : head.format)
                    for (uint16_t n : format.count) hash.add(uint64_t(n));
                hash.add_bytes(head.encode.data(), head.encode.size() * sizeof(float));
                hash.add_bytes(head.mean.data(), head.mean.size() * sizeof(float));
            }
    }
    return hash.value();
}

}  // namespace stief
