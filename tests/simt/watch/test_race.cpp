// No kernel of cuda/ has a race, and each of its barriers and waits for copies is needed: without it the
// checker sees one. And what the checker must see and let pass.
#include <cstring>
#include <fstream>

#include "device_memory.h"
#include "names.h"
#include "races.h"
#include "scenes.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;
using simt::RaceChecker;

namespace {

struct Watched {
    RaceChecker checker;
    Watched() { simt::watcher = &checker; }
    ~Watched() { simt::watcher = nullptr; }
};

// What the checker says of one launch; empty: nothing.
template <class Kernel>
std::string race_of(Kernel kernel, unsigned threads = 64, unsigned blocks = 1) {
    Watched watched;
    try {
        simt::play(dim3(blocks), threads, 1024, kernel);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

float* floats() {
    return reinterpret_cast<float*>(dynamic_shared());
}

// out_i ← x of the neighbour, through shared memory.
template <class Order>
std::string exchange(Order order, unsigned by) {
    float sink = 0;
    return race_of([&, sink]() mutable {
        floats()[threadIdx.x] = 1;
        order();
        sink = floats()[threadIdx.x ^ by];
    });
}

// grid any. sum ← x, without a barrier or an atomic.
__global__ void unordered_kernel(float* sum, const float* x) {
    *sum += x[threadIdx.x];
}

}  // namespace

TEST_SUITE_BEGIN("race");

TEST_CASE("barriers order what they say they do; shuffles, votes and mma order nothing") {
    auto nothing = [] {};
    auto block = [] { __syncthreads(); };
    auto warp = [] { __syncwarp(); };
    auto shuffle = [] { __shfl_xor_sync(~0u, 1, 1); };
    auto vote = [] { __ballot_sync(~0u, true); };
    auto product = [] {
        float d[4] = {};
        uint32_t a[4] = {}, b[2] = {};
        mma_16x8x16<f16>(d, a, b);
    };
    CHECK(exchange(block, 1).empty());
    CHECK(exchange(block, 33).empty());
    CHECK(exchange(warp, 1).empty());
    CHECK(exchange(nothing, 0).empty());
    CHECK_FALSE(exchange(warp, 33).empty());  // the other warp
    CHECK_FALSE(exchange(nothing, 1).empty());
    CHECK_FALSE(exchange(shuffle, 1).empty());
    CHECK_FALSE(exchange(vote, 1).empty());
    CHECK_FALSE(exchange(product, 1).empty());
}

TEST_CASE("a write after a read that nothing orders is a race, whoever else has read") {
    auto read_by = [](auto readers, auto order) {
        float sink = 0;
        return race_of(
            [=]() mutable {
                floats()[threadIdx.x] = 0;
                __syncthreads();
                if (readers(threadIdx.x)) sink = floats()[0];
                order();
                if (threadIdx.x == 40) floats()[0] = sink;
            },
            96);
    };
    auto nothing = [] {};
    auto warp = [] { __syncwarp(); };
    auto is = [](unsigned one) { return [=](unsigned thread) { return thread == one; }; };
    CHECK(read_by(is(40), nothing).empty());
    CHECK_FALSE(read_by(is(41), nothing).empty());
    CHECK(read_by(is(41), warp).empty());
    CHECK_FALSE(read_by(is(0), warp).empty());
    CHECK_FALSE(read_by([](unsigned) { return true; }, warp).empty());
    CHECK_FALSE(read_by([](unsigned thread) { return thread >= 40; }, warp).empty());
    CHECK(read_by([](unsigned thread) { return thread / 32 == 1; }, warp).empty());
}

TEST_CASE("neighbouring bytes are no race, a byte of a word is one") {
    CHECK(race_of([] { dynamic_shared()[threadIdx.x] = 1; }).empty());
    CHECK(race_of([] { reinterpret_cast<uint16_t*>(dynamic_shared())[threadIdx.x] = 1; }).empty());
    CHECK_FALSE(race_of([] {
                    if (threadIdx.x == 3) dynamic_shared()[7] = 1;
                    if (threadIdx.x == 5) floats()[1] = 0;
                }).empty());
}

TEST_CASE("global memory: blocks of one launch race, launches and atomics do not") {
    DeviceMemory<float> x(normal_floats(64, 1)), sum(1), each(3);
    DeviceMemory<unsigned> count(1);
    auto each_block = [&] {
        if (threadIdx.x == 0) *sum.data = x.data[blockIdx.x];
    };
    CHECK(race_of(each_block).empty());
    CHECK_FALSE(race_of(each_block, 64, 2).empty());
    CHECK_FALSE(race_of(
                    [&] {
                        each.data[blockIdx.x] = x.data[0];
                        if (blockIdx.x == 2) x.data[0] = 0;
                    },
                    1, 3)
                    .empty());
    CHECK(race_of([&] { atomicAdd(count.data, 1u); }, 64, 2).empty());
    CHECK_FALSE(race_of([&] {
                    atomicAdd(count.data, 1u);
                    if (threadIdx.x == 9) *count.data = 0;
                }).empty());
    Watched watched;
    for (int i = 0; i < 2; i++) CHECK_NOTHROW(simt::play(dim3(1), 64, 0, each_block));
}

TEST_CASE("an asynchronous copy writes until it is waited for, and others see it after a barrier") {
    DeviceMemory<float> x(normal_floats(256, 1));
    auto copied = [&](bool waits, bool barrier, unsigned by) {
        float sink = 0;
        return race_of([&, sink]() mutable {
            copy_async_16(dynamic_shared() + 16 * threadIdx.x, x.data + 4 * threadIdx.x, true);
            copy_async_commit();
            if (waits) copy_async_wait<0>();
            if (barrier) __syncthreads();
            if (!waits) sink = floats()[4 * (threadIdx.x ^ by)];
            copy_async_wait<0>();
            if (waits) sink = floats()[4 * (threadIdx.x ^ by)];
        });
    };
    CHECK(copied(true, true, 1).empty());
    CHECK(copied(true, false, 0).empty());
    CHECK_FALSE(copied(true, false, 1).empty());
    CHECK_FALSE(copied(false, true, 1).empty());
    CHECK_FALSE(copied(false, true, 0).empty());  // its own copy, which it has not waited for
}

TEST_CASE("ldmatrix reads what other lanes have written only after a barrier") {
    auto matrix = [](bool barrier) {
        return race_of(
            [=] {
                uint32_t r[4];
                for (int i = 0; i < 4; i++) floats()[4 * threadIdx.x + unsigned(i)] = 0;
                if (barrier) __syncwarp();
                load_matrix_x4(r, floats() + 4 * threadIdx.x);
            },
            32);
    };
    CHECK(matrix(true).empty());
    CHECK_FALSE(matrix(false).empty());
}

TEST_CASE("a load wider than its address is aligned is refused, as a device refuses it") {
    for (unsigned skip : {0u, 1u, 2u, 4u}) {
        std::string said = race_of([&] {
            float4 four = *reinterpret_cast<float4*>(floats() + skip);
            volatile float sink = four.x + four.w;
            (void)sink;
        });
        CAPTURE(said);
        CHECK((said.find("16 bytes at once") != std::string::npos) == (skip % 4 != 0));
    }
}

namespace {

// grid 1. to ← from + 1, one thread an element; early: before the kernels ahead are awaited.
__global__ void passing_kernel(float* to, const float* from, bool early) {
    float x = early ? from[threadIdx.x] : 0;
    await_kernels();
    to[threadIdx.x] = (early ? x : from[threadIdx.x]) + 1;
}
__global__ void early_store_kernel(float* to) {
    to[threadIdx.x] = 1;
    await_kernels();
}
__global__ void careless_kernel(float* to) {
    if (threadIdx.x < 3) await_kernels();
    if (threadIdx.x < 3) to[threadIdx.x] = 1;
}

}  // namespace

TEST_CASE("a kernel that may begin early touches what kernels write only after it has waited") {
    DeviceMemory<float> x(normal_floats(64, 1)), y(64), z(64);
    auto says = [](auto run) -> std::string {
        Watched watched;
        try {
            run();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    auto chain = [&](bool first_early, bool second_early) {
        launch_ahead(passing_kernel, 1, 64, 0, nullptr, y.data, x.data, first_early);
        launch_ahead(passing_kernel, 1, 64, 0, nullptr, z.data, y.data, second_early);
    };
    CHECK(says([&] { chain(false, false); }).empty());
    CHECK(says([&] { chain(true, false); }).empty());  // x is no kernel's
    CHECK(says([&] { chain(false, true); }).find("ahead of await_kernels()") != std::string::npos);
    CHECK(says([&] { launch_ahead(early_store_kernel, 1, 64, 0, nullptr, z.data); })
              .find("writes at tests/simt/watch/test_race.cpp:") != std::string::npos);
    CHECK(says([&] { launch_ahead(careless_kernel, 1, 64, 0, nullptr, z.data); })
              .find("thread 3 has returned without await_kernels()") != std::string::npos);
    CHECK(says([&] { launch(early_store_kernel, 1, 64, 0, nullptr, z.data); }).empty());
}

TEST_CASE("a report names the kernel, both threads and places, and the byte") {
    DeviceMemory<float> x(normal_floats(64, 1)), sum(2);
    sum.data[1] = 0;
    Watched watched;
    std::string text;
    try {
        launch(unordered_kernel, 1, 64, 0, nullptr, sum.data + 1, x.data);
    } catch (const Error& error) {
        text = error.what();
    }
    CHECK(text.find("race in unordered_kernel: a cudaMalloc's memory, byte 4 of 8: thread 0 ") ==
          0);
    CHECK(text.find("writes at tests/simt/watch/test_race.cpp:") != std::string::npos);
    CHECK(text.find("thread 1 of block (0, 0, 0) reads at tests/simt/watch/test_race.cpp:") !=
          std::string::npos);
}

TEST_CASE("every kernel gives the same bits in every order of threads and blocks") {
    for (const Scene& scene : scenes()) {
        CAPTURE(scene.name);
        std::vector<float> first;
        simt::in_every_order([&] {
            std::vector<float> out = scene.play();
            if (first.empty()) first = out;
            REQUIRE(out.size() == first.size());
            CHECK(!std::memcmp(out.data(), first.data(), out.size() * sizeof(float)));
        });
    }
}

// f(file, text, number) of every line of the kernels' sources.
template <class F>
static void for_each_line(const F& f) {
    for (const char* folder : {"cuda", "tools/ladder"})
        for (const auto& file : std::filesystem::directory_iterator(folder)) {
            std::ifstream in(file.path());
            std::string line;
            for (unsigned number = 1; std::getline(in, line); number++) f(file.path().string(), line, number);
        }
}

// The names that follow __global__ in the sources.
static std::set<std::string> kernels_of_sources() {
    std::set<std::string> names;
    const std::string mark = "__global__ void", bounds = "__launch_bounds__(";
    bool begun = false;
    for_each_line([&](const std::string&, std::string line, unsigned) {
        if (line.find(mark) == 0) begun = true, line.erase(0, mark.size());
        if (!begun) return;
        if (size_t from = line.find(bounds); from != std::string::npos) {
            size_t end = from + bounds.size();
            for (int depth = 1; depth; end++) depth += (line[end] == '(') - (line[end] == ')');
            line.erase(from, end - from);
        }
        size_t end = line.find('('), from = line.find_last_of(" ", end) + 1;
        if (end != std::string::npos) names.insert(line.substr(from, end - from)), begun = false;
    });
    return names;
}

TEST_CASE("every kernel is free of races on a large machine: more splits, more stages, early beginnings") {
    simt::Restore machine;
    simt::machine = simt::large_machine();
    for (const Scene& scene : scenes()) {
        CAPTURE(scene.name);
        Watched watched;
        CHECK_NOTHROW(scene.play());
    }
}

TEST_CASE("every kernel on each of its paths is free of races, and each of its barriers needed") {
    std::map<std::string, std::vector<const Scene*>> met;  // where each barrier is met
    std::set<std::string> launched;
    for (const Scene& scene : scenes()) {
        CAPTURE(scene.name);
        Watched watched;
        CHECK_NOTHROW(scene.play());
        for (const std::string& site : watched.checker.sites()) met[site].push_back(&scene);
        for (const void* kernel : watched.checker.kernels) {
            std::string name = simt::short_name(kernel);
            name.erase(std::min(name.find('<'), name.size()));
            launched.insert(name.substr(name.rfind(':') + 1));
        }
    }
    std::set<std::string> all = kernels_of_sources();
    CHECK(all.size() > 50);
    for (const std::string& kernel : all) CHECK_MESSAGE(launched.count(kernel), kernel << " was not played");
    for (const auto& [site, where] : met) {
        CAPTURE(site);
        bool seen = false;
        for (const Scene* scene : where) {
            Watched watched;
            watched.checker.throws = false, watched.checker.ignored = site;
            try {
                scene->play();
            } catch (const Error&) {  // what was not waited for is NaN
            }
            if ((seen = !watched.checker.races.empty())) break;
        }
        CHECK_MESSAGE(seen, "without this barrier there is no race: it is not needed");
    }
    // None is left out: every line of the sources with a barrier or a wait was met.
    for_each_line([&](const std::string& file, const std::string& line, unsigned number) {
        bool orders = false;
        for (const char* what : {"__syncthreads();", "__syncwarp();", "copy_async_wait<"})
            orders = orders || line.find(what) != std::string::npos;
        std::string site = format("%s:%u", file.c_str(), number);
        CAPTURE(site);
        if (orders) CHECK(met.count(site) == 1);
    });
}

TEST_SUITE_END();
