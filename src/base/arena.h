// Carves one piece of memory into arrays, from front to back, each on a boundary: of itself one that
// vectors, cache lines and matrix units take. Without memory it only counts, so that the lines which
// place the arrays also say what they need.
#pragma once
#include <cstddef>

namespace stief {

struct Arena {
    static constexpr size_t ALIGNED = 256;   // bytes

    char* memory = nullptr;                  // aligned itself; null: every array is null
    size_t boundary;
    size_t used = 0;                         // bytes so far

    explicit Arena(void* begin = nullptr, size_t aligned = ALIGNED)
        : memory(static_cast<char*>(begin)), boundary(aligned) {}

    template <class T>
    T* take(size_t n) {
        T* array = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
        used += (n * sizeof(T) + boundary - 1) / boundary * boundary;
        return array;
    }
};

}  // namespace stief
