// One word, the gate, says all that threads must agree on: which job it is, whether it is open, and
// how many workers are inside. A worker enters an open job once, claims pieces until none is left,
// and goes. The caller works too, shuts the gate when it finds no more pieces, and waits until
// nobody is inside. A worker that slept through a job was never inside it, so nobody waits for it.
#include "base/threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"

namespace stief {

// Long enough to bridge the serial code between two jobs of a decoder layer, short enough to be
// nothing against a time slice when another process wants the core.
constexpr auto SPIN = std::chrono::microseconds(60);

static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Polls ready() for at most SPIN.
template <class F>
static bool spin_until(const F& ready) {
    auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < 32; i++, relax())
            if (ready()) return true;
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

struct Threads::Pool {
    // gate = job number · JOB + workers inside · INSIDE + OPEN
    static constexpr uint64_t OPEN = 1, INSIDE = 2, JOB = uint64_t(1) << 24;

    alignas(64) std::atomic<uint64_t> gate{0};
    alignas(64) std::atomic<size_t> next{0};       // the first piece that nobody has claimed
    alignas(64) std::atomic<int> sleeping{0};      // workers asleep, or about to be
    std::atomic<bool> caller_sleeps{false}, stop{false};

    size_t n = 0;                                  // the job, constant while the gate is open
    void (*call)(const void*, size_t) = nullptr;
    const void* piece = nullptr;

    std::mutex mutex;                              // guards error and both kinds of sleep
    std::condition_variable opened, left;
    std::exception_ptr error;
    std::vector<std::thread> workers;

    void claim_pieces();
    bool enter(uint64_t& last_job);
    void leave();
    void work();
    void run();
};

void Threads::Pool::claim_pieces() {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
        try {
            call(piece, i);
        } catch (...) {
            std::lock_guard lock(mutex);
            if (!error) error = std::current_exception();
        }
    }
}

// Takes part in the open job unless it is the one that this worker was last in.
bool Threads::Pool::enter(uint64_t& last_job) {
    uint64_t now = gate.load();
    while ((now & OPEN) && now / JOB != last_job)
        if (gate.compare_exchange_weak(now, now + INSIDE)) {
            last_job = now / JOB;
            return true;
        }
    return false;
}

void Threads::Pool::leave() {
    uint64_t now = gate.fetch_sub(INSIDE) - INSIDE;
    if ((now % JOB) == 0 && caller_sleeps.load()) {        // shut and empty
        std::lock_guard lock(mutex);                       // the caller is waiting, not about to
        left.notify_one();
    }
}

void Threads::Pool::work() {
    uint64_t last_job = 0;
    for (;;) {
        bool inside = false;
        auto ready = [&] { return stop.load() || (inside = enter(last_job)); };
        if (!spin_until(ready)) {
            std::unique_lock lock(mutex);
            sleeping++;                    // before the last look at the gate: run()
            opened.wait(lock, ready);      //   opens it before it looks at sleeping
            sleeping--;
        }
        if (!inside) return;
        claim_pieces();
        leave();
    }
}

void Threads::Pool::run() {
    next.store(0, std::memory_order_relaxed);
    uint64_t job = (gate.load() / JOB + 1) * JOB;
    gate.store(job + OPEN);                                // publishes n, call, piece, next
    if (sleeping.load() > 0) {
        { std::lock_guard lock(mutex); }                   // who counted itself asleep now is
        opened.notify_all();
    }
    claim_pieces();

    gate.fetch_sub(OPEN);
    auto empty = [&] { return gate.load() == job; };
    if (spin_until(empty)) return;
    std::unique_lock lock(mutex);
    caller_sleeps = true;                                  // before the last look at the gate
    left.wait(lock, empty);
    caller_sleeps = false;
}

Threads::Threads(int count) : pool(new Pool) {
    if (count <= 0) count = usable_cores();
    pool->workers.reserve(size_t(count));
    try {
        for (int i = 1; i < count; i++) pool->workers.emplace_back([p = pool.get()] { p->work(); });
    } catch (const std::system_error&) {
    }    // the system gives no more: those that are there do
}

Threads::~Threads() {
    pool->stop = true;
    { std::lock_guard lock(pool->mutex); }  // nobody is between its last look and sleep
    pool->opened.notify_all();
    for (std::thread& worker : pool->workers) worker.join();
}

int Threads::count() const {
    return int(pool->workers.size()) + 1;
}

void Threads::run_erased(size_t n, void (*call)(const void*, size_t), const void* piece) {
    if (n == 0) return;
    pool->n = n, pool->call = call, pool->piece = piece;
    if (n == 1 || pool->workers.empty()) {
        pool->next = 0;
        pool->claim_pieces();
    } else {
        pool->run();
    }
    if (pool->error) std::rethrow_exception(std::exchange(pool->error, nullptr));
}

}  // namespace stief
