// Host memory as operations of a backend read it: where it lies if the backend's memory is the
// host's, else a copy of what was asked for last.
#pragma once
#include "backend/buffer.h"

namespace stief {

struct Staged {
    Backend* backend = nullptr;
    Buffer copy;

    Staged() = default;
    Staged(Backend& owner, size_t most, const char* what) : backend(&owner) {
        if (owner.copies_weights) copy = Buffer(owner, most * sizeof(float), what);
    }
    const float* read(const float* host, size_t n) {  // n <= most
        if (!copy.data) return host;
        backend->upload(copy.data, host, n * sizeof(float));
        return copy.f32();
    }
};

}  // namespace stief
