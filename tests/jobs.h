// Test cases handed out to processes.
#pragma once
#include <functional>

namespace stief::testing {

// What a run found: test cases, and processes that ended within one (a failure each).
struct Tally {
    int passed = 0, failed = 0, skipped = 0, lost = 0;
};

// Forks `jobs` processes; each takes the next number, 1, 2, …, that no other took, and calls
// one(number), until that says that there is no such case (false). one() counts in the Tally it is
// given, its process's own.
Tally hand_out(int jobs, const std::function<bool(int number, Tally& tally)>& one);

}  // namespace stief::testing
