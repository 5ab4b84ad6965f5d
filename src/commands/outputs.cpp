#include "commands/outputs.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/file.h"
#include "formats/safetensors.h"

namespace stief {

namespace fs = std::filesystem;

// Only regular files are compared: a terminal may well be read and written.
static std::optional<FileId> regular_file(const NamedFile& file) {
    struct stat status;
    bool there = file.path == "-" ? fstat(STDIN_FILENO, &status) == 0
                                  : stat(file.path.c_str(), &status) == 0;
    if (!there || !S_ISREG(status.st_mode)) return {};
    return FileId{uint64_t(status.st_dev), uint64_t(status.st_ino)};
}

static std::string whole_name(const std::string& path) {
    std::error_code failed;
    fs::path absolute = fs::absolute(path, failed);
    fs::path whole = fs::weakly_canonical(absolute, failed);
    return failed ? absolute.string() : whole.string();
}

static bool same_place(const NamedFile& a, const NamedFile& b) {
    std::optional<FileId> one = regular_file(a), other = regular_file(b);
    if (one && other) return *one == *other;
    bool devices = file_id(a.path) && !one;      // /dev/null may be written twice
    return !one && !other && !devices && whole_name(a.path) == whole_name(b.path);
}

// What a model folder holds and a loader reads, whether it is there yet or not: a model.safetensors
// beside shards would be taken for the model.
static bool names_model_file(const std::string& name) {
    for (const char* ending : {".json", ".jinja", ".model", ".bin", ".pth", ".gguf"})
        if (name.ends_with(ending)) return true;
    return name.ends_with(".safetensors") &&
           (name.starts_with("model") || name.starts_with("adapter_model") ||
            name.starts_with("consolidated"));
}

void check_not_of_model(const std::string& role, const std::string& path,
                        const std::string& model) {
    NamedFile output{role, path};
    std::optional<FileId> there = regular_file(output);
    fs::path parent = fs::path(path).parent_path();
    bool inside = file_id(parent.empty() ? "." : parent.string()) == file_id(model);
    bool taken = inside && names_model_file(fs::path(path).filename().string());
    std::error_code failed;
    for (fs::directory_iterator entry(model, failed), end; !failed && there && entry != end;
         entry.increment(failed)) {
        std::string name = entry->path().filename().string();
        taken = taken || (names_model_file(name) && regular_file({"", entry->path()}) == there);
    }
    check(!taken, "%s %s would be a file of the model %s; choose another name", role.c_str(),
          path.c_str(), model.c_str());
}

static bool is_bases(const std::string& path) {
    try {
        auto metadata = SafeTensors::open_file(path).metadata;
        return metadata["format"] == "stief-bases";
    } catch (const Error&) {
        return false;
    }
}

static std::string head_of(const std::string& path) {
    std::string head(16, '\0');
    std::ifstream file(path, std::ios::binary);
    file.read(head.data(), std::streamsize(head.size()));
    head.resize(size_t(std::max<std::streamsize>(0, file.gcount())));
    return head;
}

// Logits have no mark: only what is surely something else is kept.
static bool is_other_than_numbers(const std::string& head) {
    bool safetensors = head.size() > 8 && head[8] == '{' && head[7] == 0;
    return safetensors || head.starts_with("GGUF") || head.starts_with("STIEFTLK") ||
           head.starts_with("<!doctype");
}

static void check_replaces(const Output& output) {
    if (!regular_file(output) || fs::file_size(output.path) == 0) return;
    std::string head = head_of(output.path);
    bool ours = output.kind == Output::Bases ? is_bases(output.path)
                : output.kind == Output::Page ? head.starts_with("<!doctype html")
                                              : !is_other_than_numbers(head);
    const char* names[] = {"no file of bases", "no HTML page", "no file of numbers"};
    check(ours, "%s %s exists and is %s; remove it or choose another name", output.role.c_str(),
          output.path.c_str(), names[output.kind]);
}

static void check_writable(const Output& output) {
    const char* role = output.role.c_str();
    check(!folder_exists(output.path), "%s %s is a folder, expected the name of a file", role,
          output.path.c_str());
    bool regular = regular_file(output).has_value(), there = file_id(output.path).has_value();
    fs::path parent = fs::path(whole_name(output.path)).parent_path();
    const std::string& needed = there && !regular ? output.path : parent.string();
    if (access(needed.c_str(), W_OK) != 0)
        fail("%s: cannot write %s: %s", role, output.path.c_str(), std::strerror(errno));
}

void check_outputs(const std::vector<Output>& outputs, const std::vector<NamedFile>& inputs,
                   const std::string& model) {
    for (size_t i = 0; i < outputs.size(); i++) {
        const Output& output = outputs[i];
        if (output.path.empty()) continue;
        check(output.path != "-", "%s -: expected the name of a file (./- if it is to be called so)",
              output.role.c_str());
        const char *role = output.role.c_str(), *path = output.path.c_str();
        for (const NamedFile& input : inputs)
            if (!input.path.empty() && regular_file(output) && same_place(output, input))
                fail("%s %s is %s, which this run reads; choose another name", role, path,
                     input.path == "-" ? "standard input" : input.role.c_str());
        for (size_t j = 0; j < i; j++)
            if (!outputs[j].path.empty() && same_place(output, outputs[j]))
                fail("%s and %s are one file, %s; give them two names", outputs[j].role.c_str(),
                     role, path);
        check_not_of_model(output.role, output.path, model);
        check_writable(output);
        check_replaces(output);
    }
}

}  // namespace stief
