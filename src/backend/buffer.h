// Memory of a backend, released once.
#pragma once
#include <atomic>
#include <utility>

#include "backend/backend.h"

namespace stief {

struct Buffer {
    Backend* backend = nullptr;
    void* data = nullptr;
    size_t bytes = 0;
    uint64_t number = 0;          // of this memory, from 1, never given twice as an address is

    Buffer() = default;
    // Zeroed. what: named in the Error where it does not fit ("the KV cache of 8192 positions").
    Buffer(Backend& owner, size_t size, const char* what)
        : backend(&owner), data(owner.alloc(size, what)), bytes(size), number(++last_number) {}
    // The same where it is read seldom: in host memory, or in a file where path is not "".
    static Buffer cold(Backend& owner, size_t size, const char* what, const std::string& path) {
        Buffer buffer;
        buffer.data = owner.alloc_cold(size, what, path);
        buffer.backend = &owner, buffer.bytes = size, buffer.number = ++last_number;
        return buffer;
    }
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
        std::swap(number, other.number);
    }
    float* f32() const { return static_cast<float*>(data); }

  private:
    static inline std::atomic<uint64_t> last_number{0};
};

}  // namespace stief
