// The cache's rows: append; queries in latent coordinates; values out of them; attend. Twin:
// src/backend/cpu/cache_rows.cpp.
#include "cache_rows.cuh"

#include <utility>

#include "append.cuh"
#include "attention.cuh"
#include "dispatch.cuh"
#include "joint_values.cuh"
#include "tile_product.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int DECODE_BLOCK = 256;

// out (T, H, d) ← x (T, H, d) D of each head's group: values out of their coordinates.
// grid (tiles, H), block 256. Shared: the tile. Reads D once for each tile.
template <int WIDEST>
__global__ void __launch_bounds__(DECODE_BLOCK, 2)
    decode_tiles_kernel(HeadsOut out, const float* in, CacheView cache, int T) {
    using Tile = TileProduct<WIDEST>;
    int h = int(blockIdx.y), d = cache.d;
    int first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    const CacheRows& head = cache.v(h / (cache.H / cache.G));
    int width = head.width;
    Tile tile(dynamic_shared(), head.decode, width, d);
    if (width > 0) tile.fetch(0);
    constexpr int TOGETHER = Tile::THREADS / WIDEST, BATCH = 16;  // tokens read before any is put
    int j = tile.tid % WIDEST, padded = tile.padded();
    const float* from = in + size_t(first) * size_t(cache.H) * size_t(d) + size_t(h * d + j);
#pragma unroll 1
    for (int t0 = tile.tid / WIDEST; j < padded && t0 < count; t0 += BATCH * TOGETHER) {
        float x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int t = t0 + i * TOGETHER;
            x[i] = t < count && j < width ? from[t * cache.H * d] : 0;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (t0 + i * TOGETHER < count) tile.put(t0 + i * TOGETHER, j, x[i]);
    }
    typename Tile::Sums sum;
    tile.template sums<true>(sum, count);
    tile.each(sum, [&](int t, int column, float a, float b) {
        if (t < count && column < d) out.put_pair(size_t(first + t), h * d + column, a, b);
    });
}

// ---- launchers ---------------------------------------------------------------------------------

static void launch_append(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int T) {
    T == 1 ? append_one(gpu, cache, in) : append_tiles(gpu, cache, in, T);
}

static float* latent_memory(CudaBackend& gpu, const CacheLayer& cache, int T) {
    size_t n = size_t(T + (T == 1)) * size_t(cache.H) * size_t(cache.d);
    return static_cast<float*>(gpu.scratch(CudaBackend::Scratch::Queries, n * sizeof(float)));
}
// Where to turn T tokens' queries, and what one meets a mean with.
static void turn_to(HeadsIn& in, float* latent, const CacheLayer& cache, int T) {
    in.latent = latent;
    if (T == 1 && less_turned_means(cache)) in.against_mean = against_mean(latent, cache);
}

static void check_room(const CacheLayer& cache, const Step& step) {
    check(step.pos + step.T <= cache.capacity, "position %d does not fit a cache of %d",
          step.pos + step.T - 1, cache.capacity);
    check(cache.batch == 0 || step.T <= cache.batch,
          "%d tokens at once do not fit the rings of a cache for %d", step.T, cache.batch);
}

void CudaBackend::append(const CacheLayer& cache, float* q, float* k, const float* v,
                         const float* rotation, const Step& step) {
    check_room(cache, step);
    if (step.T < 1) return;
    if (singly && step.T > 1)
        return each_alone(step, [&](const Step& one, size_t t) {
            size_t at = t * size_t(cache.G * cache.d);
            append(cache, q ? q + t * size_t(cache.H * cache.d) : nullptr, k ? k + at : nullptr,
                   v ? v + at : nullptr, rotation, one);
        });
    HeadsIn in{q, nullptr, nullptr, k, v, rotation, q ? cache.H : 0};
    if (q && cache.rotated && cache.k[0].decode_t)
        turn_to(in, latent_memory(*this, cache, step.T), cache, step.T), turned = q;
    if (step.T == 1 && step.replay && k) in.later = wait_with_codes(cache, in);
    launch_append(*this, cache, in, step.T);
    if (cache.joint && v) append_joint(*this, cache, v, step.T);
}

const float* latent_queries(CudaBackend& gpu, const float* q, const CacheLayer& cache, int T) {
    if (!cache.rotated || !cache.k[0].decode_t) return q;
    float* latent = latent_memory(gpu, cache, T);
    if (std::exchange(gpu.turned, nullptr) == q) return latent;
    HeadsIn in{const_cast<float*>(q), nullptr, nullptr, nullptr, nullptr, nullptr, cache.H};
    turn_to(in, latent, cache, T);
    launch_append(gpu, cache, in, T);  // without a rotation q is not written
    return latent;
}

static void decode_values(CudaBackend& gpu, const HeadsOut& out, const float* in,
                          const CacheLayer& cache, int T) {
    for_tiles(cache.d, [&]<int WIDEST>() {
        using Tile = TileProduct<WIDEST>;
        dim3 grid(unsigned((T + Tile::TOKENS - 1) / Tile::TOKENS), unsigned(cache.H));
        launch(decode_tiles_kernel<WIDEST>, grid, Tile::THREADS, Tile::BYTES, gpu.queue,
               out, in, CacheView(cache), T);
    });
}

std::string CudaBackend::plain_attention(const CacheLayer& cache) const {
    const char* slow = "attention on CUDA cores, several times slower than on tensor cores: ";
    if (exact) return "";
    if (cache.dtype == DType::F32) return std::string(slow) + "they take no --cache f32";
    if (!tensor_cores(*this, cache))
        return slow + format("they take heads of 64 and 128, not of %d", cache.d);
    if (cache.joint && !joint_in_slots(cache))
        return std::string(slow) +
               "they take joint values whose 16-bit coordinates ahead of codes come in eights";
    bool one = tensor_splits_fit(*this, cache) && (!cache.joint || joint_fits(*this, cache));
    bool whole = cache.joint || less_turned_means(cache);
    bool many = whole ? whole_tiles_fit(*this, cache) : tensor_tiles_fit(*this, cache);
    if (one && many) return "";
    return slow + format("a block's %zu KiB of shared memory do not hold the rows%s",
                         shared_limit >> 10, one ? " of several tokens" : many ? " of one" : "");
}

// One token: attention, and its merging where there are several pieces. More: attention, and out of the
// values' coordinates.
void CudaBackend::attend(Operand out, const float* q, const float* rotation, const CacheLayer& cache,
                         const Step& step) {
    check(cache.d <= WIDEST_HEAD, "--backend cuda: heads of %d coordinates, expected at most %d",
          cache.d, WIDEST_HEAD);
    if (step.T == 0) return;
    if (singly && step.T > 1)
        return each_alone(step, [&](const Step& one, size_t t) {
            size_t at = t * size_t(cache.H * cache.d);
            attend({out.data + at, out.meets}, q + at, rotation, cache, one);
        });
    q = latent_queries(*this, q, cache, step.T);
    if (step.T == 1) return attend_one(*this, out.data, q, rotation, cache, reach(step));
    HeadsOut heads{out.data, cache.H * cache.d, rounds(out.meets, step.T)};
    if (!cache.v[0].decode || cache.joint) return attend_tiles(*this, heads, q, rotation, cache, step);
    size_t n = size_t(step.T) * size_t(cache.H) * size_t(cache.d);
    float* latent = static_cast<float*>(scratch(Scratch::Partials, n * sizeof(float)));
    attend_tiles(*this, {latent, cache.H * cache.d, false}, q, rotation, cache, step);
    decode_values(*this, heads, latent, cache, step.T);
}

void CudaBackend::append_and_attend(Operand out, const CacheLayer& cache, float* q, float* k,
                                    const float* v, const float* rotation, const Step& step) {
    check_room(cache, step);
    if (step.T > 1 && lies_cold(cache)) {
        append_and_attend(out, bring_cold(cache, step.pos), q, k, v, rotation, step);
        return send_cold(cache, step);
    }
    if (singly && step.T > 1)
        return each_alone(step, [&](const Step& one, size_t t) {
            size_t wide = t * size_t(cache.H * cache.d), narrow = t * size_t(cache.G * cache.d);
            append_and_attend({out.data + wide, out.meets}, cache, q + wide, k + narrow, v + narrow, rotation,
                              one);
        });
    if (step.T != 1 || !plain_cache(*this, cache))
        return Backend::append_and_attend(out, cache, q, k, v, rotation, step);
    attend_plain_cache(*this, out.data, q, {k, v, rotation}, cache, reach(step));
}

}  // namespace stief
