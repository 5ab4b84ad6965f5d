// How a warp's accesses meet memory. The accesses of a warp's threads are one request where they
// are the same instruction, the same time since the warp's last exchange or barrier.
//   shared memory   32 banks of 4 bytes: a request of 4 bytes a lane is answered by all lanes at
//                   once, of 8 by 16, of 16 and of ldmatrix by 8; where several words of one bank
//                   are wanted, one after another (a word wanted by many is read once)
//   global memory   sectors of 32 bytes
// Ideal: as many as the distinct bytes need. The host's compiler may split or join what nvcc does
// not.
#pragma once
#include <array>
#include <map>
#include <vector>

#include "simt.h"

namespace stief::simt {

struct Counts {
    uint64_t launches = 0;
    uint64_t shared = 0, rounds = 0, ideal_rounds = 0;  // requests; turns of the 32 banks
    uint64_t global = 0, sectors = 0, ideal_sectors = 0;
    unsigned ways = 0;  // of the worst request: turns for each that the bytes need
    uint32_t ways_code = 0;
};

class AccessCounter final : public Watcher {
  public:
    std::map<const void*, Counts> kernels;

    void begin_launch(const void* function) override;
    void begin_block(unsigned threads) override;
    void access(unsigned thread, const void* address, size_t bytes, Access kind,
                const void* code) override;
    void barrier(const Site&) override { flush(); }
    void warp_barrier(unsigned, const Site&) override {}
    bool copies_wait(const Site&) override { return true; }
    void meeting(unsigned warp) override { flush(warp); }
    void end_launch() override { flush(); }
    void released(const void*) override {}

  private:
    struct Request {
        unsigned lanes = 0;
        uintptr_t address[32];
        size_t bytes = 0;  // of a lane
    };
    struct Instruction {
        std::vector<Request> requests;
        std::array<uint16_t, 32> done = {};  // by each lane
    };
    void flush();
    void flush(unsigned warp);
    void count_shared(const Request& request, uint32_t code);
    void count_global(const Request& request);

    Counts* now = nullptr;
    std::map<std::pair<uint32_t, bool>, Instruction> warps[32];  // by code; shared?
};

}  // namespace stief::simt
