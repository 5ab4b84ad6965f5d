#include "backends.h"

#include <algorithm>

namespace stief::testing {

std::vector<Variant> groups() {
    std::vector<Variant> all = variants(), first;
    for (const Variant& one : all)
        if (first.empty() || first.back().group != one.group) first.push_back(one);
    return first;
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
    for (const Variant& variant : variants()) {
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
