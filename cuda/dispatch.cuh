// From an element type at run time to one at compile time.
#pragma once
#include <type_traits>

#include "base/tensor.h"
#include "cuda.cuh"

namespace stief {

template <class E>
constexpr DType DTYPE_OF = std::is_same_v<E, bf16>  ? DType::BF16
                           : std::is_same_v<E, f16> ? DType::F16
                                                    : DType::F32;

// Calls f(E()) with E the type of dtype's elements: float, f16 or bf16.
template <class Function>
void for_dtype(DType dtype, const Function& f) {
    if (dtype == DType::F32) f(float());
    if (dtype == DType::F16) f(f16());
    if (dtype == DType::BF16) f(bf16());
}

}  // namespace stief
