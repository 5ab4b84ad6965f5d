// Memory of a backend, released once.
#pragma once
#include <utility>

#include "backend/backend.h"

namespace stief {

struct Buffer {
    Backend* backend = nullptr;
    void* data = nullptr;
    size_t bytes = 0;

    Buffer() = default;
    // Zeroed. what: named in the Error where it does not fit ("the KV cache of 8192 positions").
    Buffer(Backend& owner, size_t size, const char* what)
        : backend(&owner), data(owner.alloc(size, what)), bytes(size) {}
    ~Buffer() {
        if (data) backend->release(data, bytes);
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    void swap(Buffer& other) noexcept {
        std::swap(backend, other.backend);
        std::swap(data, other.data);
        std::swap(bytes, other.bytes);
    }
    float* f32() const { return static_cast<float*>(data); }
};

}  // namespace stief
