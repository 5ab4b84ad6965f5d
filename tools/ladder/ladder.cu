// ladder [positions] [rank] [runs]: times every step of the ladder on one layer of an 8B shape and
// prints README.md's table. The bound is the time to read the cache's rows once at the speed at
// which Backend::stream reads memory.
#include "steps.cuh"

#include <cstdio>
#include <cstdlib>

#include "base/random.h"
#include "cache/kv_cache.h"

using namespace stief;

// Seconds of one call of work(), the mean of `runs` after one that is not counted.
template <class Work>
static double seconds(CudaBackend& gpu, int runs, const Work& work) {
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    work();
    CUDA_CHECK(cudaEventRecord(begin, gpu.queue));
    for (int i = 0; i < runs; i++) work();
    CUDA_CHECK(cudaEventRecord(end, gpu.queue));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return double(milliseconds) * 1e-3 / runs;
}

static void measure(CudaBackend& gpu, double bandwidth, int S, int rank, bool rotated, int runs) {
    Config config;
    config.L = 1, config.H = 32, config.G = 8, config.d = 128;
    Bases bases = Bases::identity(config, rank);
    bases.layer[0].rotated = rotated, bases.sinks = bases.recent = 0;
    KvCache cache(gpu, config, S, DType::F16, &bases, 1);
    std::vector<f16> noise(cache.rows.bytes / sizeof(f16));   // small numbers: NaN costs no less time,
    Random random(1);                                         // but a softmax of them says nothing
    for (f16& one : noise) one = to_f16(float(random.uniform() - 0.5));
    gpu.upload(cache.rows.data, noise.data(), cache.rows.bytes);
    size_t query = size_t(config.H * config.d) * sizeof(float);
    Buffer q(gpu, query, "queries"), out(gpu, query, "outputs");
    Buffer rotation(gpu, size_t(S) * size_t(config.d) * sizeof(float), "rotations");
    double bound = double(S) * double(cache.bytes_per_token()) / bandwidth;
    gpu.begin_step({S - 1, 1}), gpu.end_step();
    for (const ladder::StepOfLadder& step : ladder::STEPS) {
        double took = seconds(
            gpu, runs, [&] { step.run(gpu, out.f32(), q.f32(), rotation.f32(), cache.layer[0]); });
        std::printf("| %s | %s | %.3f ms | %.0f %% |\n", step.name, rotated ? "after" : "before",
                    took * 1e3, 100 * bound / took);
    }
}

int main(int argc, char** argv) try {
    int S = argc > 1 ? std::atoi(argv[1]) : 131072, rank = argc > 2 ? std::atoi(argv[2]) : 32;
    int runs = argc > 3 ? std::atoi(argv[3]) : 10;
    check(S > 0 && rank >= 0 && rank <= 128 && rank % 4 == 0 && runs > 0,
          "expected: ladder [positions] [rank, a multiple of 4 up to 128] [runs]");
    CudaBackend gpu({});
    Buffer memory(gpu, size_t(1) << 30, "memory to read");
    double bandwidth = 0;
    for (int i = 0; i < 5; i++)
        bandwidth = std::max(bandwidth, double(memory.bytes) / seconds(gpu, 1, [&] {
                                            gpu.stream(memory.data, memory.bytes);
                                        }));
    std::printf("%s, reads %.0f GB/s; %d positions, rank %d of 128, 32 query heads, 8 kv heads\n\n",
                gpu.device.c_str(), bandwidth * 1e-9, S, rank);
    std::printf(
        "| step | keys stored … rotation | one layer | of the bound |\n|---|---|---|---|\n");
    for (bool rotated : {true, false}) measure(gpu, bandwidth, S, rank, rotated, runs);
    return 0;
} catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
