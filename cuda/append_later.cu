// Rows of codes behind the step: where a window is exact, a step of one token meets its own row as it is
// whole, and codes are nothing that its attention waits for. So append_one.cu leaves what they are made of,
// and all layers' codes are made at once when the step is through.
#include "append_one.cuh"
#include "cuda_impl.h"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int MOST_LAYERS = 48;  // of one launch: an argument by value
struct WaitingLayers {
    WaitingRows of[MOST_LAYERS];
};

// c = x E of a kv head's keys or of its values, and its codes into their stores. grid (2G, or G where
// values are joint, layers), block 256. Shared: OneLayout.
template <class E, int EACH>
__global__ void __launch_bounds__(ONE_BLOCK, 2)
    append_later_kernel(WaitingLayers layers, const int* pos, bool staged) {
    const WaitingRows& layer = layers.of[blockIdx.y];
    const CacheView& cache = layer.cache;
    int head = int(blockIdx.x), d = cache.d, tid = int(threadIdx.x);
    const CacheRows& rows = head < cache.G ? cache.k(head) : cache.v(head - cache.G);
    OneLayout own(dynamic_shared(), d, staged);
    OneShared& shared = *own.shared;
    float *x = own.x, *c = own.c;
    let_next_begin();
    EncoderTables::fetch_levels(&shared.levels);
    shared.tables.fetch(rows);
    const float* M = rows.encode;
    if (M && staged) fetch_basis(own.basis, M, d);
    copy_async_commit();
    __syncthreads();  // the head's description is there
    shared.tables.describe(true);
    await_kernels();
    if (tid < d) x[tid] = layer.x[size_t(head) * size_t(d) + size_t(tid)];
    copy_async_wait<0>();
    __syncthreads();  // x is there, and all that came ahead
    if (M) row_product(c, x, staged ? own.basis : M, size_t(d), d, rows.width, own.partial);
    store_codes<E, EACH>(shared, M ? c : x, *pos);
}

// ---- launchers ---------------------------------------------------------------------------------

// Whether every head's newest row is met as elements, and of keys less a turned mean rows of elements have
// all d of them: then nothing but codes is made of what waits.
static bool meets_whole_rows(const CacheLayer& cache) {
    for (size_t g = 0; g < size_t(cache.G); g++) {
        bool newest = false;
        for (const Stretch& one : cache.seen[g])
            if (one.lo == 0 && one.end == INT_MAX)
                newest = !coded(cache.k[g].store[one.k].format) && !coded(cache.v[g].store[one.v].format);
        if (!newest) return false;
        for (const RowStore& store : cache.k[g].store)
            if (cache.less_turned_mean(g) && store.data && !coded(store.format) &&
                !store.format.keeps_all(cache.d))
                return false;
    }
    return true;
}

float* CudaBackend::wait_with_codes(const CacheLayer& cache, const HeadsIn& in) {
    std::vector<WaitingRows>& all = impl->waiting;
    Impl::Alike alike = {cache.dtype, cache.G, cache.d, in.heads_of(cache),
                         cache.k[0].encode || cache.v[0].encode};
    if (whole_rows(cache) || !meets_whole_rows(cache)) return nullptr;
    if (!all.empty() && !(alike == impl->alike)) return nullptr;
    size_t each = size_t(2 * cache.G * cache.d);
    float* memory = static_cast<float*>(scratch(Scratch::Waiting, (all.size() + 1) * each * sizeof(float)));
    memory += all.size() * each;
    impl->alike = alike;
    all.push_back({CacheView(cache), memory});
    return memory;
}

void CudaBackend::append_waiting() {
    std::vector<WaitingRows> all = std::exchange(impl->waiting, {});
    Impl::Alike alike = impl->alike;
    for (size_t first = 0; first < all.size(); first += MOST_LAYERS) {
        size_t count = std::min(all.size() - first, size_t(MOST_LAYERS));
        WaitingLayers layers;
        std::copy_n(all.begin() + std::ptrdiff_t(first), count, layers.of);
        OneRoom room(*this, alike.d, alike.bases);
        for_row(alike.dtype, alike.d, [&]<class E, int EACH>() {
            launch_ahead(append_later_kernel<E, EACH>, dim3(unsigned(alike.heads), unsigned(count)),
                         ONE_BLOCK, room.bytes, queue, layers, pos, room.staged);
        });
    }
}

}  // namespace stief
