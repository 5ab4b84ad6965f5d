// Plays CUDA kernels on the CPU: one block at a time, its threads as cooperative fibers that meet
// at barriers and warp exchanges, in one of three orders. The .cu files are compiled by the host
// compiler against this folder.
//
// What it finds: wrong indices and tails (sentinels around every allocation; exact sizes under the
// address sanitizer), missing barriers (results that change with the order), missing waits and
// reads of what was never written (NaN), divergent barriers and exchanges (an Error that names
// block and thread).
// With a Watcher every access besides (watch/): races that no order of threads shows, and what a
// kernel that may begin early reads of the kernels before it without waiting for them.
// What it cannot prove: speed; the memory model between blocks (a missing __threadfence, blocks
// that wait for each other); that the PTX in cuda/gpu does what the plain code here does; the
// rounding of a tensor core. Those need a GPU and compute-sanitizer.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

#include "base/check.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace stief::simt {

// Of the threads of a block and of the blocks of a grid. Forward and Reverse play a warp until all
// of its threads wait for another warp; Shuffled picks a thread anew at every switch, from the
// seed.
enum class Order { Forward, Reverse, Shuffled };
inline Order order = Order::Forward;
inline uint64_t seed = 1;

// Runs test once in every order.
inline void in_every_order(const std::function<void()>& test) {
    for (Order one : {Order::Forward, Order::Reverse, Order::Shuffled}) order = one, test();
    order = Order::Forward;
}

// ---- the machine that the runtime reports: tests change it and put it back (Restore) ----------

struct Machine {
    int devices = 1;
    int driver = 13000, runtime = 13000;
    int major = 8, minor = 0, processors = 4;
    size_t memory = size_t(4) << 30;  // cudaMalloc beyond it fails
    size_t shared_bytes = 163 << 10;  // of one block: sm_80
#ifdef __SANITIZE_ADDRESS__
    bool sentinels = false;  // the sanitizer sees more, and sees it sooner
#else
    bool sentinels = true;
#endif
};
inline Machine machine;
inline Machine large_machine() {  // as an H100
    Machine large;
    large.major = 9, large.processors = 132, large.shared_bytes = 227 << 10;
    return large;
}

// The after-th call of its kind from now (0: the next) returns error; with sticky all later ones do
// too.
enum class Call { Malloc, MallocHost, Launch, Synchronize, Copy, Gemm };
void fail_at(Call call, cudaError_t error, int after = 0, bool sticky = false);
cudaError_t failure(Call call);  // what this call must return

struct Restore {  // the machine above for a test, which undoes all of the above at its end
    Machine before = machine;
    Restore() { machine = {}; }
    ~Restore();
};

struct Statistics {
    uint64_t launches = 0, blocks = 0, switches = 0, gemms = 0;
};
inline Statistics statistics;

// ---- memory -----------------------------------------------------------------------------------

enum class Kind { Device, Host, Shared };        // cudaMalloc, cudaMallocHost, of a block
void* allocate(size_t bytes, Kind kind);         // filled with 0xFF; sentinels on both sides
void release(void* memory, bool verify = true);  // throws where a sentinel was written over
void check_memory();                             // the same for everything allocated now
size_t allocated(Kind kind);                     // bytes
bool is_device(const void* address);             // inside a cudaMalloc
bool is_page_locked(const void* address);        // inside a cudaMallocHost
struct Range {
    char* first = nullptr;  // null: in no allocation
    size_t bytes = 0;
};
Range device_range(const void* address);  // the cudaMalloc that the address lies in
// Whether address + bytes lies in the allocation that address lies in; true outside of all of them.
bool fits(const void* address, size_t bytes);

// ---- the player -------------------------------------------------------------------------------

// Calls kernel once for every thread of the grid. Throws what a thread throws, and Error for a
// deadlock. function: the kernel's address, for who watches; null: a test's own. ahead: every thread
// must come to await_kernels(), or it is an Error; what a thread does before is for who watches.
void play(dim3 grid, unsigned block, size_t shared_bytes, const std::function<void()>& kernel,
          const void* function = nullptr, bool ahead = false);
void await_kernels();
bool before_wait();  // the running thread is in a kernel that was launched ahead, and has not waited

// What <<<>>> does: enqueues the playing, or sets the error that cudaGetLastError returns.
void launch(dim3 grid, int block, size_t shared_bytes, cudaStream_t stream, const void* function,
            std::function<void()> kernel, bool ahead = false);

// Runs work now, or records it where the stream is being captured.
void enqueue(cudaStream_t stream, std::function<void()> work);

// A place of the program, as a last default argument. (clang 14 has no std::source_location.)
struct Site {
    const char* file;
    unsigned line;
    static constexpr Site current(const char* file = __builtin_FILE(),
                                  unsigned line = __builtin_LINE()) {
        return {file, line};
    }
};
void barrier(const Site& site);

// The lanes of mask meet; the last one to come calls combine with each lane's operands (null
// outside the mask), then all go on. Throws where a lane of the mask has returned or waits
// elsewhere.
using Combine = void (*)(void** operands, unsigned mask);
void meet(unsigned mask, void* operands, Combine combine, const Site& site);

// ---- who sees what threads do (watch/) ---------------------------------------------------------

enum class Access : uint8_t {
    Read,
    Write,
    Atomic,
    CopyBegin,   // cp.async: its destination may change from now on
    CopyEnd,     // and has changed: the thread has waited for it
    CopySource,  // what it reads, until then
    Matrix,      // ldmatrix: a lane names 16 bytes,
    Fragment,    // and receives its part of them, which the named rows are counted for
};
// Threads by their number in the block that is being played; code: the address that follows the
// access or its call.
struct Watcher {
    virtual ~Watcher() = default;
    virtual void begin_launch(const void* function) = 0;
    virtual void begin_block(unsigned threads) = 0;
    virtual void access(unsigned thread, const void* address, size_t bytes, Access kind,
                        const void* code) = 0;
    virtual void barrier(const Site& site) = 0;  // every thread is at it
    // All lanes that have not returned are at a __syncwarp.
    virtual void warp_barrier(unsigned warp, const Site& site) = 0;
    virtual bool copies_wait(const Site& site) = 0;  // a thread waits for copies; false: not here
    virtual void meeting(unsigned warp) = 0;       // at any exchange: orders nothing
    virtual void end_launch() = 0;                 // may throw what was found
    virtual void released(const void* first) = 0;  // a cudaMalloc's memory
};
inline Watcher* watcher = nullptr;
inline std::string misaligned;  // the first access of a watched launch that a device would refuse
bool watched(const void* address);  // in a kernel, and not a thread's own variable
inline void watch(const void* address, size_t bytes, Access kind, const void* code) {
    if (watcher && watched(address)) watcher->access(threadIdx.x, address, bytes, kind, code);
}
#define SIMT_CODE __builtin_return_address(0)

// The running block's dynamic shared memory, and whether [address, address + bytes) lies in it.
char* shared_memory();
size_t shared_size();
bool in_shared(const void* address, size_t bytes);

// A fiber's own copies that are under way (async.cpp).
void copy_async(void* shared, const void* global, size_t bytes, bool valid);
void copy_async_commit();
void copy_async_wait(size_t unfinished, const Site& site);

// "block (1, 0, 0), thread 37"
std::string where();

}  // namespace stief::simt
