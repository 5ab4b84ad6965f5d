// Threads that give way to each other by name: a stack, and a switch of a few instructions.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#define SIMT_UCONTEXT 1
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace stief::simt {

struct Fiber {
    char* stack = nullptr;  // lowest address; the page below it is a guard
    size_t stack_bytes = 0;
#ifdef SIMT_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;  // where the callee-saved registers lie
#endif
    bool finished = false;       // left for good, by its own will
    void* fake_stack = nullptr;  // the address sanitizer's
};

// Gives the fiber a stack (kept for good) and lets it begin with entry(), which must never return.
void begin(Fiber& fiber, size_t index, void (*entry)());

// Leaves from and goes on with to. `last`: from will not be resumed.
void switch_to(Fiber& from, Fiber& to, bool last);

// Must be the first thing entry() does.
void entered();

// The stack of the thread that plays, which the first switch leaves.
Fiber& player_fiber();

}  // namespace stief::simt
