#include "formats/model_folder.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"

namespace stief {

namespace fs = std::filesystem;

// Names in a folder, sorted; empty where it cannot be read.
static std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    std::error_code failed;
    for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end;
         entry.increment(failed))
        names.push_back(entry->path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}

static std::string first_that(const std::string& folder, const char* begin, const char* end) {
    for (const std::string& name : names_in(folder))
        if (name.starts_with(begin) && name.ends_with(end)) return name;
    return "";
}

static std::string head_of(const std::string& path, size_t bytes) {
    std::string head(bytes, '\0');
    std::ifstream file(path, std::ios::binary);
    file.read(head.data(), std::streamsize(bytes));
    head.resize(size_t(std::max<std::streamsize>(0, file.gcount())));
    return head;
}

static std::string member_of(const std::string& path, const char* key) {
    try {
        Json json = Json::parse(read_text(path, 1 << 20), path);
        const Json* value = json.find(key);
        return value && value->kind == Json::String ? printable(value->text) : "";
    } catch (const Error&) {
        return "";
    }
}

void expect_real_file(const std::string& path) {
    std::error_code failed;
    if (fs::is_symlink(path, failed) && !fs::exists(path, failed))
        fail("%s is a link to %s, which is not there: the download was interrupted; download the "
             "model again",
             path.c_str(), printable(fs::read_symlink(path, failed).string()).c_str());
    if (!file_exists(path)) return;
    std::string head = head_of(path, 512);
    if (head.starts_with("version https://git-lfs.github.com/spec/")) {
        size_t size = head.find("\nsize ");
        std::string bytes = size == head.npos ? "" : head.substr(size + 6);
        bytes.resize(std::min(bytes.find_first_not_of("0123456789"), bytes.size()));
        fail("%s is a Git LFS pointer: %s bytes that were not downloaded; run git lfs pull in its "
             "folder",
             path.c_str(), bytes.empty() ? "it stands for" : bytes.c_str());
    }
    check(!head.starts_with("GGUF"),
          "%s is a GGUF file, which is not read; give the folder of the original model "
          "(config.json, *.safetensors, tokenizer.json)",
          path.c_str());
    size_t text = head.find_first_not_of(" \t\r\n");
    std::string start = head.substr(std::min(text, head.size()), 14);
    std::transform(start.begin(), start.end(), start.begin(),
                   [](unsigned char c) { return char(std::tolower(c)); });
    check(!start.starts_with("<!doctype html") && !start.starts_with("<html"),
          "%s is a web page, not what its name says: the download failed; is there a licence to "
          "accept?",
          path.c_str());
}

[[noreturn]] static void no_such_path(const std::string& path) {
    std::error_code failed;
    if (fs::is_symlink(path, failed))
        fail("%s is a link to %s, which is not there", path.c_str(),
             printable(fs::read_symlink(path, failed).string()).c_str());
    bool hub_name = std::count(path.begin(), path.end(), '/') == 1 && path[0] != '/' &&
                    path[0] != '.' && path.back() != '/';
    fail("%s: no such folder, expected one as Hugging Face publishes it%s", path.c_str(),
         hub_name ? format("; to download: hf download %s --local-dir FOLDER", path.c_str()).c_str()
                  : "");
}

// The header of a safetensors file comes after its length, and its metadata first.
static bool is_safetensors(const std::string& head) {
    return head.size() > 8 && head[8] == '{' && head[5] == 0 && head[6] == 0 && head[7] == 0;
}

bool is_bases_file(const std::string& path) {
    if (!file_exists(path)) return false;
    std::string head = head_of(path, 1 << 16);
    return is_safetensors(head) && head.find("\"stief-bases\"") != head.npos;
}

// What a file is, by its bytes and then by its name: "a file" where neither says.
static std::string kind_of_file(const std::string& path) {
    std::error_code failed;
    if (!file_exists(path)) return "no file and no folder";
    if (fs::file_size(path, failed) == 0) return "an empty file";
    std::string head = head_of(path, 16), name = fs::path(path).filename().string();
    if (name.starts_with("adapter_")) return "a file of an adapter (LoRA)";
    if (is_safetensors(head)) return "a safetensors file";
    for (const char* end : {".bin", ".pt", ".pth"})
        if (name.ends_with(end)) return "a checkpoint of PyTorch";
    return name.ends_with(".json") ? "a JSON file" : "a file";
}

[[noreturn]] static void not_a_folder(const std::string& path) {
    expect_real_file(path);
    if (is_bases_file(path))
        fail("%s holds bases, no model: give the folder of their model, and --bases %s",
             path.c_str(), path.c_str());
    fs::path parent = fs::path(path).parent_path();
    std::string folder = parent.empty() ? "." : parent.string();
    bool published = file_exists(join(folder, "config.json"));
    fail("%s is %s, expected a folder as Hugging Face publishes it%s", path.c_str(),
         kind_of_file(path).c_str(), published ? (": " + folder).c_str() : "");
}

void expect_bases_file(const std::string& path) {
    const char* name = path.c_str();
    check(!folder_exists(path), "%s is a folder, expected a file that stief calibrate wrote", name);
    expect_real_file(path);
    if (!file_exists(path) || is_safetensors(head_of(path, 16))) return;
    fail("%s is %s, expected one that stief calibrate wrote", name, kind_of_file(path).c_str());
}

// models--ORG--NAME of the hub's cache: refs/main names the snapshot, which is the model folder.
static void expect_no_cache_root(const std::string& path) {
    std::string snapshots = join(path, "snapshots");
    if (folder_exists(snapshots)) {
        std::vector<std::string> all = names_in(snapshots);
        std::string main = head_of(join(join(path, "refs"), "main"), 64);
        main.resize(std::min(main.find_first_of(" \r\n"), main.size()));
        bool named = std::find(all.begin(), all.end(), main) != all.end();
        std::string one = named ? main : all.empty() ? "" : all[0];
        if (one.empty())
            fail("%s is a folder of the hub's cache without a snapshot: the download was "
                 "interrupted",
                 path.c_str());
        fail("%s is a folder of the hub's cache; the model is in a snapshot of it%s: %s",
             path.c_str(), all.size() > 1 ? format(", of %zu", all.size()).c_str() : "",
             join(snapshots, one).c_str());
    }
    for (const std::string& cache : {path, join(path, "hub")})
        if (std::string model = first_that(cache, "models--", ""); !model.empty())
            fail("%s is the hub's cache; give a model's snapshot in it, as in %s/snapshots/…",
                 path.c_str(), join(cache, model).c_str());
}

static std::string meta_checkpoint(const std::string& folder) {
    return first_that(folder, "consolidated.", "");
}

void expect_model_folder(const std::string& path) {
    std::error_code failed;
    if (!fs::exists(path, failed)) no_such_path(path);
    if (!folder_exists(path)) not_a_folder(path);
    const char* name = path.c_str();
    expect_real_file(join(path, "config.json"));
    if (file_exists(join(path, "config.json"))) return;
    if (std::string adapter = join(path, "adapter_config.json"); file_exists(adapter)) {
        std::string base = member_of(adapter, "base_model_name_or_path");
        fail("%s is an adapter (LoRA)%s, no whole model; merge it into its base and save that as "
             "safetensors",
             name, base.empty() ? "" : (" of " + base).c_str());
    }
    expect_no_cache_root(path);
    if (std::string meta = meta_checkpoint(join(path, "original")); !meta.empty())
        fail("%s has no config.json, but Meta's own checkpoint (original/%s), which is not read; download "
             "all of what Hugging Face publishes (config.json, *.safetensors, tokenizer.json)",
             name, meta.c_str());
    if (std::string meta = meta_checkpoint(path); !meta.empty()) {
        std::string above = join(path, "..");
        bool published = file_exists(join(above, "config.json"));
        fail("%s holds Meta's own checkpoint (%s), which is not read; %s", name, meta.c_str(),
             published ? ("give the folder above it: " + above).c_str()
                       : "use the folder that Hugging Face publishes (config.json, *.safetensors)");
    }
    if (std::string gguf = first_that(path, "", ".gguf"); !gguf.empty())
        fail("%s holds GGUF files (%s), which are not read; give the folder of the original model",
             name, gguf.c_str());
}

void no_config(const std::string& folder) {
    fail("%s: no config.json in it (expected a folder as Hugging Face publishes it)",
         folder.c_str());
}

void no_weights(const std::string& folder) {
    const char* name = folder.c_str();
    if (std::string shard = first_that(folder, "model-", ".safetensors"); !shard.empty())
        fail("%s: %s and its like are shards without model.safetensors.index.json, which says what "
             "is where; download that file too",
             name, shard.c_str());
    for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
        if (file_exists(join(folder, other)))
            fail("%s: no model.safetensors; %s is not read: save the model as safetensors "
                 "(transformers: save_pretrained)",
                 name, other);
    if (std::string shard = first_that(folder, "pytorch_model-", ".bin"); !shard.empty())
        fail("%s: no model.safetensors; %s is not read: save the model as safetensors "
             "(transformers: save_pretrained)",
             name, shard.c_str());
    for (const std::string& where : {folder, join(folder, "original")})
        if (std::string meta = meta_checkpoint(where); !meta.empty())
            fail("%s: no model.safetensors; Meta's own checkpoint (%s) is not read: download the "
                 "*.safetensors files too",
                 name, join(where, meta).c_str());
    if (file_exists(join(folder, "adapter_model.safetensors")))
        fail("%s: no model.safetensors; adapter_model.safetensors is an adapter (LoRA), no whole "
             "model",
             name);
    if (std::string gguf = first_that(folder, "", ".gguf"); !gguf.empty())
        fail("%s: no model.safetensors; GGUF files (%s) are not read", name, gguf.c_str());
    fail("%s: neither model.safetensors nor model.safetensors.index.json is there", name);
}

}  // namespace stief
