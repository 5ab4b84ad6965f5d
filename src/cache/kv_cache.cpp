#include "cache/kv_cache.h"

#include <algorithm>

#include "base/arena.h"

namespace stief {

static_assert(MOST_STORES == MOST_AGES + 2, "the window, the ages, and what is beyond them");

static const float* upload_floats(Backend& backend, Arena& memory, const std::vector<float>& x) {
    float* to = memory.take<float>(x.size());
    backend.upload(to, x.data(), x.size() * sizeof(float));
    return to;
}

// Columns first … first + d − 1 of D (n, width).
static std::vector<float> columns(const std::vector<float>& D, size_t width, size_t first, size_t d) {
    std::vector<float> part;
    for (size_t row = 0; row < D.size(); row += width)
        part.insert(part.end(), D.begin() + std::ptrdiff_t(row + first),
                    D.begin() + std::ptrdiff_t(row + first + d));
    return part;
}

static std::vector<float> transposed(const std::vector<float>& M, size_t d) {
    std::vector<float> T(M.size());
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++) T[j * d + i] = M[i * d + j];
    return T;
}

namespace {

// Where the rows of one layer's heads lie, and who sees which: the one place that knows.
struct RowPlan {
    static constexpr size_t LINE = 64;   // bytes: two heads never share a cache line
    const Config& config;
    const Bases* bases;
    int capacity, batch;
    DType dtype;
    Arena rows;

    bool window() const { return bases->sinks > 0 || bases->recent > 0; }
    // Store 0 is the window, store i + 1 the bases' format i.
    int formats() const { return int(bases->ages.size()) + 1; }
    RowFormat format(const HeadBasis& head, int store) const {
        return store ? head.format[size_t(store - 1)] : RowFormat::whole(int(head.width()));
    }

    // Both end with the cache: no row is further, and nothing that is added to them overflows.
    int sinks() const { return std::min(bases->sinks, capacity); }
    // The distance from which on a token sees a row in an older store.
    int reach(int store) const {
        if (store == formats()) return INT_MAX;
        return std::min(store ? bases->ages[size_t(store - 1)] : bases->recent, capacity);
    }

    // The store in which a head has what others have in `store`: rows of one format are kept once,
    // in the oldest store, which has the younger rows as well.
    int kept_in(const HeadBasis& head, int store) const {
        int last = store;
        for (int i = store + 1; i <= formats(); i++)
            if (format(head, i) == format(head, store)) last = i;
        return last;
    }

    void place(RowStore& store) {
        store.bytes = int(store.format.bytes(dtype));
        size_t slots = size_t(store.ring ? store.fixed + store.ring : capacity);
        store.data = rows.take<char>(slots * size_t(store.bytes));
    }

    // A ring has what the first token of a batch still sees, and the batch itself; beside it the
    // sinks, which lie in any store of their format (kept_in). One that would never come round is
    // none: every position has its slot.
    void make_ring(RowStore& store, int i) const {
        int64_t ring = int64_t(reach(i)) + batch, slots = sinks() + ring;
        if (slots < capacity) store.fixed = sinks(), store.ring = int(ring);
    }

    CacheRows head(const HeadBasis* basis) {
        CacheRows one;
        if (!basis) {
            one.width = config.d, one.store[0].format = RowFormat::whole(config.d);
            place(one.store[0]);
            return one;
        }
        for (int i = window() ? 0 : 1; i <= formats(); i++) {
            RowStore& store = one.store[i];
            store.format = format(*basis, i);
            one.width = std::max(one.width, store.format.kept());
            if (kept_in(*basis, i) != i) continue;
            if (i < formats()) make_ring(store, i);
            place(store);
        }
        return one;
    }

    Seen seen(const HeadBasis* k, const HeadBasis* v) const {
        if (!k) return Seen::all_of(0);
        Seen all;
        auto add = [&](int first, int end, int lo, int hi, int store) {
            Stretch one{first, end, lo, hi, kept_in(*k, store), kept_in(*v, store)};
            if (first >= end || lo >= hi) return;
            Stretch* last = all.count ? &all.stretch[all.count - 1] : nullptr;
            if (last && last->k == one.k && last->v == one.v && last->first == first)
                last->lo = lo;  // the next younger age, in the same stores
            else
                all.stretch[all.count++] = one;
        };
        add(0, sinks(), 0, INT_MAX, 0);
        for (int i = formats(); i > 0; i--) add(sinks(), INT_MAX, reach(i - 1), reach(i), i);
        add(sinks(), INT_MAX, 0, reach(0), 0);
        // Sinks in the stores of all the rest are nothing of their own.
        const Stretch &first = all.stretch[0], &rest = all.stretch[1];
        if (all.count == 2 && sinks() > 0 && first.k == rest.k && first.v == rest.v)
            return Seen{1, {{0, INT_MAX, 0, INT_MAX, rest.k, rest.v}}};
        return all;
    }

    void fill(std::vector<CacheLayer>& layers) {
        for (size_t l = 0; l < size_t(config.L); l++) {
            const Bases::Layer* from = bases ? &bases->layer[l] : nullptr;
            CacheLayer& one = layers.emplace_back();
            one.dtype = dtype, one.capacity = capacity;
            one.H = config.H, one.G = config.G, one.d = config.d;
            if (from) one.rotated = from->rotated;
            if (from && from->joint) one.joint = config.G * config.d;
            for (size_t g = 0; g < size_t(config.G); g++)
                one.k.push_back(head(from ? &from->k[g] : nullptr));
            for (size_t g = 0; g < size_t(config.G); g++)
                one.v.push_back(one.shares_rows(g) ? one.v[0] : head(from ? &from->v[g] : nullptr));
            for (size_t g = 0; g < size_t(config.G); g++)
                one.seen.push_back(from ? seen(&from->k[g], &from->v[one.joint ? 0 : g])
                                        : Seen::all_of(0));
            if (from && (window() || formats() > 1)) one.batch = batch;
        }
    }
};

}  // namespace

// Of one layer's heads; the next layer's begin aligned.
static size_t table_bytes(const Config& c) {
    size_t bytes = size_t(c.G) * (2 * sizeof(CacheRows) + sizeof(Seen)), step = alignof(CacheRows);
    return (bytes + step - 1) / step * step;
}

static size_t matrix_floats(const Config& c, const Bases* bases) {
    size_t d = size_t(c.d), sum = MATRIX_SLACK;
    if (!bases) return 0;
    for (const Bases::Layer& one : bases->layer) {
        sum += one.k.size() * (3 * d * d + 2 * d);
        for (const HeadBasis& head : one.v)
            sum += head.encode.size() + head.decode.size() + head.width();
    }
    return sum;
}

// What the bases of one layer upload.
struct BasisUpload {
    Backend& backend;
    Arena& memory;
    size_t d;

    void key(CacheRows& to, const HeadBasis& from) const {
        both(to, from);
        to.decode = upload_floats(backend, memory, from.decode);
        to.decode_t = upload_floats(backend, memory, transposed(from.decode, d));
        if (!from.mean.empty()) to.mean = upload_floats(backend, memory, from.mean);
    }
    // Joint: head g's part of the one basis.
    void values(std::vector<CacheRows>& to, const std::vector<HeadBasis>& from) const {
        for (size_t g = 0; g < to.size(); g++) {
            const HeadBasis& basis = from[g < from.size() ? g : 0];
            if (g < from.size()) both(to[g], basis);
            to[g].decode = upload_floats(
                backend, memory,
                columns(basis.decode, basis.width(), from.size() < to.size() ? g * d : 0, d));
        }
    }

  private:
    void both(CacheRows& to, const HeadBasis& from) const {
        to.encode = upload_floats(backend, memory, from.encode);
        to.weight = upload_floats(backend, memory, from.weight);
    }
};

size_t KvCache::bytes_for(const Config& c, int capacity, DType dtype, const Bases* bases,
                          int batch) {
    RowPlan plan{c, bases, capacity, batch, dtype, Arena(nullptr, RowPlan::LINE)};
    std::vector<CacheLayer> layers;
    plan.fill(layers);
    return plan.rows.used + ROW_SLACK + matrix_floats(c, bases) * sizeof(float) +
           size_t(c.L) * table_bytes(c);
}

KvCache::KvCache(Backend& backend, const Config& c, int positions, DType type, const Bases* bases,
                 int batch, const std::string* cold)
    : capacity(positions), dtype(type) {
    size_t tables = size_t(c.L) * table_bytes(c);
    size_t floats = matrix_floats(c, bases) * sizeof(float);
    size_t total = bytes_for(c, positions, type, bases, batch);
    heads = Buffer(backend, tables, "the KV cache's table of heads");
    std::string what = format("the KV cache of %d positions in %s", positions, name_of(type));
    size_t row_bytes = total - floats - tables;
    rows = cold ? Buffer::cold(backend, row_bytes, what.c_str(), *cold)
                : Buffer(backend, row_bytes, what.c_str());
    if (bases) matrices = Buffer(backend, floats, "the bases of the KV cache");
    if (bases) sinks = bases->sinks, recent = bases->recent, ages = bases->ages;
    RowPlan plan{c, bases, capacity, batch, dtype, Arena(rows.data, RowPlan::LINE)};
    plan.fill(layer);
    Arena basis(matrices.data, sizeof(float)), table(heads.data, alignof(CacheRows));
    for (size_t l = 0; l < size_t(c.L); l++) {
        CacheLayer& one = layer[l];
        BasisUpload upload{backend, basis, size_t(c.d)};
        for (size_t g = 0; bases && g < size_t(c.G); g++) upload.key(one.k[g], bases->layer[l].k[g]);
        if (bases) upload.values(one.v, bases->layer[l].v);
        std::vector<CacheRows> both = one.k;
        both.insert(both.end(), one.v.begin(), one.v.end());
        CacheRows* to = reinterpret_cast<CacheRows*>(table.take<char>(table_bytes(c)));
        Seen* to_seen = reinterpret_cast<Seen*>(to + both.size());
        backend.upload(to, both.data(), both.size() * sizeof(CacheRows));
        backend.upload(to_seen, one.seen.data(), one.seen.size() * sizeof(Seen));
        one.rows = to, one.seen_rows = to_seen;
    }
}

// Every store whose rows are kept, once, in a fixed order.
template <class Visit>
static void for_each_store(const KvCache& cache, const Visit& visit) {
    for (const CacheLayer& one : cache.layer)
        for (const std::vector<CacheRows>* side : {&one.k, &one.v})
            for (size_t g = 0; g < side->size(); g++)
                for (const RowStore& store : (*side)[g].store)
                    if (store.data && !(side == &one.v && one.shares_rows(g))) visit(store);
}

size_t KvCache::bytes_per_token() const {
    size_t bytes = 0;
    for (const CacheLayer& one : layer)
        for (size_t g = 0; g < one.k.size(); g++) {
            const Stretch& old = one.seen[g].oldest();
            bytes += size_t(one.k[g].store[old.k].bytes);
            if (!one.shares_rows(g)) bytes += size_t(one.v[g].store[old.v].bytes);
        }
    return bytes;
}

// Calls copy(rows, bytes) for the rows of the first `positions` positions in every store.
template <class Copy>
static void for_each_block(const KvCache& cache, int positions, const Copy& copy) {
    for_each_store(cache, [&](const RowStore& store) {
        copy(store.data, size_t(store.slots(positions)) * size_t(store.bytes));
    });
}

size_t KvCache::snapshot_bytes(int positions) const {
    size_t sum = 0;
    for_each_block(*this, positions, [&](void*, size_t bytes) { sum += bytes; });
    return sum;
}

void KvCache::save(void* host) const {
    char* to = static_cast<char*>(host);
    for_each_block(*this, used, [&](void* block, size_t bytes) {
        rows.backend->download(to, block, bytes);
        to += bytes;
    });
}

void KvCache::load(const void* host, int positions) {
    check(positions <= capacity, "%d positions do not fit a cache of %d", positions, capacity);
    const char* from = static_cast<const char*>(host);
    for_each_block(*this, positions, [&](void* block, size_t bytes) {
        rows.backend->upload(block, from, bytes);
        from += bytes;
    });
    used = positions;
}

}  // namespace stief
