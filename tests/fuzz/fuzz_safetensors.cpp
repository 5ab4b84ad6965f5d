// Any bytes: the header is taken or Error is thrown. What is taken lies within the file, whole.
#include <cstdlib>

#include "base/check.h"
#include "formats/safetensors.h"

using namespace stief;

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
    SafeTensors parsed;
    try {
        parsed = SafeTensors::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
    } catch (const Error&) {
        return 0;
    }
    size_t bytes = 0;
    for (const auto& [name, info] : parsed.tensors) {
        if (info.offset > size || info.bytes > size - info.offset) abort();
        bytes += info.bytes;
    }
    if (bytes > size - 8) abort();
    return 0;
}
