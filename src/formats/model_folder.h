// What a path is that is no model folder, and what to do about it: said in one place, so that every
// verb says the same.
#pragma once
#include <string>

namespace stief {

// Error where path is not there, is a file, or is a folder that is recognised as something else:
// the hub's cache, an adapter, Meta's own checkpoint, GGUF files. A folder that merely lacks a file
// is let through: what needs the file says so.
void expect_model_folder(const std::string& path);

// Whether path is a file of bases, by the first bytes of it: it may be damaged further on.
bool is_bases_file(const std::string& path);
// Error where path is there and no safetensors file: said as expect_model_folder says it.
void expect_bases_file(const std::string& path);

// Error where path is a link to nothing (an interrupted download), or its bytes are those of a Git
// LFS pointer, a GGUF file or a web page. Nothing is said of a path that is not there at all.
void expect_real_file(const std::string& path);

// Called where a folder has no config.json, or nothing of a model at all.
[[noreturn]] void no_config(const std::string& folder);
// Called where a folder has neither model.safetensors nor its index.
[[noreturn]] void no_weights(const std::string& folder);

}  // namespace stief
