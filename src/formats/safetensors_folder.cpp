// A checkpoint in a folder: one file, or the shards that an index names. The index and the shards
// are two statements of the same fact; where they disagree, the checkpoint is two downloads mixed.
#include "base/check.h"
#include "base/json.h"
#include "formats/model_folder.h"
#include "formats/safetensors.h"

namespace stief {

namespace {

constexpr const char* SINGLE = "model.safetensors";
constexpr const char* INDEX = "model.safetensors.index.json";

// tensor → shard, as the index has it.
std::map<std::string, std::string> read_index(const std::string& path) {
    Json json = Json::parse(read_text(path, 100'000'000), path);
    const Json* map = json.find("weight_map");
    if (!map || map->kind != Json::Object || map->members.empty())
        fail("%s: no \"weight_map\" of tensor names and shards", path.c_str());
    std::map<std::string, std::string> shard_of;
    for (const auto& [name, value] : map->members) {
        const std::string& shard = value.string(path + ": weight_map: " + printable(name));
        bool plain = !shard.empty() && shard != "." && shard != ".." &&
                     shard.find('/') == shard.npos && shard.find('\0') == shard.npos;
        if (!plain)
            fail("%s: weight_map: %s is in %s, expected the name of a file in the same folder",
                 path.c_str(), printable(name).c_str(), printable(shard).c_str());
        shard_of[name] = shard;
    }
    return shard_of;
}

}  // namespace

SafeTensors SafeTensors::open_folder(const std::string& folder) {
    expect_model_folder(folder);
    expect_real_file(join(folder, SINGLE));
    if (file_exists(join(folder, SINGLE))) return open_file(join(folder, SINGLE));
    std::string index = join(folder, INDEX);
    expect_real_file(index);
    if (!file_exists(index)) no_weights(folder);

    std::map<std::string, std::string> shard_of = read_index(index);
    std::map<std::string, int> shards;   // name → index into files
    for (const auto& [name, shard] : shard_of) shards.emplace(shard, 0);

    SafeTensors all;
    for (auto& [shard, file] : shards) {
        std::string path = join(folder, shard);
        expect_real_file(path);
        if (!file_exists(path))
            fail("%s: the shard %s that %s names is missing (is the download complete?)",
                 folder.c_str(), printable(shard).c_str(), INDEX);
        SafeTensors one = open_file(path);
        file = int(all.files.size());
        if (file == 0) all.metadata = std::move(one.metadata);
        all.files.push_back(std::move(one.files[0]));
        for (auto& [name, info] : one.tensors) {
            auto says = shard_of.find(name);
            if (says == shard_of.end() || says->second != shard)
                fail("%s: %s is in this shard, but not according to %s, which has it in %s",
                     path.c_str(), printable(name).c_str(), INDEX,
                     says == shard_of.end() ? "none" : printable(says->second).c_str());
            info.file = file;
            all.tensors.emplace(name, std::move(info));
        }
    }
    for (const auto& [name, shard] : shard_of)
        if (!all.has(name))
            fail("%s: no tensor %s, which %s has in this shard", join(folder, shard).c_str(),
                 printable(name).c_str(), INDEX);
    return all;
}

}  // namespace stief
