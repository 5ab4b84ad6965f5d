// Paths that are no model folder: recognised for what they are, in the same words by every opener.
#include "formats/model_folder.h"

#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "cache/basis.h"
#include "formats/safetensors.h"
#include "model/config.h"
#include "program.h"

using namespace stief;
using namespace stief::testing;

namespace {

const std::string LFS =
    "version https://git-lfs.github.com/spec/v1\noid sha256:0d\nsize 22036200\n";

void put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << text;
}

// One thing that is no model, and what is said of it.
struct Thing {
    const char *path, *message;
};
const Thing THINGS[] = {
    {"none", "no such folder"},
    {"acme.gguf", "is a GGUF file"},
    {"blank.safetensors", "is an empty file, expected a folder"},
    {"lora/adapter_config.json", "is a file of an adapter (LoRA)"},
    {"parts/config.json", "is a JSON file, expected a folder as Hugging Face publishes it: "},
    {"parts/model.safetensors", "is a safetensors file, expected a folder"},
    {"parts/model.bin", "is a checkpoint of PyTorch"},
    {"parts/notes", "is a file, expected a folder"},
    {"my.bases", "holds bases, no model: give the folder of their model, and --bases "},
    {"pointer", "is a Git LFS pointer: 22036200 bytes"},
    {"page/config.json", "is a web page"},
    {"page", "is a web page"},
    {"lora", "is an adapter (LoRA) of acme/base"},
    {"models--acme--one", "snapshots/abc"},
    {"hub", "hub/models--acme--one/snapshots"},
    {"home", "home/hub/models--acme--one/snapshots"},
    {"meta", "Meta's own checkpoint (consolidated.00.pth)"},
    {"above", "no config.json, but Meta's own checkpoint (original/consolidated.00.pth)"},
    {"quantised", "holds GGUF files (q4.gguf)"},
    {"dangling", "is a link to nowhere, which is not there"},
    {"broken", "config.json is a link to ../blobs/gone, which is not there: the download was"},
    {"lfs", "config.json is a Git LFS pointer"},
    {"empty", "no config.json in it"},
};

void make_things(const Scratch& scratch) {
    auto path = [&](const std::string& name) { return scratch.path(name); };
    put(path("acme.gguf"), "GGUF\3");
    put(path("blank.safetensors"), "");
    put(path("parts/config.json"), "{}");
    put(path("parts/model.safetensors"), std::string("\2\0\0\0\0\0\0\0{}", 10));
    put(path("parts/model.bin"), "PK\3\4");
    put(path("parts/notes"), "a text that is no model at all");
    put(path("my.bases"), std::string("\55\0\0\0\0\0\0\0", 8) +
                              R"({"__metadata__":{"format":"stief-bases"}}    )");
    put(path("pointer"), LFS);
    put(path("page/config.json"), "\n<!DOCTYPE html><title>Sign in</title>");
    put(path("lora/adapter_config.json"), R"({"base_model_name_or_path": "acme/base"})");
    put(path("lora/tokenizer.json"), "{}");
    put(path("models--acme--one/snapshots/abc/config.json"), "{}");
    put(path("models--acme--one/snapshots/abd/config.json"), "{}");
    put(path("models--acme--one/refs/main"), "abc");
    put(path("hub/models--acme--one/refs/main"), "abc");
    put(path("home/hub/models--acme--one/refs/main"), "abc");
    put(path("meta/consolidated.00.pth"), "PK");
    put(path("above/original/consolidated.00.pth"), "PK");
    put(path("quantised/q4.gguf"), "GGUF");
    put(path("lfs/config.json"), LFS);
    std::filesystem::create_directory(path("empty"));
    std::filesystem::create_directory(path("broken"));
    REQUIRE(symlink("nowhere", path("dangling").c_str()) == 0);
    REQUIRE(symlink("../blobs/gone", path("broken/config.json").c_str()) == 0);
}

template <class Open>
std::string said_by(const Open& open) {
    try {
        open();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_SUITE_BEGIN("formats");

TEST_CASE("what is no model folder is recognised, in the same words for config and tokenizer") {
    Scratch scratch;
    make_things(scratch);
    for (const Thing& thing : THINGS) {
        std::string path = scratch.path(thing.path);
        std::string config = said_by([&] { Config::open(path); });
        CAPTURE(config);
        CHECK(config.find(thing.message) != std::string::npos);
        CHECK(config.find('\n') == std::string::npos);
        CHECK(said_by([&] { Tokenizer::open(path); }) == config);
    }
}

TEST_CASE("weights that are elsewhere, elsewise or not all there are named") {
    const struct { std::string file, text; const char* message; } cases[] = {
        {"model-00001-of-00002.safetensors", "", "shards without model.safetensors.index.json"},
        {"pytorch_model-00001-of-00002.bin", "", "is not read: save the model as safetensors"},
        {"original/consolidated.00.pth", "", "Meta's own checkpoint"},
        {"adapter_model.safetensors", "", "is an adapter (LoRA)"},
        {"model.safetensors", LFS, "model.safetensors is a Git LFS pointer"},
        {"q4.gguf", "GGUF", "GGUF files (q4.gguf) are not read"},
        {"README.md", "", "neither model.safetensors nor"},
    };
    for (const auto& c : cases) {
        Scratch scratch;
        put(scratch.path("config.json"), "{}");
        put(scratch.path(c.file), c.text);
        std::string said = said_by([&] { SafeTensors::open_folder(scratch.folder.string()); });
        CAPTURE(said);
        CHECK(said.find(c.message) != std::string::npos);
    }
    Scratch scratch;
    put(scratch.path("config.json"), "{}");
    REQUIRE(symlink("../../blobs/gone", scratch.path("model.safetensors").c_str()) == 0);
    std::string said = said_by([&] { SafeTensors::open_folder(scratch.folder.string()); });
    CHECK(said.find("the download was interrupted") != std::string::npos);
}

TEST_CASE("weights that MLX has quantised are refused by name") {
    Scratch scratch;
    put(scratch.path("config.json"), R"({"model_type": "llama", "quantization": {"bits": 4}})");
    std::string said = said_by([&] { Config::open(scratch.folder.string()); });
    CHECK(said.find("quantised by MLX (4 bits)") != std::string::npos);
}

TEST_CASE("every verb says the same of what is no model") {
    Scratch scratch;
    make_things(scratch);
    for (const char* name : {"none", "acme.gguf", "lora", "models--acme--one", "empty",
                             "blank.safetensors", "lora/adapter_config.json", "parts/config.json",
                             "parts/model.safetensors", "parts/notes"}) {
        std::string path = scratch.path(name);
        std::string first;
        for (const std::string& words :
             {"chat " + path, "generate " + path + " -p x", "inspect " + path,
              "tokenize " + path + " x", "bench " + path, "perplexity " + path + " README.md",
              "logits " + path + " --ids 1 -o " + scratch.path("o"),
              "calibrate " + path + " README.md -o " + scratch.path("b")}) {
            CAPTURE(words);
            Ran ran = run(words);
            CHECK(ran.status == 1);
            CHECK(std::count(ran.err.begin(), ran.err.end(), '\n') == 1);
            if (first.empty()) first = ran.err;
            CHECK(ran.err == first);
        }
    }
}

TEST_CASE("--bases of what is no file of bases says what it is; inspect opens what is one") {
    Scratch scratch;
    make_things(scratch);
    const struct { const char *name, *message; } cases[] = {
        {"lora", "is a folder, expected a file that stief calibrate wrote"},
        {"acme.gguf", "is a GGUF file"},
        {"blank.safetensors", "is an empty file, expected one that stief calibrate wrote"},
        {"parts/config.json", "is a JSON file, expected one"},
        {"parts/notes", "is a file, expected one"},
        {"parts/model.safetensors", "its metadata has no"},
        {"none", "No such file"},
    };
    for (const auto& c : cases) {
        Ran ran = run("inspect models/parlour --bases " + scratch.path(c.name));
        CAPTURE(ran.err);
        CHECK(ran.status == 1);
        CHECK(ran.err.find(c.message) != std::string::npos);
    }
    // Bases without any tensor: opened as bases, and so found wanting as such.
    Ran ran = run("inspect " + scratch.path("my.bases"));
    CHECK(ran.err.find("it has no layers.0.k.q") != std::string::npos);
    Bases bases = Bases::identity(Config::open("models/parlour"), 8);
    bases.layer[1].v[0].decode[5] = std::nanf("");
    bases.save(scratch.path("nan.bases"), 1);
    ran = run("inspect " + scratch.path("nan.bases"));
    CHECK(ran.status == 1);
    CHECK(ran.err.find("layers.1.v.decode is not finite: the file is damaged") != std::string::npos);
}

TEST_SUITE_END();
