#include "names.h"

#include <unistd.h>
#include <cstdio>

#include <filesystem>
#include <map>
#include <vector>

#include "base/check.h"

namespace stief::simt {

// The lines that addr2line prints, once for each question. The program is linked without -pie:
// addresses are those of the file.
static const std::vector<std::string>& addr2line(const char* options, uintptr_t address) {
    static std::map<std::pair<std::string, uintptr_t>, std::vector<std::string>> known;
    std::vector<std::string>& lines = known[{options, address}];
    if (!lines.empty()) return lines;
    std::string command = format("addr2line -e /proc/%d/exe %s 0x%zx 2>/dev/null", int(getpid()),
                                 options, size_t(address));
    FILE* pipe = popen(command.c_str(), "r");
    char line[4096];
    while (pipe && std::fgets(line, sizeof line, pipe)) {
        std::string one = line;
        while (!one.empty() && one.back() == '\n') one.pop_back();
        size_t end = one.find(" (discriminator");
        lines.push_back(one.substr(0, end));
    }
    if (pipe) pclose(pipe);
    if (lines.empty()) lines.push_back(format("code 0x%zx", size_t(address)));
    return lines;
}

std::string relative(const std::string& file) {
    std::string path = std::filesystem::path(file).lexically_normal().string();
    for (const char* root : {"cuda/", "tools/", "tests/"})
        for (size_t at = path.rfind(root); at != std::string::npos; at = std::string::npos)
            if (at == 0 || path[at - 1] == '/') return path.substr(at);
    return path;
}

// The innermost of the functions that were inlined there which is not the harness's own.
std::string place_of(uint32_t code) {
    const std::vector<std::string>& lines = addr2line("-i", code - 1);
    for (const std::string& one : lines)
        if (one.find("tests/simt/intrinsics.cuh") == std::string::npos) return relative(one);
    return relative(lines[0]);
}

std::string short_name(const void* function) {
    if (!function) return "a test's kernel";
    std::string name = addr2line("-fC", uintptr_t(function))[0];
    for (const char* part : {"stief::", "(anonymous namespace)::", "void "})
        for (size_t at; (at = name.find(part)) != std::string::npos;)
            name.erase(at, std::string(part).size());
    int depth = 0;
    for (size_t i = 0; i < name.size(); i++) {
        depth += (name[i] == '<') - (name[i] == '>');
        if (name[i] == '(' && depth == 0) name.resize(i);
    }
    return name;
}

}  // namespace stief::simt
