// cp.async with its effect as late as it may be: until the thread waits, the destination holds NaN.
#include <cstring>
#include <deque>
#include <vector>

#include "cuda.cuh"

namespace stief {

uint4 load_16(const void* global) {
    if (uintptr_t(global) % 16)
        fail("%s: 16-byte load from %p, which is not aligned", simt::where().c_str(), global);
    if (!simt::fits(global, 16))
        fail("%s: 16-byte load past the end of its allocation", simt::where().c_str());
    simt::watch(global, 16, simt::Access::Read, SIMT_CODE);
    uint4 x;
    std::memcpy(&x, global, 16);
    return x;
}

namespace simt {

struct Copy {
    void* to;
    uint4 bytes;  // read when the copy was begun
    size_t count;
    const void *from, *code;  // from: null where not valid
};
struct Copies {
    std::vector<Copy> open;  // not committed yet
    std::deque<std::vector<Copy>> groups;
};
static Copies copies[1024];

void forget_copies(unsigned threads) {
    for (unsigned i = 0; i < threads; i++) copies[i].open.clear(), copies[i].groups.clear();
}

void copy_async(void* shared, const void* global, size_t bytes, bool valid) {
    if (uintptr_t(shared) % bytes || !in_shared(shared, bytes))
        fail("%s: cp.async to %p: expected %zu aligned bytes of shared memory", where().c_str(),
             shared, bytes);
    if (valid && uintptr_t(global) % bytes)
        fail("%s: cp.async of %zu bytes from %p, which is not aligned", where().c_str(), bytes,
             global);
    if (valid && !fits(global, bytes))
        fail("%s: cp.async past the end of its allocation", where().c_str());
    if (valid) watch(global, bytes, Access::Read, SIMT_CODE);
    watch(shared, bytes, Access::CopyBegin, SIMT_CODE);
    std::memset(shared, 0xFF, bytes);
    Copy copy{shared, {}, bytes, valid ? global : nullptr, SIMT_CODE};
    if (valid) std::memcpy(&copy.bytes, global, bytes);
    copies[threadIdx.x].open.push_back(copy);
}

void copy_async_commit() {
    Copies& mine = copies[threadIdx.x];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

void copy_async_wait(size_t unfinished, const Site& site) {
    if (watcher && !watcher->copies_wait(site)) return;
    auto& groups = copies[threadIdx.x].groups;
    for (; groups.size() > unfinished; groups.pop_front())
        for (const Copy& copy : groups.front()) {
            if (copy.from) watch(copy.from, copy.count, Access::CopySource, copy.code);
            watch(copy.to, copy.count, Access::CopyEnd, copy.code);
            std::memcpy(copy.to, &copy.bytes, copy.count);
        }
}

}  // namespace simt
}  // namespace stief
