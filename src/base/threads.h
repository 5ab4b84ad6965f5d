// A pool of threads that share the pieces of one job after another. A worker that finds nothing to
// do spins for a bounded time and then sleeps: OpenMP's barriers, which spin on, collapse when
// another process wants a core. Pieces are claimed one at a time, so that a thread that lost its
// core holds up one piece and not its share of the whole.
#pragma once
#include <cstddef>
#include <memory>

namespace stief {

struct Threads {
    // 0: as many as this process may run on (affinity, cgroup quota).
    explicit Threads(int count = 0);
    ~Threads();
    Threads(const Threads&) = delete;

    int count() const;

    // Calls piece(i) once for each i in 0 … n−1, on any thread, in any order; returns after the
    // last. What a piece computes must not depend on the thread: results are the same for every
    // count. An exception thrown by a piece is thrown again here, after all pieces have ended. Must
    // not be called from within a piece.
    template <class F>
    void run(size_t n, const F& piece) {
        run_erased(n, [](const void* f, size_t i) { (*static_cast<const F*>(f))(i); }, &piece);
    }

  private:
    void run_erased(size_t n, void (*call)(const void*, size_t), const void* piece);
    struct Pool;
    std::unique_ptr<Pool> pool;
};

}  // namespace stief
