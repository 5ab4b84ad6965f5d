// The player: which thread runs next, barriers, warp exchanges, what has gone wrong and where.
#include "simt.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <exception>
#include <numeric>
#include <utility>
#include <vector>

#include "base/random.h"
#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace stief::simt {

constexpr unsigned LANES = 32, MAX_THREADS = 1024;

enum class State : uint8_t { Ready, AtBarrier, AtExchange, Done };

struct Thread {
    Fiber fiber;
    State state;
    unsigned mask;  // of the exchange it waits at
    void* operands;
    Combine combine;
    Site site;  // of the barrier or exchange it waits at, or met last
    bool waited;  // for the kernels before this one
};

struct Warp {
    unsigned ready = 0, at_exchange = 0, alive = 0;  // one bit a lane
};
static_assert(MAX_THREADS / LANES == 32, "one bit a warp");

static struct Block {
    Thread threads[MAX_THREADS];
    Warp warps[MAX_THREADS / LANES];
    unsigned count = 0, warp_count = 0;
    unsigned ready = 0;  // warps with a thread that can run
    unsigned current = 0;
    unsigned alive = 0, at_barrier = 0;
    Site first_site;  // of those that wait at the barrier
    unsigned first_thread = 0;
    char* shared = nullptr;
    size_t shared_bytes = 0;
    const std::function<void()>* kernel = nullptr;
    std::exception_ptr error;
    Random random{1};
    bool playing = false, ahead = false;
} block;

void forget_copies(unsigned threads);  // async.cpp

static std::string place(unsigned thread) {
    return format("block (%u, %u, %u), thread %u", blockIdx.x, blockIdx.y, blockIdx.z, thread);
}
std::string where() {
    return block.playing ? place(block.current) : "host";
}
static std::string at(const Site& site) {
    return format("%s:%u", site.file, site.line);
}
static bool same(const Site& a, const Site& b) {
    return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file));
}

char* shared_memory() {
    return block.shared;
}
size_t shared_size() {
    return block.shared_bytes;
}
bool watched(const void* address) {
    const Fiber& fiber = block.threads[block.current].fiber;
    return block.playing && uintptr_t(address) - uintptr_t(fiber.stack) >= fiber.stack_bytes;
}
void await_kernels() {
    check(block.playing, "simt: await_kernels() outside a kernel");
    block.threads[block.current].waited = true;
}
bool before_wait() {
    return block.playing && block.ahead && !block.threads[block.current].waited;
}
bool in_shared(const void* address, size_t bytes) {
    const char* p = static_cast<const char*>(address);
    return p >= block.shared && p + bytes <= block.shared + block.shared_bytes;
}

static void make_ready(unsigned thread) {
    block.threads[thread].state = State::Ready;
    block.warps[thread / LANES].ready |= 1u << thread % LANES;
    block.ready |= 1u << thread / LANES;
}

static unsigned lowest(unsigned bits) {
    return unsigned(std::countr_zero(bits));
}

static void take(unsigned thread) {
    Warp& warp = block.warps[thread / LANES];
    warp.ready &= ~(1u << thread % LANES);
    if (!warp.ready) block.ready &= ~(1u << thread / LANES);
    block.current = threadIdx.x = thread;
}

// The first of the bits from start on, upwards or downwards, around.
static unsigned first_from(unsigned bits, unsigned start, bool down) {
    return down ? (start - unsigned(std::countl_zero(std::rotr(bits, int(start) + 1)))) % 32
                : (start + unsigned(std::countr_zero(std::rotr(bits, int(start))))) % 32;
}

// A thread that can run; there must be one. Forward and Reverse stay with the warp they are at, with
// its first or its last lane.
static unsigned whose_turn() {
    bool shuffled = order == Order::Shuffled, down = order == Order::Reverse;
    unsigned start = block.current / LANES;
    if (shuffled) start = unsigned(block.random.next() % block.warp_count);
    unsigned warp = first_from(block.ready, start, down), from = down ? LANES - 1 : 0;
    if (shuffled) from = unsigned(block.random.next() >> 59);
    return warp * LANES + first_from(block.warps[warp].ready, from, down);
}

// No thread can run: everybody has returned, or meets at the barrier, or nothing will ever move
// again.
static bool open_barrier() {
    if (block.alive == 0) return false;
    if (block.at_barrier == block.alive) {
        block.at_barrier = 0;
        if (watcher) watcher->barrier(block.first_site);
        for (unsigned i = 0; i < block.count; i++)
            if (block.threads[i].state == State::AtBarrier) make_ready(i);
        // The order begins anew: not with the warp that came last.
        block.current = order == Order::Reverse ? block.count - 1 : 0;
        return true;
    }
    unsigned waiting = 0;
    while (block.threads[waiting].state != State::AtExchange) waiting++;
    const Thread& thread = block.threads[waiting];
    std::string rest = block.at_barrier ? format("; %u threads wait at the barrier %s",
                                                 block.at_barrier, at(block.first_site).c_str())
                                        : "";
    fail("%s waits for its warp at %s for ever (mask %08x, there: %08x)%s", place(waiting).c_str(),
         at(thread.site).c_str(), thread.mask, block.warps[waiting / LANES].at_exchange,
         rest.c_str());
}

// Gives way to the thread whose turn it is; to the player when there is none or something is wrong.
static void give_way(bool last = false) {
    unsigned from = block.current;
    Fiber* to = &player_fiber();
    try {
        if (!block.error && (block.ready || open_barrier())) {
            take(whose_turn());
            to = &block.threads[block.current].fiber;
        }
    } catch (...) {
        block.error = std::current_exception();
    }
    if (to == &block.threads[from].fiber) return;
    statistics.switches++;
    switch_to(block.threads[from].fiber, *to, last);
}

static void finish() {
    unsigned me = block.current, lane = me % LANES;
    Warp& warp = block.warps[me / LANES];
    if (before_wait() && !block.error)
        block.error = std::make_exception_ptr(Error(format(
            "%s has returned without await_kernels(): the kernel behind this one would not wait "
            "for those before it",
            place(me).c_str())));
    block.threads[me].state = State::Done;
    block.alive--;
    warp.alive &= ~(1u << lane);
    for (unsigned waiting = warp.at_exchange; waiting && !block.error; waiting &= waiting - 1) {
        unsigned other = me - lane + lowest(waiting);
        if (block.threads[other].mask >> lane & 1)
            block.error = std::make_exception_ptr(
                Error(format("%s has returned, but thread %u waits for it at %s", place(me).c_str(),
                             other, at(block.threads[other].site).c_str())));
    }
}

static void run_thread() {
    entered();
    try {
        (*block.kernel)();
    } catch (...) {
        if (!block.error) block.error = std::current_exception();
    }
    finish();
    give_way(true);
    std::terminate();
}

void barrier(const Site& site) {
    if (!block.playing) fail("simt: __syncthreads() outside a kernel");
    Thread& me = block.threads[block.current];
    if (block.at_barrier == 0)
        block.first_site = site, block.first_thread = block.current;
    else if (!same(block.first_site, site))
        fail("divergent barrier: %s is at %s, thread %u at %s", where().c_str(), at(site).c_str(),
             block.first_thread, at(block.first_site).c_str());
    block.at_barrier++;
    me.state = State::AtBarrier, me.site = site;
    give_way();
}

// The last lane has come: all must be at the same place of the program, then all go on.
static void complete(Warp& warp, unsigned base, unsigned mask) {
    const Thread& me = block.threads[block.current];
    void* operands[LANES] = {};
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        Thread& other = block.threads[base + lowest(rest)];
        if (other.combine != me.combine || other.mask != mask || !same(other.site, me.site))
            fail("divergent warp: %s is at %s (mask %08x), thread %u at %s (mask %08x)",
                 where().c_str(), at(me.site).c_str(), mask, base + lowest(rest),
                 at(other.site).c_str(), other.mask);
        operands[lowest(rest)] = other.operands;
    }
    if (watcher) {
        check(me.combine || mask == warp.alive,
              "%s: __syncwarp of a part of the warp at %s: the watcher knows only whole ones",
              where().c_str(), at(me.site).c_str());
        watcher->meeting(base / LANES);
        if (!me.combine) watcher->warp_barrier(base / LANES, me.site);
    }
    if (me.combine) me.combine(operands, mask);
    warp.at_exchange &= ~mask;
    for (unsigned rest = mask; rest; rest &= rest - 1) make_ready(base + lowest(rest));
}

void meet(unsigned mask, void* operands, Combine combine, const Site& site) {
    if (!block.playing) fail("simt: a warp exchange outside a kernel");
    unsigned lane = block.current % LANES, base = block.current - lane;
    Thread& me = block.threads[block.current];
    Warp& warp = block.warps[base / LANES];
    if (!(mask >> lane & 1))
        fail("%s is not in the mask %08x of its own exchange at %s", where().c_str(), mask,
             at(site).c_str());
    if (mask & ~warp.alive)
        fail("%s exchanges at %s with thread %u, which %s", where().c_str(), at(site).c_str(),
             base + lowest(mask & ~warp.alive),
             base + lowest(mask & ~warp.alive) < block.count ? "has returned"
                                                                       : "does not exist");
    me.state = State::AtExchange;
    me.mask = mask, me.operands = operands, me.combine = combine, me.site = site;
    warp.at_exchange |= 1u << lane;
    if ((warp.at_exchange & mask) == mask) complete(warp, base, mask);
    give_way();
}

static void play_block(size_t shared_bytes) {
    block.shared_bytes = shared_bytes;
    block.shared = static_cast<char*>(allocate(shared_bytes, Kind::Shared));
    block.alive = block.count, block.at_barrier = 0, block.ready = 0;
    block.error = nullptr;
    for (Warp& warp : block.warps) warp = {};
    for (unsigned i = 0; i < block.count; i++) {
        begin(block.threads[i].fiber, i, run_thread);
        block.threads[i].waited = false;
        make_ready(i);
        block.warps[i / LANES].alive |= 1u << i % LANES;
    }
    unsigned first = order == Order::Reverse ? block.count - 1 : 0;
    if (order == Order::Shuffled) first = unsigned(block.random.below(block.count));
    take(first);
    block.playing = true;
    if (watcher) watcher->begin_block(block.count);
    switch_to(player_fiber(), block.threads[first].fiber, false);
    block.playing = false;
    forget_copies(block.count);
    statistics.blocks++;
    if (block.error) {
        release(block.shared, false);
        std::rethrow_exception(std::exchange(block.error, nullptr));
    }
    release(block.shared);
}

void play(dim3 grid, unsigned count, size_t shared_bytes, const std::function<void()>& kernel,
          const void* function, bool ahead) {
    check(!block.playing, "simt: a launch inside a kernel");
    if (watcher) watcher->begin_launch(function);
    gridDim = grid, blockDim = dim3(count);
    block.count = count, block.warp_count = (count + LANES - 1) / LANES;
    block.kernel = &kernel, block.ahead = ahead;
    block.random = Random(seed);
    std::vector<size_t> blocks(size_t(grid.x) * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), size_t(0));
    if (order == Order::Reverse) std::reverse(blocks.begin(), blocks.end());
    if (order == Order::Shuffled)
        for (size_t i = blocks.size(); i > 1; i--)
            std::swap(blocks[i - 1], blocks[block.random.below(i)]);
    for (size_t one : blocks) {
        blockIdx = {unsigned(one % grid.x), unsigned(one / grid.x % grid.y),
                    unsigned(one / grid.x / grid.y)};
        play_block(shared_bytes);
    }
    if (watcher) watcher->end_launch();
}

}  // namespace stief::simt
