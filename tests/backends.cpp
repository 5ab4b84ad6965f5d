#include "backends.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "forward/transformer.h"

namespace stief::testing {

std::vector<Variant> groups() {
    std::vector<Variant> all = variants(), first;
    for (const Variant& one : all)
        if (first.empty() || first.back().group != one.group) first.push_back(one);
    return first;
}

std::vector<Variant> drawn(const Doubles& want) {
    std::vector<Variant> all = variants();
    size_t slow = size_t(std::ranges::count_if(all, &Variant::slow)), bits = 0, number = 0;
    for (double x : want) bits += size_t(std::popcount(std::bit_cast<uint64_t>(x)));
    std::erase_if(all, [&](const Variant& one) { return one.slow && number++ != bits % slow; });
    return all;
}

Model open_model(const std::string& folder, const Variant& variant, int threads) {
    if (variant.prepare) variant.prepare();
    return Model::open(folder, variant.options, threads);
}

Lab::Lab(const Variant& variant) : group(variant.group) {
    if (variant.prepare) variant.prepare();
    threads = std::make_unique<Threads>(variant.threads);
    backend = make_backend(variant.options, *threads);
}

const void* Lab::bytes(const void* host, size_t size) {
    if (!device()) return host;
    held.emplace_back(*backend, size, "a test's input");
    backend->upload(held.back().data, host, size);
    return held.back().data;
}

Weight Lab::weight(Elements& from, int N, int K) {
    Shape shape = {size_t(N)};
    if (K > 1) shape.push_back(size_t(K));
    Weight w = backend->bind({from.data(), from.dtype, shape});
    w.K = K;
    return w;
}

Output::Output(Lab& of, size_t count, const Floats& before)
    : lab(of),
      memory(*of.backend, (count + 2 * GUARD) * sizeof(float), "a test's output"),
      n(count) {
    Floats all(count + 2 * GUARD, SENTINEL);
    std::fill_n(all.begin() + GUARD, count, NaN);
    std::copy(before.begin(), before.end(), all.begin() + GUARD);
    lab.backend->upload(memory.data, all.data(), memory.bytes);
}

bool Output::guarded() {
    Floats all = lab.floats(memory.f32(), n + 2 * GUARD);
    for (size_t i = 0; i < GUARD; i++)
        if (all[i] != SENTINEL || all[all.size() - 1 - i] != SENTINEL) return false;
    return true;
}

void check_everywhere(const Doubles& want, const std::function<double(const Lab&)>& tolerance,
                      const Floats& before, const std::function<void(Lab&, float*)>& operation,
                      bool slow) {
    Floats first;
    std::string group;
    for (const Variant& variant : drawn(want)) {
        if (variant.slow && !slow) continue;
        CAPTURE(variant.group);
        CAPTURE(variant.threads);
        Lab lab(variant);
        Output out(lab, want.size(), before);
        operation(lab, out.data());
        Floats got = out.values();
        CHECK(out.guarded());
        CHECK(nmse(got.data(), want.data(), want.size()) <= tolerance(lab));
        if (group != variant.group) first = got, group = variant.group;
        CHECK(same_bits(got, first));
    }
}

}  // namespace stief::testing
