// One seeded generator for everything that draws: splitmix64 (Steele, Lea, Flood 2014). The same
// seed gives the same numbers on every machine, which std::normal_distribution does not promise.
#pragma once
#include <cmath>
#include <cstdint>
#include <numbers>

namespace stief {

struct Random {
    uint64_t state;

    explicit Random(uint64_t seed) : state(seed) {}

    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    double uniform() { return double(next() >> 11) * 0x1p-53; }                // [0, 1)
    uint64_t below(uint64_t n) { return uint64_t(uniform() * double(n)); }     // 0 … n−1, n < 2⁵³
    double normal() {                                                          // Box and Muller
        double u = 1.0 - uniform(), v = uniform();
        return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
    }
};

}  // namespace stief
