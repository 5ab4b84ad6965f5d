#include "commands/peaks.h"

#include <algorithm>

#include "backend/cpu/matrix_rate.h"
#include "base/random.h"
#include "base/seconds.h"

namespace stief {

double seconds_of(const std::function<void()>& work) {
    auto start = std::chrono::steady_clock::now();
    work();
    return seconds_since(start);
}

// A device reads half a gigabyte in less time than it takes to ask for it: there 4 GiB, or what an
// eighth of its free memory holds.
static size_t block_bytes(const Backend& backend) {
    constexpr size_t CPU = size_t(512) << 20, MOST = size_t(4) << 30, PIECE = size_t(1) << 20;
    if (!backend.copies_weights) return CPU;
    return std::clamp(backend.available() / 8, PIECE, MOST) / PIECE * PIECE;
}

Peaks::Peaks(Model& of, const std::string& set, bool in_f32)
    : block(*of.backend, block_bytes(*of.backend), "the block that bandwidth is measured on"),
      model(of),
      isa(set),
      exact(in_f32) {
    // Written, because reading pages that nobody wrote reads one page of zeros again and again.
    Random random(2);
    std::vector<uint64_t> noise(size_t(1) << 17);
    for (uint64_t& word : noise) word = random.next();
    for (size_t at = 0; at < block.bytes; at += noise.size() * 8)
        of.backend->upload(static_cast<char*>(block.data) + at, noise.data(), noise.size() * 8);
}

double Peaks::bandwidth() {
    uint64_t checksum = 0;
    double seconds = seconds_of([&] { checksum = model.backend->stream(block.data, block.bytes); });
    check(checksum != 0, "the bandwidth test read nothing");
    bandwidths.push_back(double(block.bytes) / seconds);
    return bandwidths.back();
}

double Peaks::matrix_rate() {
    if (model.backend->copies_weights) {
        matrix_rates.push_back(device_matrix_rate());
        return matrix_rates.back();
    }
    const Kernels& kernels = choose_kernels(isa.c_str());
    bool pairs = kernels.product_pairs && !exact && model.layer[0].w_up.dtype == DType::BF16;
    matrix_rates.push_back(stief::matrix_rate(kernels, *model.threads, pairs));
    return matrix_rates.back();
}

// Of operands that are not zero: a GPU's clock depends on what it multiplies.
double Peaks::device_matrix_rate() {
    constexpr int SIDE = 8192, PRODUCTS = 3;
    constexpr size_t COUNT = size_t(SIDE) * SIDE;
    Backend& ops = *model.backend;
    DType dtype = model.layer[0].w_up.dtype;
    if (!weight.data) {
        weight = Buffer(ops, COUNT * size_of(dtype), "the products that prefill is compared with");
        x = Buffer(ops, COUNT * sizeof(float), "the products that prefill is compared with");
        out = Buffer(ops, COUNT * sizeof(float), "the products that prefill is compared with");
        Random random(3);
        std::vector<float> row(SIDE);
        for (float& one : row) one = float(random.normal());
        std::vector<uint16_t> halves(SIDE);  // a bf16 or f16 near 1, of either sign
        for (uint16_t& one : halves)
            one = uint16_t((dtype == DType::F16 ? 0x3c00 : 0x3f80) | (random.next() & 0x803f));
        const void* from =
            dtype == DType::F32 ? static_cast<const void*>(row.data()) : halves.data();
        for (size_t i = 0; i < SIDE; i++) {
            ops.upload(x.f32() + i * SIDE, row.data(), SIDE * sizeof(float));
            ops.upload(static_cast<char*>(weight.data) + i * SIDE * size_of(dtype), from,
                       SIDE * size_of(dtype));
        }
    }
    Projection one{out.f32(), {weight.data, dtype, SIDE, SIDE}}, all[PRODUCTS] = {one, one, one};
    float waited = 0;
    bool before = ops.exact;
    ops.exact = exact;
    auto multiply = [&] {
        ops.matmul(all, x.f32(), SIDE, false);
        ops.download(&waited, out.data, sizeof waited);
    };
    if (matrix_rates.empty()) multiply();  // a warm-up
    double seconds = seconds_of(multiply);
    ops.exact = before;
    return 2.0 * PRODUCTS * double(COUNT) * SIDE / seconds;
}

}  // namespace stief
