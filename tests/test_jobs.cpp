#include <csignal>

#include "jobs.h"
#include "testing.h"

using namespace stief::testing;

TEST_SUITE("base") {
    TEST_CASE("cases handed out to processes are each run once; a lost process is a failure") {
        auto run = [](int jobs, int cases, int lost) {
            return hand_out(jobs, [=](int number, Tally& tally) {
                if (number == lost) std::raise(SIGKILL);
                if (number <= cases) (number % 5 ? tally.passed : tally.failed)++;
                return number < cases;
            });
        };
        Tally all = run(3, 20, 0);
        CHECK(all.passed == 16);
        CHECK(all.failed == 4);
        Tally none = run(2, 0, 0);
        CHECK(none.passed + none.failed + none.skipped == 0);
        Tally cut = run(3, 20, 7);
        CHECK(cut.passed == 15);
        CHECK(cut.failed == 5);
        CHECK(cut.lost == 1);
    }
}
