// Writing one safetensors file.
#include <cassert>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "formats/safetensors.h"

namespace stief {

std::string safetensors_header(const std::vector<NamedTensor>& tensors,
                               const std::map<std::string, std::string>& metadata) {
    std::string json = "{\"__metadata__\":{";
    for (const auto& [key, value] : metadata)
        json += (json.back() == '{' ? "" : ",") + quote(key) + ":" + quote(value);
    json += "}";
    std::set<std::string> names = {"__metadata__"};
    size_t offset = 0;
    for (const auto& [name, tensor] : tensors) {
        check(names.insert(name).second, "cannot write two tensors named %s", name.c_str());
        const char* dtype = tensor.dtype == DType::F32 ? "F32"
                          : tensor.dtype == DType::F16 ? "F16" : "BF16";
        json += "," + quote(name) + ":{\"dtype\":\"" + dtype + "\",\"shape\":[";
        for (size_t extent : tensor.shape)
            json += (json.back() == '[' ? "" : ",") + std::to_string(extent);
        json += format("],\"data_offsets\":[%zu,%zu]}", offset, offset + tensor.bytes());
        offset += tensor.bytes();
    }
    json += "}";
    json.resize((json.size() + 7) / 8 * 8, ' ');   // the data begin at a multiple of 8

    std::string header;
    for (int i = 0; i < 8; i++) header += char(uint64_t(json.size()) >> 8 * i & 0xff);
    return header + json;
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
    AtomicFile file(path);
    file.write(safetensors_header(tensors, metadata));
    for (const NamedTensor& named : tensors) {
        assert(named.tensor.data || named.tensor.bytes() == 0);
        file.write(named.tensor.data, named.tensor.bytes());
    }
    file.commit();
}

}  // namespace stief
