// What a run will write, looked at before it works for hours: nothing that it reads is written
// over, nor a file of the model, nor what such a run plainly never wrote.
#pragma once
#include <string>
#include <vector>

namespace stief {

struct NamedFile {
    std::string role, path;                    // "--report", "r.html"; path "": not given
};

struct Output : NamedFile {
    enum Kind { Bases, Page, Numbers } kind;   // what is replaced without a question
};

// inputs: "-" is standard input. Files are compared by device and inode, so that links and other
// spellings of a name are seen. Error where
//     an output is an input, another output, or named as a file of the model folder,
//     an output exists and is no file of its kind, is a folder, or cannot be written.
void check_outputs(const std::vector<Output>& outputs, const std::vector<NamedFile>& inputs,
                   const std::string& model);

// The third of these alone: path would be a file of the model.
void check_not_of_model(const std::string& role, const std::string& path, const std::string& model);

}  // namespace stief
