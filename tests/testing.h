// What every test uses: closeness as one norm, skips that are counted and printed, scratch folders.
#pragma once
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "base/check.h"

namespace stief::testing {

constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

// Tolerances, derived: a float32 operation accumulates at most a few hundred roundings of 2⁻²⁴ ≈
// 6e-8, squared about 1e-12; a value stored once as bf16 is off by at most 2⁻⁸ of itself, as f16 by
// 2⁻¹¹ (half a unit in the last of 8 and 11 significant bits), and the norm of many by no more.
constexpr double TOL_F32 = 1e-12, TOL_BF16 = 0x1p-16, TOL_F16 = 0x1p-22;

// Normalised mean squared error |a − b|² / |b|², in double. NaN anywhere makes it NaN: check by <=.
template <class A, class B>
double nmse(const A* got, const B* want, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = double(got[i]) - double(want[i]);
        error += difference * difference;
        norm += double(want[i]) * double(want[i]);
    }
    return norm > 0 ? error / norm : error;
}
template <class A, class B>
double nmse(const std::vector<A>& got, const std::vector<B>& want) {
    REQUIRE(got.size() == want.size());
    return nmse(got.data(), want.data(), got.size());
}

// "../shared/data/…" or "" where it is missing; users do not have that folder.
std::string shared(const std::string& path);
// The folder of SmolLM2-135M-Instruct: --smollm2=FOLDER, or ../shared/models/smollm2/built; or "".
std::string smollm2();
// Whether variants() are of a device alone: --gpu=only.
bool only_gpu();
// Counts and prints a skipped test:
//     if (shared("data").empty()) return skip("needs ../shared/data");
void skip(const std::string& why);

// A folder of its own, removed at the end.
struct Scratch {
    std::filesystem::path folder;
    Scratch();
    ~Scratch();
    std::string path(const std::string& name) const { return (folder / name).string(); }
};

}  // namespace stief::testing
