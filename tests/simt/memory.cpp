// Allocations as the harness hands them out: born 0xFF (NaN as float, bf16 and f16), each on its
// own, of exactly the size asked for, between sentinels where the address sanitizer does not watch.
#include <cstdlib>
#include <cstring>
#include <map>

#include "simt.h"

namespace stief::simt {

constexpr size_t ALIGNMENT = 256;  // of cudaMalloc; and the bytes of sentinels on each side
constexpr unsigned char SENTINEL = 0xA5;

struct Allocation {
    size_t bytes;
    Kind kind;
    bool sentinels;
};

// By first address. Never destroyed: a test's static may release after main.
static std::map<uintptr_t, Allocation>& allocations() {
    static auto* all = new std::map<uintptr_t, Allocation>;
    return *all;
}
static size_t total[3];

void* allocate(size_t bytes, Kind kind) {
    bool sentinels = machine.sentinels;
    size_t around = sentinels ? ALIGNMENT : 0;
    void* memory = nullptr;
    if (posix_memalign(&memory, ALIGNMENT, around + std::max(bytes, size_t(1)) + around))
        return nullptr;
    char* first = static_cast<char*>(memory) + around;
    std::memset(memory, SENTINEL, around);
    std::memset(first, 0xFF, bytes);
    std::memset(first + bytes, SENTINEL, around);
    allocations()[uintptr_t(first)] = {bytes, kind, sentinels};
    total[int(kind)] += bytes;
    return first;
}

static void verify(uintptr_t address, const Allocation& allocation) {
    if (!allocation.sentinels) return;
    const unsigned char* first = reinterpret_cast<const unsigned char*>(address);
    const char* names[] = {"cudaMalloc", "cudaMallocHost", "shared memory"};
    for (size_t i = 1; i <= ALIGNMENT; i++)
        if (first[-ptrdiff_t(i)] != SENTINEL)
            fail("simt: written %zu bytes before %s of %zu bytes", i, names[int(allocation.kind)],
                 allocation.bytes);
    for (size_t i = 0; i < ALIGNMENT; i++)
        if (first[allocation.bytes + i] != SENTINEL)
            fail("simt: written %zu bytes past the end of %s of %zu bytes", i,
                 names[int(allocation.kind)], allocation.bytes);
}

void release(void* memory, bool verified) {
    if (!memory) return;
    auto found = allocations().find(uintptr_t(memory));
    check(found != allocations().end(), "simt: released %p, which is no allocation", memory);
    Allocation allocation = found->second;
    struct Freed {
        void* memory;
        ~Freed() { std::free(memory); }
    } freed{static_cast<char*>(memory) - (allocation.sentinels ? ALIGNMENT : 0)};
    total[int(allocation.kind)] -= allocation.bytes;
    if (watcher && allocation.kind == Kind::Device) watcher->released(memory);
    allocations().erase(found);
    if (verified) verify(uintptr_t(memory), allocation);
}

void check_memory() {
    for (const auto& [address, allocation] : allocations()) verify(address, allocation);
}

size_t allocated(Kind kind) {
    return total[int(kind)];
}

// The allocation that address lies in or just behind.
static auto find(const void* address) {
    auto next = allocations().upper_bound(uintptr_t(address));
    if (next == allocations().begin()) return allocations().end();
    auto found = std::prev(next);
    return uintptr_t(address) <= found->first + found->second.bytes ? found : allocations().end();
}

static bool is(Kind kind, const void* address) {
    auto found = find(address);
    return found != allocations().end() && found->second.kind == kind;
}
bool is_device(const void* address) {
    return is(Kind::Device, address);
}
bool is_page_locked(const void* address) {
    return is(Kind::Host, address);
}

Range device_range(const void* address) {
    auto found = find(address);
    if (found == allocations().end() || found->second.kind != Kind::Device) return {};
    return {reinterpret_cast<char*>(found->first), found->second.bytes};
}

bool fits(const void* address, size_t bytes) {
    auto found = find(address);
    return found == allocations().end() ||
           uintptr_t(address) + bytes <= found->first + found->second.bytes;
}

}  // namespace stief::simt
