// A folder for a test's files: what testing.h says of it, for programs without doctest's main too.
#include <unistd.h>

#include "testing.h"

namespace stief::testing {

Scratch::Scratch() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stief-test-XXXXXX").string();
    check(mkdtemp(pattern.data()) != nullptr, "no scratch folder at %s", pattern.c_str());
    folder = pattern;
}

Scratch::~Scratch() {
    std::error_code ignored;
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all, ignored);
    std::filesystem::remove_all(folder, ignored);
}

}  // namespace stief::testing
