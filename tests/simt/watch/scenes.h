// Every kernel once on each of its paths, on shapes just large enough for it: what the race checker
// watches and what the table of counts is of. Results are not looked at: the tests of operations
// do.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace stief::testing {

struct Scene {
    std::string name;
    std::function<std::vector<float>()> play;  // what came out
};
const std::vector<Scene>& scenes();

}  // namespace stief::testing
