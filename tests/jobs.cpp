#include "jobs.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "base/check.h"

namespace stief::testing {

// What all processes see.
struct Board {
    std::atomic<int> taken = 0, passed = 0, failed = 0, skipped = 0;
};

Tally hand_out(int jobs, const std::function<bool(int number, Tally& tally)>& one) {
    void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                        -1, 0);
    check(memory != MAP_FAILED, "no memory that processes share");
    Board* board = new (memory) Board;
    std::fflush(nullptr);
    for (int j = 0; j < jobs; j++) {
        pid_t child = fork();
        check(child >= 0, "fork failed");
        if (child > 0) continue;
        std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines of several processes stay whole
        for (bool more = true; more;) {
            Tally tally;
            more = one(++board->taken, tally);
            board->passed += tally.passed, board->failed += tally.failed;
            board->skipped += tally.skipped;
        }
        std::fflush(nullptr);
        _exit(0);
    }
    int lost = 0;
    for (int status; wait(&status) > 0;) lost += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    Tally all = {board->passed, board->failed + lost, board->skipped, lost};
    munmap(memory, sizeof(Board));
    return all;
}

}  // namespace stief::testing
