// Reading one safetensors file: every rule of the format, in the order in which it can be broken.
// Folders and shards are in safetensors_folder.cpp, writing in safetensors_write.cpp.
#include "formats/safetensors.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"
#include "base/json.h"
#include "formats/model_folder.h"

namespace stief {

namespace {

constexpr uint64_t MAX_HEADER = 100'000'000;   // the reference implementation's bound

struct ElementType {
    const char* name;
    unsigned bits;
};
constexpr ElementType ELEMENT_TYPES[] = {
    {"F32", 32},     {"F16", 16},     {"BF16", 16},       {"F64", 64},        {"C64", 64},
    {"I64", 64},     {"I32", 32},     {"I16", 16},        {"I8", 8},          {"U64", 64},
    {"U32", 32},     {"U16", 16},     {"U8", 8},          {"BOOL", 8},        {"F8_E4M3", 8},
    {"F8_E5M2", 8},  {"F8_E8M0", 8},  {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6},  {"F4", 4},
};

const ElementType* find_type(const std::string& name) {
    for (const ElementType& type : ELEMENT_TYPES)
        if (name == type.name) return &type;
    return nullptr;
}

const Json& member(const Json& object, const char* key, Json::Kind kind, const std::string& where) {
    const Json* value = object.find(key);
    if (!value) fail("%s: no \"%s\"", where.c_str(), key);
    if (value->kind != kind)
        fail("%s: \"%s\" is %s, expected %s", where.c_str(), key, name_of(value->kind),
             name_of(kind));
    return *value;
}

uint64_t unsigned_number(const Json& json, const std::string& where) {
    uint64_t value = 0;
    const char* end = json.text.data() + json.text.size();
    auto result = std::from_chars(json.text.data(), end, value);
    if (json.kind != Json::Number || result.ec != std::errc() || result.ptr != end)
        fail("%s: expected an integer from 0 to 2^64-1, found %.40s", where.c_str(),
             json.kind == Json::Number ? json.text.c_str() : name_of(json.kind));
    return value;
}

// One member of the header. offset counts from the end of the header, as in the file.
TensorInfo tensor_info(const Json& json, const std::string& where) {
    if (json.kind != Json::Object)
        fail("%s: expected an object, found %s", where.c_str(), name_of(json.kind));
    TensorInfo info;
    info.dtype = member(json, "dtype", Json::String, where).text;
    const ElementType* type = find_type(info.dtype);
    if (!type)
        fail("%s: unknown dtype %s", where.c_str(), quote(info.dtype.substr(0, 40)).c_str());

    size_t bits = type->bits;
    bool fits = true;
    for (const Json& extent : member(json, "shape", Json::Array, where).items) {
        info.shape.push_back(unsigned_number(extent, where + ": shape"));
        fits = fits && !__builtin_mul_overflow(bits, info.shape.back(), &bits);
    }
    if (!fits) fail("%s: the size of %s overflows", where.c_str(), to_string(info.shape).c_str());
    if (bits % 8 != 0)
        fail("%s: %s of %s is no whole number of bytes", where.c_str(),
             to_string(info.shape).c_str(), type->name);
    info.bytes = bits / 8;

    const Json& offsets = member(json, "data_offsets", Json::Array, where);
    if (offsets.items.size() != 2)
        fail("%s: data_offsets has %zu numbers, expected 2", where.c_str(), offsets.items.size());
    info.offset = unsigned_number(offsets.items[0], where + ": data_offsets");
    size_t end = unsigned_number(offsets.items[1], where + ": data_offsets");
    if (end < info.offset || end - info.offset != info.bytes)
        fail("%s: data_offsets [%zu, %zu] do not span the %zu bytes of %s of %s", where.c_str(),
             info.offset, end, info.bytes, to_string(info.shape).c_str(), type->name);
    return info;
}

std::map<std::string, std::string> read_metadata(const Json& json, const std::string& where) {
    if (json.kind != Json::Object)
        fail("%s: expected an object, found %s", where.c_str(), name_of(json.kind));
    std::map<std::string, std::string> metadata;
    for (const auto& [key, value] : json.members)
        metadata[key] = value.string(where + ": " + printable(key));
    return metadata;
}

// By offset, each tensor begins where the one before it ends, and the last ends with the file.
void check_cover(const std::map<std::string, TensorInfo>& tensors, size_t data_bytes,
                 const std::string& path) {
    struct Span {
        size_t begin, end;
        const std::string* name;
    };
    std::vector<Span> spans;
    for (const auto& [name, info] : tensors)
        spans.push_back({info.offset, info.offset + info.bytes, &name});
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    size_t covered = 0;
    for (const Span& span : spans) {
        if (span.begin != covered)
            fail("%s: %s begins at byte %zu of the data, the one before it ends at %zu: %s",
                 path.c_str(), printable(*span.name).c_str(), span.begin, covered,
                 span.begin < covered ? "they overlap" : "there is a gap");
        covered = span.end;
    }
    if (covered != data_bytes)
        fail("%s: the tensors take %zu bytes, the file has %zu for them: %s", path.c_str(), covered,
             data_bytes, covered > data_bytes ? "it is cut off (is the download complete?)"
                                              : "something else is at its end");
}

}  // namespace

SafeTensors SafeTensors::parse(std::string_view bytes, const std::string& path) {
    if (bytes.size() < 8)
        fail("%s: %zu bytes are too few for a safetensors file", path.c_str(), bytes.size());
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | uint8_t(bytes[size_t(i)]);  // little-endian
    if (header > MAX_HEADER)
        fail("%s: a header of %llu bytes is too large (is this a safetensors file?)", path.c_str(),
             (unsigned long long)header);
    if (header > bytes.size() - 8)
        fail("%s: the header has %llu bytes, the file only %zu after its first 8: it is cut off",
             path.c_str(), (unsigned long long)header, bytes.size() - 8);

    Json json = Json::parse(bytes.substr(8, header), path + ": header", 8);
    if (json.kind != Json::Object)
        fail("%s: header: expected an object, found %s", path.c_str(), name_of(json.kind));
    SafeTensors result;
    for (const auto& [name, value] : json.members) {
        std::string where = path + ": " + printable(name);
        if (name == "__metadata__" && value.kind == Json::Null) continue;
        if (name == "__metadata__") result.metadata = read_metadata(value, where);
        else result.tensors[name] = tensor_info(value, where);
    }
    size_t data_begin = 8 + header;
    check_cover(result.tensors, bytes.size() - data_begin, path);
    for (auto& [name, info] : result.tensors) info.offset += data_begin;
    return result;
}

SafeTensors SafeTensors::open_file(const std::string& path) {
    expect_real_file(path);
    MappedFile file(path);
    SafeTensors result = parse(file.text(), path);
    result.files.push_back(std::move(file));
    return result;
}

void SafeTensors::check_unchanged() const {
    for (const MappedFile& file : files) file.check_unchanged();
}

Tensor SafeTensors::take(const std::string& name, const Shape& shape,
                         const std::string& hint) const {
    std::string because = hint.empty() ? "" : " (" + hint + ")";
    auto found = tensors.find(name);
    if (found == tensors.end()) {
        std::string path = files.empty() ? "checkpoint" : files[0].path;
        if (files.size() > 1) path = path.substr(0, path.find_last_of('/') + 1);
        fail("%s: no tensor %s%s", path.c_str(), printable(name).c_str(), because.c_str());
    }
    const TensorInfo& info = found->second;
    const MappedFile& file = files.at(size_t(info.file));
    std::string where = file.path + ": " + printable(name);
    if (info.shape != shape)
        fail("%s is %s, expected %s%s", where.c_str(), to_string(info.shape).c_str(),
             to_string(shape).c_str(), because.c_str());
    for (DType dtype : {DType::F32, DType::F16, DType::BF16})
        if (info.dtype == (dtype == DType::F32 ? "F32" : dtype == DType::F16 ? "F16" : "BF16"))
            return {file.data + info.offset, dtype, info.shape};
    fail("%s is %s, expected F32, F16 or BF16 (quantised weights are not read)", where.c_str(),
         info.dtype.c_str());
}

}  // namespace stief
