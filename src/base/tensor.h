// A tensor that somebody else owns: a pointer, an element type, a shape. Weights are such views
// into the mapped checkpoint. The data need not be aligned: safetensors headers have any length.
#pragma once
#include <cstdint>

#include "base/check.h"
#include "base/shape.h"

namespace stief {

enum class DType : uint8_t { F32, F16, BF16 };

constexpr size_t size_of(DType dtype) {
    return dtype == DType::F32 ? 4 : 2;
}
constexpr const char* name_of(DType dtype) {
    return dtype == DType::F32 ? "f32" : dtype == DType::F16 ? "f16" : "bf16";
}

struct Tensor {
    const void* data = nullptr;
    DType dtype = DType::F32;
    Shape shape;

    size_t count() const {
        size_t n = 1;
        for (size_t extent : shape) n *= extent;
        return n;
    }
    size_t bytes() const { return count() * size_of(dtype); }
};

}  // namespace stief
