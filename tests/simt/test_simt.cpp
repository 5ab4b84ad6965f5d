// The harness itself: what it must let pass, and what it must catch.
#include <cstring>
#include <functional>
#include <set>
#include <utility>

#include "device_memory.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// grid (rows), block any. Shared: one float a warp. out[row] = Σ x[row], with or without barriers.
template <bool BARRIER>
__global__ void sum_kernel(float* out, const float* x, int n) {
    float* scratch = reinterpret_cast<float*>(dynamic_shared());
    float sum = 0;
    x += size_t(blockIdx.x) * size_t(n);
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) sum += x[i];
    if constexpr (BARRIER) {
        sum = block_sum(sum, scratch);
    } else {
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = sum;
        sum = 0;
        for (unsigned w = 0; w < blockDim.x / WARP; w++) sum += scratch[w];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// grid (⌈n / block⌉). x ← 2 x, with or without the check for the last block's tail.
template <bool TAIL>
__global__ void twice_kernel(float* x, int n) {
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (!TAIL || i < n) x[i] *= 2;
}

__global__ void nothing_kernel() {}

// Runs kernel on one block of 64 threads.
template <class Kernel>
void play(Kernel kernel, size_t shared_bytes = 0) {
    simt::play(dim3(1), 64, shared_bytes, kernel);
}

}  // namespace

TEST_SUITE_BEGIN("simt");

TEST_CASE("a block's sum is the same in every order") {
    for (int block : {32, 64, 128, 1024}) {
        CAPTURE(block);
        DeviceMemory<float> x(normal_floats(5 * 1000, 1)), out(5);
        std::vector<float> first;
        simt::in_every_order([&] {
            launch(sum_kernel<true>, 5, block, size_t(block) / 8, nullptr, out.data, x.data, 1000);
            if (first.empty()) first = out.values();
            CHECK(!std::memcmp(first.data(), out.data, 5 * sizeof(float)));
        });
        std::vector<double> want(5);
        for (size_t i = 0; i < 5000; i++) want[i / 1000] += double(x.data[i]);
        CHECK(nmse(first, want) <= TOL_F32);
    }
}

TEST_CASE("broken on purpose: a missing barrier gives NaN, and other sums in another order") {
    DeviceMemory<float> x(normal_floats(1000, 1)), out(1);
    std::vector<float> sums;
    simt::in_every_order([&] {
        launch(sum_kernel<false>, 1, 128, 16, nullptr, out.data, x.data, 1000);
        sums.push_back(out.data[0]);
    });
    CHECK(std::isnan(sums[0]));
    CHECK(!std::isnan(sums[1]));  // thread 0 comes last and finds every sum
}

TEST_CASE("broken on purpose: a wrong tail writes over the sentinels behind an allocation") {
    simt::Restore restore;
    simt::machine.sentinels = true;
    simt::in_every_order([] {
        DeviceMemory<float> x(std::vector<float>(1000, 1.0f));
        launch(twice_kernel<true>, 8, 128, 0, nullptr, x.data, 1000);
        CHECK_NOTHROW(simt::check_memory());
        launch(twice_kernel<false>, 8, 128, 0, nullptr, x.data, 1000);
        CHECK_THROWS_WITH_AS(simt::check_memory(),
                             doctest::Contains("past the end of cudaMalloc of 4000"), Error);
        CHECK_THROWS_AS(cudaFree(std::exchange(x.data, nullptr)), Error);
    });
}

TEST_CASE("broken on purpose: a write past the end of shared memory, or before it") {
    simt::Restore restore;
    simt::machine.sentinels = true;
    CHECK_THROWS_WITH_AS(play([] { dynamic_shared()[40 + threadIdx.x] = 0; }, 100),
                         doctest::Contains("0 bytes past the end of shared memory of 100"), Error);
    CHECK_THROWS_WITH_AS(play([] { dynamic_shared()[int(threadIdx.x) - 3] = 0; }, 100),
                         doctest::Contains("before shared memory"), Error);
}

TEST_CASE("shared memory that nobody has written is NaN, for every block anew") {
    DeviceMemory<float> out(3 * 64);
    auto kernel = [&] {
        float* shared = reinterpret_cast<float*>(dynamic_shared());
        out.data[blockIdx.x * 64 + threadIdx.x] = shared[threadIdx.x];
        __syncthreads();
        shared[threadIdx.x] = 1;
    };
    simt::play(dim3(3), 64, 256, kernel);
    for (float x : out.values()) REQUIRE(std::isnan(x));
}

TEST_CASE("every thread of every block runs once, blocks and warps in the order asked for") {
    simt::in_every_order([] {
        std::set<std::vector<unsigned>> seen;
        std::vector<unsigned> blocks, threads;
        simt::play(dim3(2, 3, 4), 96, 0, [&] {
            REQUIRE(blockDim.x == 96);
            REQUIRE(gridDim.y == 3);
            seen.insert({blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x});
            if (threadIdx.x == 0) blocks.push_back(blockIdx.x + 2 * (blockIdx.y + 3 * blockIdx.z));
            threads.push_back(threadIdx.x);
        });
        CHECK(seen.size() == 2 * 3 * 4 * 96);
        CHECK(threads.size() == seen.size());
        bool up = std::is_sorted(blocks.begin(), blocks.end());
        bool down = std::is_sorted(blocks.rbegin(), blocks.rend());
        CHECK(up == (simt::order == simt::Order::Forward));
        CHECK(down == (simt::order == simt::Order::Reverse));
        CHECK((threads[0] == 0) == (simt::order == simt::Order::Forward));
        CHECK((threads[0] == 95) == (simt::order == simt::Order::Reverse));
    });
}

TEST_CASE("threads that have returned do not hold up the others' barriers") {
    simt::in_every_order([] {
        int passed = 0;
        play([&] {
            if (threadIdx.x >= 40) return;
            __syncthreads();
            passed++;
            __syncthreads();
            REQUIRE(passed == 40);
        });
    });
}

TEST_CASE("shuffles, votes, parts of a warp") {
    simt::in_every_order([] {
        std::vector<double> wrong;
        auto expect = [&](double got, double want) {
            if (!(got == want)) wrong.push_back(got);
        };
        play(
            [&] {
                int i = int(threadIdx.x), lane = i % 32, base = i - lane;
                expect(__shfl_xor_sync(~0u, float(i), 5), base + (lane ^ 5));
                expect(__shfl_sync(~0u, double(i), 7), base + 7);
                expect(__shfl_sync(~0u, i, 31 - lane), base + 31 - lane);
                expect(__shfl_down_sync(~0u, i, 3), lane + 3 < 32 ? i + 3 : i);
                expect(__shfl_up_sync(~0u, unsigned(i), 3), lane >= 3 ? i - 3 : i);
                expect(__ballot_sync(~0u, lane % 3 == 0), 0x49249249);
                unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
                if (lane < 16)
                    expect(__shfl_xor_sync(half, i, 1), i ^ 1);
                else
                    expect(__shfl_xor_sync(half, i, 2), i ^ 2);
                __syncwarp();
                expect(warp_sum(lane), 31 * 16);
                expect(warp_max(float(lane)), 31);
                expect(block_max(i, reinterpret_cast<int*>(dynamic_shared())), 63);
            },
            8);
        CHECK(wrong.empty());
    });
}

TEST_CASE("what can never go on, or only by luck, is an error that names block and thread") {
    // Outside of CHECK: a macro would put both barriers on one line, and so make one of them.
    auto two_barriers = [] {
        if (threadIdx.x < 32)
            __syncthreads();
        else
            __syncthreads();
    };
    auto two_shuffles = [] {
        if (threadIdx.x % 2)
            __shfl_xor_sync(~0u, 1, 1);
        else
            __shfl_xor_sync(~0u, 1, 1);
    };
    auto barrier_and_warp = [] {
        if (threadIdx.x % 2)
            __syncthreads();
        else
            __syncwarp();
    };
    auto one_returned = [] {
        if (threadIdx.x != 9) __syncwarp();
    };
    auto outside = [] { __shfl_sync(1u << threadIdx.x % 32, 1, 33); };
    const struct {
        std::function<void()> kernel;
        const char* error;
    } cases[] = {
        {two_barriers, "divergent barrier: block (0, 0, 0), thread "},
        {two_shuffles, "divergent warp: block (0, 0, 0), thread "},
        {barrier_and_warp,
         "for ever (mask ffffffff, there: 55555555); 32 threads wait at the barrier"},
        {one_returned, "returned"},
        {outside, "outside the mask"},
    };
    simt::in_every_order([&] {
        for (const auto& one : cases)
            CHECK_THROWS_WITH_AS(play(one.kernel), doctest::Contains(one.error), Error);
        CHECK_THROWS_WITH_AS(simt::play(dim3(1), 40, 0, [] { warp_sum(1); }),
                             doctest::Contains("which does not exist"), Error);
    });
}

TEST_CASE("a thread's exception reaches the caller, and the next launch is a new beginning") {
    simt::in_every_order([] {
        auto kernel = [] {
            __syncthreads();
            if (blockIdx.x == 1 && threadIdx.x == 37) throw std::out_of_range(simt::where());
            __syncthreads();
        };
        CHECK_THROWS_WITH_AS(simt::play(dim3(2), 64, 16, kernel), "block (1, 0, 0), thread 37",
                             std::out_of_range);
        CHECK_NOTHROW(launch(nothing_kernel, 2, 64, 16, nullptr));
        CHECK(simt::allocated(simt::Kind::Shared) == 0);
    });
}

TEST_SUITE_END();
