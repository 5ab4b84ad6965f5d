// The safetensors format:
//     u64 little-endian N | N bytes of JSON, the header | data
//     header: {name: {"dtype": "BF16", "shape": [512, 2048], "data_offsets": [begin, end]}, …}
// Offsets count from the end of the header. The tensors must cover the data exactly: no gap, no
// overlap, nothing left over. Names are unique; "__metadata__" is a map of strings. Header at most
// 100 MB. Source: github.com/huggingface/safetensors, README, "Format".
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/tensor.h"

namespace stief {

struct TensorInfo {
    std::string dtype;         // as written: "BF16", "I64", …
    Shape shape;
    size_t offset = 0;         // of the first byte, from the start of the file
    size_t bytes = 0;
    int file = 0;              // index into SafeTensors::files
};

// One file or a sharded checkpoint. Throws Error for anything that the format does not allow.
struct SafeTensors {
    std::vector<MappedFile> files;
    std::map<std::string, TensorInfo> tensors;
    std::map<std::string, std::string> metadata;   // of the first file

    static SafeTensors open_file(const std::string& path);
    // What a file's bytes declare: tensors and metadata, no files. path: for messages.
    static SafeTensors parse(std::string_view bytes, const std::string& path);
    // model.safetensors, or the shards that model.safetensors.index.json names: a missing shard, a
    // tensor that is in another shard than the index says, in two, or in none is an Error by name.
    static SafeTensors open_folder(const std::string& folder);

    // Error where a file was written to since it was opened.
    void check_unchanged() const;
    bool has(const std::string& name) const { return tensors.count(name) != 0; }
    // The tensor as f32, f16 or bf16 of exactly this shape; otherwise an Error with both shapes.
    // hint: what the expectation comes from, "config.json says 8 kv heads of 128".
    Tensor take(const std::string& name, const Shape& shape, const std::string& hint) const;
};

struct NamedTensor {
    std::string name;
    Tensor tensor;
};

// What comes before the data of these tensors, padded with spaces to a multiple of 8 bytes.
// Tensor::data is not looked at: the data can be written after it in pieces.
std::string safetensors_header(const std::vector<NamedTensor>& tensors,
                               const std::map<std::string, std::string>& metadata);

// Writes one file by way of a temporary name.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace stief
