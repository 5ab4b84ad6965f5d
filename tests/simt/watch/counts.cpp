#include "counts.h"

#include <algorithm>
#include <set>

namespace stief::simt {

void AccessCounter::begin_launch(const void* function) {
    now = &kernels[function];
    now->launches++;
}

void AccessCounter::begin_block(unsigned) {
    flush();  // the last block's: no exchange ended them
}

void AccessCounter::access(unsigned thread, const void* address, size_t bytes, Access kind,
                           const void* code) {
    if (kind == Access::CopyEnd || kind == Access::CopySource || kind == Access::Fragment) return;
    bool shared = in_shared(address, 1);
    if (!shared && !is_device(address)) return;
    Instruction& one = warps[thread / 32][{uint32_t(uintptr_t(code)), shared}];
    size_t turn = one.done[thread % 32]++;
    if (one.requests.size() <= turn) one.requests.resize(turn + 1);
    Request& request = one.requests[turn];
    request.lanes |= 1u << thread % 32;
    request.address[thread % 32] = uintptr_t(address), request.bytes = bytes;
}

void AccessCounter::flush() {
    for (unsigned warp = 0; warp < 32; warp++) flush(warp);
}

void AccessCounter::flush(unsigned warp) {
    for (auto& [what, instruction] : warps[warp])
        for (const Request& request : instruction.requests)
            what.second ? count_shared(request, what.first) : count_global(request);
    warps[warp].clear();
}

void AccessCounter::count_shared(const Request& request, uint32_t code) {
    unsigned together = request.bytes <= 4   ? 32
                        : request.bytes <= 8 ? 16
                                             : 8,
             rounds = 0, ideal = 0;
    for (unsigned first = 0; first < 32; first += together) {
        std::set<uintptr_t> words;
        for (unsigned lane = first; lane < first + together; lane++)
            if (request.lanes >> lane & 1)
                for (uintptr_t word = request.address[lane] / 4;
                     word <= (request.address[lane] + request.bytes - 1) / 4; word++)
                    words.insert(word);
        unsigned banks[32] = {};
        for (uintptr_t word : words) banks[word % 32]++;
        rounds += *std::max_element(banks, banks + 32);
        ideal += unsigned(words.size() + 31) / 32;
    }
    now->shared++, now->rounds += rounds, now->ideal_rounds += ideal;
    if (rounds > now->ways * ideal) now->ways = rounds / ideal, now->ways_code = code;
}

void AccessCounter::count_global(const Request& request) {
    std::set<uintptr_t> sectors, bytes;
    for (unsigned lane = 0; lane < 32; lane++)
        if (request.lanes >> lane & 1)
            for (uintptr_t at = request.address[lane]; at < request.address[lane] + request.bytes;
                 at++)
                sectors.insert(at / 32), bytes.insert(at);
    now->global++, now->sectors += sectors.size(), now->ideal_sectors += (bytes.size() + 31) / 32;
}

}  // namespace stief::simt
