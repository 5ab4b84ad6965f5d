// Every way to run the operations of the seam that this machine has, and what tests of operations
// share: inputs in the backend's memory, outputs born NaN between sentinels. A test that takes a
// Backend from here runs on every instruction set, on a GPU where there is one, and on the kernels
// played by the host (tests/simt).
#pragma once
#include <functional>
#include <list>
#include <memory>

#include "backend/buffer.h"
#include "reference.h"

namespace stief {
struct Model;
}

namespace stief::testing {

struct Variant {
    std::string group;  // results within a group are the same to the last bit
    BackendOptions options;
    int threads = 1;
    std::function<void()> prepare;  // before the backend is made; may be empty
    bool slow = false;              // kernels played: tests keep to small work
    bool device() const { return options.name != "cpu"; }
};
// variants.cpp, or simt/variants.cpp in the program that plays kernels.
std::vector<Variant> variants();
// One of each group.
std::vector<Variant> groups();
// All of them, but of the slow ones only one, drawn by what is wanted: the same in every run, and each
// has its share of a test's cases.
std::vector<Variant> drawn(const Doubles& want);

// The model in a folder, in one of them.
Model open_model(const std::string& folder, const Variant& variant = groups().front(),
                 int threads = 2);

// A backend with the memory that a test gives it.
struct Lab {
    std::string group;
    std::unique_ptr<Threads> threads;
    std::unique_ptr<Backend> backend;
    std::list<Buffer> held;
    std::list<Floats> kept;  // what has no other owner

    explicit Lab(const Variant& variant);
    bool device() const { return backend->copies_weights; }
    // The CPU reads the test's own memory, at whatever address it is.
    const void* bytes(const void* host, size_t size);
    const float* in(const Floats& x) {
        return static_cast<const float*>(bytes(x.data(), x.size() * sizeof(float)));
    }
    const float* in(Floats&& x) { return in(kept.emplace_back(std::move(x))); }
    Weight weight(Elements& from, int N, int K);
    void step(const Step& step) { backend->begin_step(step), backend->end_step(); }
    Floats floats(const float* from, size_t n) {
        Floats x(n, NaN);
        backend->download(x.data(), from, n * sizeof(float));
        return x;
    }
};

// n floats of a lab, NaN until written, between two runs of sentinels.
struct Output {
    static constexpr size_t GUARD = 64;
    static constexpr float SENTINEL = -1234.5f;
    Lab& lab;
    Buffer memory;
    size_t n;

    Output(Lab& of, size_t count, const Floats& before = {});
    float* data() { return memory.f32() + GUARD; }
    Floats values() { return lab.floats(data(), n); }
    bool guarded();
};

// Runs operation(lab, out) in every variant: out, which holds `before` or NaN, must be close to
// want, the same to the last bit within a group, and nothing else written. tolerance: of a lab.
// slow: on a slow variant as well, one of them.
void check_everywhere(const Doubles& want, const std::function<double(const Lab&)>& tolerance,
                      const Floats& before, const std::function<void(Lab&, float*)>& operation,
                      bool slow = true);
inline void check_everywhere(const Doubles& want, double tolerance, const Floats& before,
                             const std::function<void(Lab&, float*)>& operation) {
    check_everywhere(
        want, [=](const Lab&) { return tolerance; }, before, operation);
}

constexpr DType DTYPES[] = {DType::F32, DType::F16, DType::BF16};

// A matrix unit may round x to bf16 where w is bf16, and a device's both factors to 11 bits (TF32)
// otherwise, whose squares are far below TOL_ROUNDED.
inline std::function<double(const Lab&)> product_tolerance(bool exact, int T, DType dtype) {
    return [=](const Lab& lab) {
        bool rounded = !exact && T > 1 && (dtype == DType::BF16 || lab.device());
        return rounded ? TOL_ROUNDED : TOL_F32;
    };
}

// Rows of r elements, one a position.
inline CacheRows whole_rows(void* data, int r, DType dtype) {
    CacheRows one;
    one.width = r;
    one.store[0] = {data, RowFormat::whole(r), int(size_t(r) * size_of(dtype)), 0, 0};
    return one;
}

}  // namespace stief::testing
