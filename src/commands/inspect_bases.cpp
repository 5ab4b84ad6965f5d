// stief inspect BASES: what a file of bases says of itself. Needs no model, so that the bases themselves
// are only looked through for what is no number: whether they are orthonormal shows when a model opens them.

#include "base/json_writer.h"
#include "commands/session.h"
#include "forward/finite.h"
#include "formats/safetensors.h"

namespace stief {
namespace {

// Of each age, the youngest first: the rank of whole rows, or bits a coordinate where there are
// codes.
std::string joined(const std::vector<std::vector<RowFormat>>& heads, int d) {
    std::string text;
    for (const std::vector<RowFormat>& head : heads) {
        text += text.empty() ? "" : " ";
        for (size_t i = 0; i < head.size(); i++) {
            text += i ? "|" : "";
            text += head[i].is_whole() ? std::to_string(head[i].kept())
                                       : format("%.2fb", head[i].bits_per_element(DType::F16, d));
        }
    }
    return text;
}

// As it is, or quoted where it holds anything that would disturb a terminal.
std::string shown(const std::string& text) {
    std::string quoted = quote(text);
    return quoted.size() == text.size() + 2 ? text : quoted;
}

void expect_numbers(const SafeTensors& file, const std::string& path) {
    for (const auto& [name, info] : file.tensors) {
        if (info.dtype != "F32") continue;
        check(finite(file.take(name, info.shape, "")),
              "%s: an element of %s is not finite: the file is damaged", path.c_str(), name.c_str());
    }
}

}  // namespace

int inspect_bases(const Args& args) {
    const std::string& path = args.model;
    if (args.context || !args.cache.empty() || !args.bases.empty() || !args.window.empty() ||
        !args.ages.empty())
        throw UsageError("a file of bases says what it holds: --context, --cache, --bases, --window and "
                         "--ages are for a model's folder");
    SafeTensors file = SafeTensors::open_file(path);
    auto first = file.tensors.find("layers.0.k.q");
    check(first != file.tensors.end() && first->second.shape.size() == 3 &&
              first->second.shape[1] <= UINT16_MAX,
          "%s: it has no layers.0.k.q of (kv heads, width, width)", path.c_str());
    size_t G = first->second.shape[0], d = first->second.shape[1], kept = 0, bytes = 0;
    BasesFormats formats = BasesFormats::of(file, path, int(G), int(d));
    const auto &k = formats.k, &v = formats.v;
    for (const BasesFormats::Side* side : {&k, &v})
        for (const auto& layer : *side)
            for (const std::vector<RowFormat>& head : layer)
                kept += size_t(head.back().kept()), bytes += head.back().bytes(DType::F16);
    size_t full = 2 * k.size() * G * d;
    expect_numbers(file, path);

    if (args.json) {
        JsonWriter json;
        json.begin_object().add("bases", path).add("layers", k.size()).add("kv_heads", G);
        json.add("head_width", d).add("keep", double(bytes) / double(2 * full));
        json.add("cache_bytes_per_token_f16", bytes);
        json.add("bits_per_element", 8 * double(bytes) / double(full));
        json.begin_object("metadata");
        for (const auto& [key, value] : file.metadata) json.add(key, value);
        print(json.end_object().end_object().text + "\n");
        return 0;
    }
    std::string text = format(
        "%s: bases for %zu layers of %zu kv heads of %zu; keeps %zu of %zu coordinates "
        "in %.2f bits each; %zu bytes a token in f16, %.1f%% of the full cache\n\n"
        "layer   keys         values\n",
        path.c_str(), k.size(), G, d, kept, full, kept ? 8 * double(bytes) / double(kept) : 0.0,
        bytes, 50 * double(bytes) / double(full));
    for (size_t l = 0; l < k.size(); l++)
        text += format("%5zu   %-12s %s\n", l, joined(k[l], int(d)).c_str(),
                       joined(v[l], formats.joint[l] ? int(G * d) : int(d)).c_str());
    text += "\n";
    for (const auto& [key, value] : file.metadata)
        if (key.rfind("ranks_", 0) != 0 && key.rfind("formats_", 0) != 0)
            text += format("%-18s %s\n", shown(key).c_str(), shown(value).c_str());
    print(text);
    return 0;
}

}  // namespace stief
