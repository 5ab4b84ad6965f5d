// Time as it passes, of a clock that nobody sets back.
#pragma once
#include <chrono>

namespace stief {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace stief
