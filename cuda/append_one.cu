// Append of one token, a head a block: rotated, into latent coordinates, stored. What it costs is waiting:
// for memory, and for one sum after the other. A row's scale is searched by all warps of the block, each
// with one. append_tiles.cu has several tokens.
#include "append_one.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// A query head: q rotated, q Dᵀ, and what it meets a turned mean with. A kv head's keys or its values:
// rotated where that is kept, c = (k − μ) E, and c into all of the head's stores; of rotated keys less R_s μ
// into those of codes, and k E into those of whole rows. Codes at once, or what becomes them to in.later.
// grid queries + 2G, or G where values are joint, block 256. Shared: OneShared, sums, x, c, both of whole
// rows, and where `staged` the basis, which like all that waits for no other kernel comes before they are
// through. Bound by the basis' bytes, d²·4 a head.
template <class E, int EACH>
__global__ void __launch_bounds__(ONE_BLOCK, 2)
    append_one_kernel(CacheView cache, HeadsIn in, const int* pos, bool staged, bool codes, bool whole) {
    let_next_begin();
    int h = int(blockIdx.x), d = cache.d, tid = int(threadIdx.x);
    bool query = h < in.queries;
    int side = query ? 0 : (h - in.queries) / cache.G;
    int g = query ? h / (cache.H / cache.G) : (h - in.queries) % cache.G;
    const CacheRows& rows = side ? cache.v(g) : cache.k(g);
    OneLayout own(dynamic_shared(), d, staged);
    OneShared& shared = *own.shared;
    float *x = own.x, *c = own.c, *whole_x = own.whole_x, *whole_c = own.whole_c;
    if (!query && codes) EncoderTables::fetch_levels(&shared.levels);
    if (!query) shared.tables.fetch(rows);
    const float* M = !query ? rows.encode : in.latent ? rows.decode_t : nullptr;
    int n = query && rows.mean ? d : rows.width;  // a turned mean has all coordinates
    if (M && staged) fetch_basis(own.basis, M, d);
    copy_async_commit();
    int half = d / 2;
    float mean_low = 0, mean_high = 0;  // of coordinates tid and tid + half
    // Not where keys come less it.
    bool asked = query ? in.against_mean != nullptr : !cache.rotated || in.rotation;
    const float* mean = asked ? rows.mean : nullptr;
    if (mean && tid < half)
        mean_low = mean[tid], mean_high = mean[tid + half];
    __syncthreads();  // the head's description is there
    if (!query) shared.tables.describe(codes);
    await_kernels();

    int s = *pos;
    bool turns = in.rotation && (query || (side == 0 && cache.rotated));
    bool apart = mean && turns && !query;  // keys' whole rows differ from the others
    if (tid < half) {
        const float* from = (query ? in.q : side ? in.v : in.k) + size_t(query ? h : g) * size_t(d);
        float a = from[tid], b = from[tid + half];
        if (turns) {
            const float* angle = in.rotation + size_t(s) * size_t(d);
            float cos = angle[tid], sin = angle[tid + half];
            turn_pair(a, b, cos, sin);
            if (apart) turn_pair(mean_low, mean_high, cos, sin);
        }
        whole_x[tid] = a, whole_x[tid + half] = b;
        x[tid] = query ? a : a - mean_low, x[tid + half] = query ? b : b - mean_high;
        if (!query && in.later) {
            float* later = in.later + size_t(side * cache.G + g) * size_t(d);
            later[tid] = x[tid], later[tid + half] = x[tid + half];
        }
        if (query && mean) {
            float* w = in.against_mean + size_t(h) * size_t(d);
            w[tid] = a * mean_low + b * mean_high, w[tid + half] = b * mean_low - a * mean_high;
        }
        float* back = in.q + size_t(h) * size_t(d);
        if (query && turns) back[tid] = a, back[tid + half] = b;
    }
    if (query && !M) return;
    copy_async_wait<0>();
    __syncthreads();  // x is there, and all that came ahead
    if (M && !(apart && in.later)) row_product(c, x, staged ? own.basis : M, size_t(d), d, n, own.partial);
    if (M && apart && whole)
        row_product(whole_c, whole_x, staged ? own.basis : M, size_t(d), d, n, own.partial);
    if (query) {
        if (tid < d) in.latent[size_t(h) * size_t(d) + size_t(tid)] = tid < n ? c[tid] : 0;
        return;
    }
    if (!M) c = x;
    if (codes) store_codes<E, EACH>(shared, c, s);
#pragma unroll 1
    for (int i = 0; i < MOST_STORES; i++) {
        if (shared.tables.kinds[i] != EncoderTables::WHOLE) continue;
        const RowStore& store = shared.tables.head.store[i];
        if (tid < elements_of(store))
            elements_at<E>(store, s)[tid] =
                to_element<E>(apart && lies_whole(store, d) ? whole_c[tid] : c[tid]);
    }
}

// ---- launchers ---------------------------------------------------------------------------------

void append_one(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in) {
    OneRoom room(gpu, cache.d, cache.k[0].encode || cache.v[0].encode || cache.k[0].decode_t);
    bool codes = !whole_rows(cache) && !in.later;
    dim3 grid(unsigned(in.queries + in.heads_of(cache)));
    for_row(cache.dtype, cache.d, [&]<class E, int EACH>() {
        launch_ahead(append_one_kernel<E, EACH>, grid, ONE_BLOCK, room.bytes, gpu.queue, CacheView(cache),
                     in, gpu.pos, room.staged, codes, in.apart(cache));
    });
}

}  // namespace stief
