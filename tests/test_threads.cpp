// The pool of threads: every piece once, errors come back, and nothing is lost under stress.
#include <atomic>
#include <chrono>
#include <thread>

#include "base/limits.h"
#include "base/threads.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("base");

TEST_CASE("every piece runs exactly once, for any number of pieces and threads") {
    for (int count : {1, 2, 3, 8}) {
        Threads threads(count);
        CHECK(threads.count() == count);
        for (size_t n : {0, 1, 2, 3, 7, 1000}) {
            CAPTURE(count);
            CAPTURE(n);
            std::vector<std::atomic<int>> seen(n);
            threads.run(n, [&](size_t i) { seen.at(i)++; });
            int wrong = 0;
            for (auto& one : seen) wrong += one != 1;
            CHECK(wrong == 0);
        }
    }
}

TEST_CASE("twenty thousand small jobs follow one another without losing a piece") {
    for (int count : {2, 5}) {
        Threads threads(count);
        int wrong = 0;
        for (int job = 0; job < 20000; job++) {
            size_t n = size_t(job % 5), sum = 0;
            std::vector<size_t> found(n, 0);  // plain memory: run() must order writes and reads
            threads.run(n, [&](size_t i) { found[i] = i + 1; });
            for (size_t one : found) sum += one;
            wrong += sum != n * (n + 1) / 2;
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("workers that went to sleep wake for the next job") {
    Threads threads(3);
    for (int job = 0; job < 20; job++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(job % 3));
        std::atomic<int> done{0};
        threads.run(50, [&](size_t) { done++; });
        CHECK(done == 50);
    }
}

TEST_CASE("the caller sleeps through a long piece of a worker and still sees its end") {
    Threads threads(2);
    for (int job = 0; job < 5; job++) {
        std::atomic<int> done{0};
        threads.run(2, [&](size_t i) {
            if (i == 1) std::this_thread::sleep_for(std::chrono::milliseconds(3));
            done++;
        });
        CHECK(done == 2);
    }
}

TEST_CASE("an exception comes back after all pieces have ended, and the pool goes on") {
    for (int count : {1, 3}) {
        CAPTURE(count);
        Threads threads(count);
        std::atomic<int> done{0};
        CHECK_THROWS_WITH_AS(threads.run(100,
                                         [&](size_t i) {
                                             done++;
                                             check(i % 10 != 3, "piece of ten failed");
                                         }),
                             "piece of ten failed", Error);
        CHECK(done == 100);
        threads.run(10, [&](size_t) { done++; });
        CHECK(done == 110);
    }
}

TEST_CASE("pools come and go, used or not") {
    for (int i = 0; i < 200; i++) {
        Threads threads(1 + i % 4);
        if (i % 3) threads.run(size_t(i % 7), [](size_t) {});
    }
}

TEST_CASE("the default is what this process may use, at least one core and some memory") {
    CHECK(usable_cores() >= 1);
    CHECK(Threads().count() == usable_cores());
    CHECK(available_memory() > 0);
}

TEST_SUITE_END();
