// The cache's rows and attention over them, on every backend, against reference.h.
#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

struct Shapes {
    int H, G, d, rk, rv, pos, T;
    const char* why;
};

// A cache with `extra` positions beyond what is used; those hold NaN.
struct TestCache {
    CacheLayer layer;
    std::vector<Elements> k, v;                        // (G) of (capacity, r)

    TestCache(const Shapes& c, DType dtype, int extra) {
        int S = c.pos + c.T;
        layer.dtype = dtype, layer.capacity = S + extra;
        layer.H = c.H, layer.G = c.G, layer.d = c.d;
        for (int g = 0; g < c.G; g++) {
            k.push_back(rows(c.rk, S, extra, dtype, uint64_t(20 + g)));
            v.push_back(rows(c.rv, S, extra, dtype, uint64_t(40 + g)));
        }
    }
    // The layer with its rows in the lab's memory.
    const CacheLayer& in(Lab& lab) {
        layer.k.clear(), layer.v.clear();
        for (auto [from, to] : {std::pair{&k, &layer.k}, std::pair{&v, &layer.v}})
            for (Elements& one : *from) {
                int r = int(one.values.size() / size_t(layer.capacity));
                size_t bytes = one.values.size() * size_of(one.dtype);
                to->push_back(
                    whole_rows(const_cast<void*>(lab.bytes(one.data(), bytes)), r, one.dtype));
            }
        std::vector<CacheRows> both = layer.k;
        both.insert(both.end(), layer.v.begin(), layer.v.end());
        lab.held.emplace_back(*lab.backend, both.size() * sizeof(CacheRows), "a table of rows");
        lab.backend->upload(lab.held.back().data, both.data(), lab.held.back().bytes);
        layer.rows = static_cast<const CacheRows*>(lab.held.back().data);
        layer.seen.assign(size_t(layer.G), Seen::all_of(0));
        layer.seen_rows = static_cast<const Seen*>(
            lab.bytes(layer.seen.data(), layer.seen.size() * sizeof(Seen)));
        return layer;
    }
    // Back from the lab's memory.
    void out(Lab& lab) {
        for (auto [from, to] : {std::pair{&layer.k, &k}, std::pair{&layer.v, &v}})
            for (size_t g = 0; g < from->size(); g++)
                if (lab.device())
                    lab.backend->download((*to)[g].data(), (*from)[g].store[0].data,
                                          (*to)[g].values.size() * size_of(layer.dtype));
    }
    static Elements rows(int r, int S, int extra, DType dtype, uint64_t seed) {
        Floats values = normals(size_t(S * r), seed);
        values.resize(size_t((S + extra) * r), NaN);
        return Elements(values, dtype);
    }
};

static Doubles reference_attend(const Shapes& c, const TestCache& cache, const Floats& q) {
    Doubles out;
    for (int t = 0; t < c.T; t++)
        for (int h = 0; h < c.H; h++) {
            size_t g = size_t(h / (c.H / c.G));
            reference::attend_head(out, q.data() + (t * c.H + h) * c.d, cache.k[g].values,
                                   cache.v[g].values, c.pos + t + 1, c.rk, c.rv, c.d);
        }
    return out;
}

// Not exact, a device takes queries and weights of the softmax rounded to the rows' own 16 bits:
// both errors are relative, at most the unit roundoff u each, so 4 u² for the square of their sum.
// The CPU takes all four factors as bf16, where there are many tokens.
static double tolerance(const Lab& lab, DType dtype, bool exact, int T) {
    if (exact || dtype == DType::F32 || (T == 1 && !lab.device())) return TOL_F32;
    if (!lab.device()) return TOL_FOUR_ROUNDED;
    return 4 * (dtype == DType::F16 ? TOL_F16 : TOL_BF16);
}

TEST_CASE("attention is softmax(q Kᵀ / √d) V over the positions up to the token's own") {
    const Shapes cases[] = {
        {1, 1, 8, 8, 8, 0, 1, "first token"},
        {4, 4, 64, 64, 64, 100, 1, "every head its own keys"},
        {8, 1, 64, 64, 64, 37, 1, "one kv head for all"},
        {8, 2, 64, 64, 64, 255, 1, "exactly one split"},
        {8, 2, 64, 64, 64, 256, 1, "one past a split"},
        {6, 2, 128, 128, 128, 700, 1, "three heads a group, three splits"},
        {14, 2, 20, 20, 20, 33, 1, "seven heads a group, a width of no vector"},
        {4, 2, 64, 24, 40, 513, 1, "unequal ranks"},
        {4, 2, 64, 4, 12, 70, 1, "ranks below a vector"},
        {7, 1, 64, 20, 36, 131, 1, "ranks past a vector, seven heads a group"},
        {4, 1, 16, 12, 16, 4200, 1, "pieces of 512, the last one short"},
        {4, 2, 64, 0, 16, 9, 1, "no keys kept: the mean of the values"},
        {4, 2, 64, 16, 0, 9, 1, "no values kept: zero"},
        {17, 1, 64, 28, 64, 90, 1, "one more than two tiles of heads"},
        {2, 1, 128, 100, 36, 0, 1, "first token, wide: all splits but one are empty"},
        {2, 2, 256, 256, 12, 40, 1, "the widest head"},
        {66, 1, 64, 16, 12, 30, 3, "more heads a group than a tile has rows"},
        {1, 1, 128, 128, 128, 63, 65, "one past a tile of queries and of keys"},
        {4, 2, 64, 64, 64, 0, 2, "two tokens"},
        {8, 2, 64, 64, 64, 0, 7, "a short prompt"},
        {3, 3, 8, 8, 8, 0, 13, "narrow heads"},
        {4, 4, 128, 128, 128, 0, 70, "one past a tile of queries, wide heads"},
        {8, 2, 64, 64, 64, 120, 70, "across tiles of keys"},
        {8, 1, 20, 20, 20, 128, 9, "one kv head, a whole tile before"},
        {6, 2, 64, 24, 40, 250, 13, "unequal ranks, tiles"},
        {4, 2, 64, 0, 0, 3, 5, "nothing kept"},
        {4, 2, 16, 4, 12, 127, 2, "the diagonal on a tile's edge"},
        {2, 2, 256, 256, 256, 2046, 3, "more tiles of keys than come out of their rows at once"},
    };
    for (const Shapes& c : cases)
        for (DType dtype : {DType::F32, DType::F16, DType::BF16}) {
            CAPTURE(c.why);
            CAPTURE(std::string(name_of(dtype)));
            TestCache cache(c, dtype, 140);
            Floats q = normals(size_t(c.T * c.H * c.d), 60);
            Doubles want = reference_attend(c, cache, q);
            for (bool exact : {true, false}) {
                CAPTURE(exact);
                check_everywhere(
                    want,
                    [&](const Lab& lab) { return tolerance(lab, dtype, exact, c.T); }, {},
                    [&](Lab& lab, float* out) {
                        Step step{c.pos, c.T};
                        lab.backend->exact = exact;
                        lab.step(step);
                        lab.backend->attend(out, lab.in(q), nullptr, cache.in(lab), step);
                    });
            }
        }
}

TEST_CASE("attention survives scores that overflow without the maximum taken off") {
    for (int T : {1, 5}) {
        Shapes c{2, 1, 16, 16, 16, 300, T, "large scores"};
        CAPTURE(T);
        TestCache cache(c, DType::F32, 1);
        Floats q = normals(size_t(T * 2 * 16), 61);
        for (float& one : q) one *= 300;
        check_everywhere(reference_attend(c, cache, q), 1e-8, {}, [&](Lab& lab, float* out) {
            Step step{c.pos, c.T};                         // a score of 1,000 has 6e-5
            lab.step(step);                                //   of rounding in it
            lab.backend->attend(out, lab.in(q), nullptr, cache.in(lab), step);
        });
    }
}

TEST_CASE("append stores the first r coordinates at their positions, rounded, and nothing else") {
    Shapes c{4, 2, 20, 12, 8, 3, 5, "ranks below d"};
    Floats k = normals(size_t(c.T * c.G * c.d), 62), v = normals(size_t(c.T * c.G * c.d), 63);
    for (DType dtype : {DType::F32, DType::F16, DType::BF16})
        for (const Variant& variant : groups()) {
            CAPTURE(std::string(name_of(dtype)));
            CAPTURE(variant.group);
            TestCache cache(c, dtype, 2), want(c, dtype, 2);
            for (int t = 0; t < c.T; t++)
                for (int g = 0; g < c.G; g++)
                    for (int i = 0; i < c.d; i++) {
                        size_t from = size_t((t * c.G + g) * c.d + i), at = size_t(c.pos + t);
                        if (i < c.rk) want.k[size_t(g)].set(at * size_t(c.rk) + size_t(i), k[from]);
                        if (i < c.rv) want.v[size_t(g)].set(at * size_t(c.rv) + size_t(i), v[from]);
                    }
            Lab lab(variant);
            Step step{c.pos, c.T};
            lab.step(step);
            lab.backend->append(cache.in(lab), lab.in(k), lab.in(v), step);
            cache.out(lab);
            for (size_t g = 0; g < 2; g++) {
                CHECK(cache.k[g].bytes == want.k[g].bytes);
                CHECK(cache.v[g].bytes == want.v[g].bytes);
            }
            CHECK_THROWS_WITH_AS(lab.backend->append(cache.layer, lab.in(k), lab.in(v), {6, 5}),
                                 doctest::Contains("position 10 does not fit a cache of 10"),
                                 Error);
        }
}

TEST_SUITE_END();
