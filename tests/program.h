// Runs the built program as a user would: the binary beside this test program.
#pragma once
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>

#include "base/file.h"
#include "testing.h"

namespace stief::testing {

inline std::string program() {
    std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
    return (self.parent_path() / "stief").string();
}

struct Ran {
    int status = -1;
    std::string out, err;
};

// words: as typed in a shell, after "stief". input: what standard input holds. out: where standard
// output goes, if not into Ran.
inline Ran run(const std::string& words, const std::string& input = "", std::string out = "") {
    Scratch scratch;
    if (out.empty()) out = scratch.path("out");
    std::ofstream(scratch.path("out"));
    std::ofstream(scratch.path("in"), std::ios::binary) << input;
    std::string command = "'" + program() + "' " + words + " < '" + scratch.path("in") + "' > '" +
                          out + "' 2> '" + scratch.path("err") + "'";
    int status = std::system(command.c_str());
    Ran ran;
    ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    ran.out = read_text(scratch.path("out"));
    ran.err = read_text(scratch.path("err"));
    return ran;
}

}  // namespace stief::testing
