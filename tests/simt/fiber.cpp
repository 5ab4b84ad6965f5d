#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

#include "base/check.h"

#ifdef __SANITIZE_ADDRESS__
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef SIMT_UCONTEXT
// Saves the callee-saved registers on the stack, its pointer in *save, and takes up those of load.
extern "C" void stief_simt_switch(void** save, void* load);
asm(R"(
    .text
    .p2align 4
    .globl stief_simt_switch
    .type stief_simt_switch, @function
stief_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size stief_simt_switch, . - stief_simt_switch
)");
#endif

namespace stief::simt {

#ifdef SIMT_ASAN
constexpr size_t STACK = 256 << 10;  // the sanitizer's frames are several times as large
constexpr size_t END_FRAMES = 12 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif

static Fiber main_fiber;
static Fiber* left = nullptr;  // by the switch under way

Fiber& player_fiber() {
    return main_fiber;
}

// One mapping a stack, made when a block first has that many threads, with a guard page below.
static char* stack_of(size_t index) {
    static std::vector<char*> stacks;
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    while (stacks.size() <= index) {
        void* memory = mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        check(memory != MAP_FAILED, "simt: no memory for the stack of thread %zu", stacks.size());
        mprotect(memory, page, PROT_NONE);
        stacks.push_back(static_cast<char*>(memory) + page);
    }
    return stacks[index];
}

void begin(Fiber& fiber, size_t index, void (*entry)()) {
    fiber.stack = stack_of(index);
    fiber.stack_bytes = STACK;
    fiber.fake_stack = nullptr;
#ifdef SIMT_ASAN
    // A finished thread leaves the frames it was in at its end, an abandoned one may leave any.
    size_t stale = fiber.finished ? END_FRAMES : STACK;
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack + STACK - stale, stale);
#endif
    fiber.finished = false;
#ifdef SIMT_UCONTEXT
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
#else
    // Stacks are whole pages: without an offset their tops would share one set of the first cache.
    uintptr_t* top = reinterpret_cast<uintptr_t*>(fiber.stack + STACK - index % 32 * 128);
    *--top = 0;  // where entry would return to: nowhere
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; i++) *--top = 0;  // rbp rbx r12 r13 r14 r15
    fiber.stack_pointer = top;
#endif
}

void entered() {
#ifdef SIMT_ASAN
    // The first time the player's stack is left, the sanitizer tells where it lies.
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (left == &main_fiber)
        main_fiber.stack = const_cast<char*>(static_cast<const char*>(bottom)),
        main_fiber.stack_bytes = bytes;
#endif
}

void switch_to(Fiber& from, Fiber& to, bool last) {
    left = &from;
    from.finished = last;
#ifdef SIMT_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#ifdef SIMT_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    stief_simt_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef SIMT_ASAN
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &bytes);
    if (left == &main_fiber)
        main_fiber.stack = const_cast<char*>(static_cast<const char*>(bottom)),
        main_fiber.stack_bytes = bytes;
#endif
}

}  // namespace stief::simt
