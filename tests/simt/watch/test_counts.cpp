// What the table of make counts says of requests whose answer is known.
#include "counts.h"
#include "device_memory.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;
using simt::AccessCounter;
using simt::Counts;

namespace {

template <class Kernel>
Counts counts_of(Kernel kernel, unsigned threads = 32) {
    AccessCounter counter;
    simt::watcher = &counter;
    simt::play(dim3(1), threads, 32 << 10, kernel);
    simt::watcher = nullptr;
    REQUIRE(counter.kernels.size() == 1);
    return counter.kernels.begin()->second;
}

float* floats() {
    return reinterpret_cast<float*>(dynamic_shared());
}

}  // namespace

TEST_SUITE_BEGIN("race");

TEST_CASE("counts: banks of shared memory, by the lanes that are answered together") {
    const struct {
        unsigned stride, rounds;
        const char* why;
    } cases[] = {{1, 1, "a word a bank"},
                 {2, 2, "every second bank"},
                 {32, 32, "one bank"},
                 {33, 1, "one word aside"},
                 {0, 1, "one word for all"}};
    for (const auto& c : cases) {
        CAPTURE(std::string(c.why));
        Counts one = counts_of([&] { floats()[c.stride * threadIdx.x] = 0; });
        CHECK(one.shared == 1);
        CHECK(one.rounds == c.rounds);
        CHECK(one.ideal_rounds == 1);
    }
    auto wide = [](unsigned stride) {
        return counts_of(
            [=] { *reinterpret_cast<float4*>(floats() + stride * threadIdx.x) = float4{}; });
    };
    CHECK(wide(4).rounds == 4);  // 512 bytes
    CHECK(wide(4).ideal_rounds == 4);
    CHECK(wide(8).rounds == 8);
    CHECK(wide(36).rounds == 4);
}

TEST_CASE("counts: ldmatrix is one request, without conflicts where rows are 16 bytes apart") {
    auto matrix = [](unsigned stride) {
        return counts_of([=] {
            uint32_t r[4];
            load_matrix_x4(r, floats() + stride * threadIdx.x);
        });
    };
    CHECK(matrix(4).shared == 1);
    CHECK(matrix(4).rounds == 4);
    CHECK(matrix(32).rounds == 32);  // 128 bytes apart
    CHECK(matrix(36).rounds == 4);   // and 16 more
}

TEST_CASE("counts: sectors of global memory, of every turn of a loop by itself") {
    DeviceMemory<float> x(1024);
    Counts whole = counts_of(
        [&] {
            for (unsigned i = threadIdx.x; i < 256; i += 64) x.data[i] = 0;
        },
        64);
    CHECK(whole.global == 8);
    CHECK(whole.sectors == 32);
    CHECK(whole.ideal_sectors == 32);
    Counts apart = counts_of([&] { x.data[8 * threadIdx.x] = 0; });
    CHECK(apart.global == 1);
    CHECK(apart.sectors == 32);
    CHECK(apart.ideal_sectors == 4);
}

TEST_SUITE_END();
