// Races between the threads of a launch, exactly: two accesses of one byte by two threads, one of
// them a write, that nothing orders. What orders them:
//     __syncthreads     everything before it by any thread of the block, everything after it
//     __syncwarp        the same within the warp
//     the end of a launch
// Shuffles, votes, ldmatrix and mma order nothing, nor do atomics, which only do not race with each
// other; threads of two blocks are never ordered within a launch. A cp.async writes from its call
// to the thread's wait: before that nobody may touch its bytes, the thread itself included, and
// others only after a barrier that follows the wait. ldmatrix reads a row by the lane that names it
// and by the lanes that receive it.
//
// A kernel that was launched ahead may begin while any kernel before it runs: until a thread of it has
// come to await_kernels() it may write nothing but shared memory, and read nothing that a kernel has
// ever written.
//
// Whatever the order of playing, a race is found: accesses are compared by the barriers between
// them, not by what happened (Flanagan and Freund 2009, FastTrack; a block's barriers make one
// number, its phase, of most of the vector clock).
#pragma once
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "simt.h"

namespace stief::simt {

struct Race {
    const void* function;  // of the kernel
    uint3 block;
    unsigned first, second;  // threads; first: of any block before, where other_block
    uint32_t first_code, second_code;
    Access first_kind, second_kind;
    bool other_block, shared;
    bool early;    // second alone: ahead of await_kernels()
    size_t at, bytes;  // of the byte in its memory; of that memory

    std::string text() const;
};

class RaceChecker final : public Watcher {
  public:
    std::vector<Race> races;  // one for each pair of places and kernel
    bool throws = true;       // an Error with the first race, at the end of its launch
    std::string ignored;      // "file:line" of a barrier, or of a wait for copies, that is to order nothing
    std::set<const void*> kernels;  // that were launched

    std::set<std::string> sites() const;  // of the barriers and waits met

    RaceChecker();
    ~RaceChecker() override;

    void begin_launch(const void* function) override;
    void begin_block(unsigned threads) override;
    void access(unsigned thread, const void* address, size_t bytes, Access kind,
                const void* code) override;
    void barrier(const Site& site) override;
    void warp_barrier(unsigned warp, const Site& site) override;
    bool copies_wait(const Site& site) override { return counts_as_barrier(site); }
    void meeting(unsigned) override {}
    void end_launch() override;
    void released(const void* first) override;

  private:
    // What is known of one word, or of one byte where accesses were smaller. Phases number the
    // stretches between barriers of all blocks of all launches; counts the __syncwarps of a warp.
    struct Cell {
        uint32_t write_phase = 0, write_count = 0, write_code = 0;
        uint16_t writer = 0;
        Access write_kind = Access::Write;  // CopyBegin: under way
        // Of the last phase with a read: by lanes of one warp at its last count, by another warp.
        uint32_t read_phase = 0, read_count = 0, read_lanes = 0, read_code = 0;
        uint16_t read_warp = 0, other_reader = 0;  // other: thread + 1
        uint32_t other_code = 0;
        // Of an earlier block of the launch.
        uint32_t block_phase = 0, block_code = 0;
        uint16_t block_reader = 0;
        uint32_t split = 0;  // 1 + index of the word's four bytes, where they are known apart
    };
    struct Memory {
        uintptr_t first = 0;
        size_t bytes = 0;
        bool shared = false;
        Cell* cells = nullptr;  // a word each
        std::vector<std::array<Cell, 4>> apart;
    };
    struct Now {
        unsigned thread, warp, lane;
        uint32_t code;
        Access kind;
        const Memory* memory;
        size_t at;
    };
    Memory* memory_of(const void* address);
    void touch(Cell& cell, const Now& now);
    void read(Cell& cell, const Now& now);
    bool ordered(const Cell& cell, const Now& now) const;
    bool counts_as_barrier(const Site& site);
    void look_ahead(const Cell& cell, const Now& now);
    void report(const Now& now, unsigned thread, uint32_t phase, uint32_t code, Access kind);

    const void* kernel = nullptr;
    uint32_t phase = 0, launch_phase = 0, block_phase = 0;
    uint32_t counts[32] = {};  // __syncwarps of each warp
    Memory shared;
    std::map<uintptr_t, Memory> global;
    Memory* last = nullptr;
    std::map<std::pair<const char*, unsigned>, bool> barriers;  // met: do they order?
    std::set<std::tuple<const void*, uint32_t, uint32_t>> known;
};

}  // namespace stief::simt
