// stief inspect BASES: what a file of bases says of itself. Needs no model, so the bases themselves
// are checked only when a model opens them.
#include "base/json_writer.h"
#include "commands/session.h"
#include "formats/safetensors.h"

namespace stief {
namespace {

using Metadata = std::map<std::string, std::string>;

const std::string& entry(const Metadata& metadata, const std::string& path, const char* key) {
    auto found = metadata.find(key);
    if (found == metadata.end())
        fail("%s: its metadata has no \"%s\": not a bases file of stief calibrate", path.c_str(),
             key);
    return found->second;
}

// (L, G) of ranks_k or ranks_v.
std::vector<std::vector<int>> ranks_of(const Metadata& metadata, const std::string& path,
                                       const char* key) {
    std::string where = path + ": " + key;
    Json rows = Json::parse(entry(metadata, path, key), where);
    check(rows.kind == Json::Array, "%s: expected a list", where.c_str());
    std::vector<std::vector<int>> ranks;
    for (const Json& row : rows.items) {
        check(row.kind == Json::Array, "%s: expected a list of lists", where.c_str());
        std::vector<int>& layer = ranks.emplace_back();
        for (const Json& r : row.items) layer.push_back(int(r.integer(where, 0, 1 << 20)));
    }
    return ranks;
}

std::string joined(const std::vector<int>& ranks) {
    std::string text;
    for (int r : ranks) text += (text.empty() ? "" : " ") + std::to_string(r);
    return text;
}

}  // namespace

int inspect_bases(const Args& args) {
    const std::string& path = args.model;
    SafeTensors file = SafeTensors::open_file(path);
    const Metadata& metadata = file.metadata;
    check(entry(metadata, path, "format") == "stief-bases",
          "%s: its format is \"%.40s\", expected bases "
          "of stief calibrate",
          path.c_str(), entry(metadata, path, "format").c_str());
    auto k = ranks_of(metadata, path, "ranks_k"), v = ranks_of(metadata, path, "ranks_v");
    auto first = file.tensors.find("layers.0.k.q");
    check(first != file.tensors.end() && first->second.shape.size() == 3 && k.size() == v.size(),
          "%s: its tensors do not fit its ranks", path.c_str());
    size_t G = first->second.shape[0], d = first->second.shape[1], kept = 0;
    for (const auto& side : {k, v})
        for (const std::vector<int>& layer : side)
            for (int r : layer) kept += size_t(r);
    size_t full = 2 * k.size() * G * d;

    if (args.json) {
        JsonWriter json;
        json.begin_object().add("bases", path).add("layers", k.size()).add("kv_heads", G);
        json.add("head_width", d).add("keep", double(kept) / double(full));
        json.add("cache_bytes_per_token_f16", 2 * kept);
        json.begin_object("metadata");
        for (const auto& [key, value] : metadata) json.add(key, value);
        print(json.end_object().end_object().text + "\n");
        return 0;
    }
    std::string text = format(
        "%s: bases for %zu layers of %zu kv heads of %zu; keeps %zu of %zu coordinates "
        "(%.1f%%), %zu bytes a token in f16\n\nlayer   keys         values\n",
        path.c_str(), k.size(), G, d, kept, full, 100 * double(kept) / double(full), 2 * kept);
    for (size_t l = 0; l < k.size(); l++)
        text += format("%5zu   %-12s %s\n", l, joined(k[l]).c_str(), joined(v[l]).c_str());
    text += "\n";
    for (const auto& [key, value] : metadata)
        if (key != "ranks_k" && key != "ranks_v")
            text += format("%-18s %s\n", key.c_str(), value.c_str());
    print(text);
    return 0;
}

}  // namespace stief
