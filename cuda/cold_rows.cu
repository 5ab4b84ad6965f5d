// Whole rows that lie in the host's memory (CudaBackend::alloc_cold), for several tokens: a layer's come to
// the device once for all of them, where attention would read each across the bus as often as it has tiles
// of queries, and the new ones go home. One token reads them where they lie: once.
#include "cuda_impl.h"

namespace stief {

// Keys and values of every head in the order in which they lie.
static std::vector<CacheRows> heads_of(const CacheLayer& cache) {
    std::vector<CacheRows> all = cache.k;
    all.insert(all.end(), cache.v.begin(), cache.v.end());
    return all;
}

bool CudaBackend::lies_cold(const CacheLayer& cache) const {
    const RowStore& first = cache.k[0].store[0];
    return first.data && impl->page_locked(first.data, size_t(first.bytes));
}

const CacheLayer& CudaBackend::bring_cold(const CacheLayer& cache, int stored) {
    std::vector<CacheRows> heads = heads_of(cache);
    char* home = static_cast<char*>(heads[0].store[0].data);
    size_t row = size_t(heads[0].store[0].bytes), n = heads.size();
    size_t pitch = size_t(static_cast<char*>(heads[1].store[0].data) - home);
    for (size_t i = 0; i < n; i++) {
        const RowStore &store = heads[i].store[0], &other = heads[i].store[1];
        bool plain = store.format == RowFormat::whole(cache.d) && !store.ring && !other.data &&
                     !heads[i].encode && !heads[i].decode && !heads[i].mean;
        check(plain && !cache.joint && store.data == home + i * pitch,
              "cold rows are those of a plain cache, one head behind the other");
    }
    Impl::Brought& here = impl->brought;
    size_t bytes = n * pitch;
    if (bytes > here.bytes || n > here.heads) {
        cudaFree(std::exchange(here.memory, nullptr)), cudaFree(std::exchange(here.rows, nullptr));
        here = {};
        here.memory = static_cast<char*>(alloc(bytes, "a layer's whole rows"));
        here.rows = static_cast<CacheRows*>(alloc(n * sizeof(CacheRows), "a layer's whole rows"));
        here.bytes = bytes, here.heads = n;
    }
    bool alike = here.pitch == pitch && here.layer.capacity == cache.capacity && here.layer.G == cache.G &&
                 here.layer.d == cache.d && here.layer.dtype == cache.dtype;
    here.layer = cache;
    here.layer.rows = here.rows;
    for (size_t i = 0; i < n; i++) {
        heads[i].store[0].data = here.memory + i * pitch;
        (i < n / 2 ? here.layer.k[i] : here.layer.v[i - n / 2]) = heads[i];
    }
    if (!alike) upload(here.rows, heads.data(), n * sizeof(CacheRows));
    here.pitch = pitch;
    if (stored > 0)
        CUDA_CHECK(cudaMemcpy2DAsync(here.memory, pitch, home, pitch, size_t(stored) * row, n,
                                     cudaMemcpyHostToDevice, queue));
    return here.layer;
}

void CudaBackend::send_cold(const CacheLayer& cache, const Step& step) {
    const Impl::Brought& here = impl->brought;
    const RowStore& store = cache.k[0].store[0];
    size_t row = size_t(store.bytes), at = size_t(step.pos) * row;
    char* home = static_cast<char*>(store.data);
    CUDA_CHECK(cudaMemcpy2DAsync(home + at, here.pitch, here.memory + at, here.pitch, size_t(step.T) * row,
                                 cache.k.size() + cache.v.size(), cudaMemcpyDeviceToHost, queue));
}

}  // namespace stief
