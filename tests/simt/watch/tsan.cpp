// What the compiler calls at every load and store under -fsanitize=thread, answered by the watcher
// instead of by its own runtime, which is not linked. Loads and stores outside of a kernel, and of
// a thread's own variables, are the watcher's to leave out.
#include "simt.h"

using stief::simt::Access;
using stief::simt::watch;

// A device refuses what the host forgives: said at the end of the launch (races.cpp).
static void require_aligned(const void* address, size_t bytes) {
    using namespace stief;
    size_t beyond = uintptr_t(address) % bytes;
    if (beyond && simt::watcher && simt::watched(address) && simt::misaligned.empty())
        simt::misaligned = format("simt: %s: %zu bytes at once at an address that is %zu beyond a "
                                  "multiple of them", simt::where().c_str(), bytes, beyond);
}

#define SEES_ANYWHERE(name, bytes, kind)                \
    void name(void* address) {                          \
        watch(address, bytes, Access::kind, SIMT_CODE); \
    }
#define SEES(name, bytes, kind)                         \
    void name(void* address) {                          \
        require_aligned(address, bytes);                \
        watch(address, bytes, Access::kind, SIMT_CODE); \
    }
#define SEES_ALL(bytes)                                        \
    SEES(__tsan_read##bytes, bytes, Read)                      \
    SEES(__tsan_write##bytes, bytes, Write)                    \
    SEES_ANYWHERE(__tsan_unaligned_read##bytes, bytes, Read)   \
    SEES_ANYWHERE(__tsan_unaligned_write##bytes, bytes, Write) \
    SEES(__tsan_volatile_read##bytes, bytes, Read)             \
    SEES(__tsan_volatile_write##bytes, bytes, Write)           \
    SEES(__tsan_read##bytes##_pc, bytes, Read)                 \
    SEES(__tsan_write##bytes##_pc, bytes, Write)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

SEES_ALL(1)
SEES_ALL(2)
SEES_ALL(4)
SEES_ALL(8)
SEES_ALL(16)

void __tsan_read_range(void* address, unsigned long bytes) {
    watch(address, bytes, Access::Read, SIMT_CODE);
}
void __tsan_write_range(void* address, unsigned long bytes) {
    watch(address, bytes, Access::Write, SIMT_CODE);
}

// clang's names for calls that g++ leaves as they are.
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
    watch(from, bytes, Access::Read, SIMT_CODE);
    watch(to, bytes, Access::Write, SIMT_CODE);
    return __builtin_memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
    watch(from, bytes, Access::Read, SIMT_CODE);
    watch(to, bytes, Access::Write, SIMT_CODE);
    return __builtin_memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
    watch(to, bytes, Access::Write, SIMT_CODE);
    return __builtin_memset(to, value, bytes);
}

// std::atomic in the headers that .cu files include: the host's, in no kernel.
unsigned long __tsan_atomic64_fetch_add(volatile unsigned long* to, unsigned long x, int) {
    return __atomic_fetch_add(to, x, __ATOMIC_SEQ_CST);
}
unsigned long __tsan_atomic64_load(const volatile unsigned long* from, int) {
    return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}
unsigned char __tsan_atomic8_load(const volatile unsigned char* from, int) {
    return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_fetch_add(volatile int* to, int x, int) {
    return __atomic_fetch_add(to, x, __ATOMIC_SEQ_CST);
}
}
