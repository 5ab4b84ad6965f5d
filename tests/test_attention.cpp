// The cache's rows and attention over them, for every instruction set, against reference.h.
#include "reference.h"

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
        for (int g = 0; g < c.G; g++) {
            layer.k.push_back({k[size_t(g)].data(), c.rk});
            layer.v.push_back({v[size_t(g)].data(), c.rv});
        }
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
        {4, 2, 64, 64, 64, 0, 2, "two tokens"},
        {8, 2, 64, 64, 64, 0, 7, "a short prompt"},
        {3, 3, 8, 8, 8, 0, 13, "narrow heads"},
        {4, 4, 128, 128, 128, 0, 70, "one past a tile of queries, wide heads"},
        {8, 2, 64, 64, 64, 120, 70, "across tiles of keys"},
        {8, 1, 20, 20, 20, 128, 9, "one kv head, a whole tile before"},
        {6, 2, 64, 24, 40, 250, 13, "unequal ranks, tiles"},
        {4, 2, 64, 0, 0, 3, 5, "nothing kept"},
        {4, 2, 16, 4, 12, 127, 2, "the diagonal on a tile's edge"},
    };
    for (const Shapes& c : cases)
        for (DType dtype : {DType::F32, DType::F16, DType::BF16}) {
            CAPTURE(c.why);
            CAPTURE(name_of(dtype));
            TestCache cache(c, dtype, 140);
            Floats q = normals(size_t(c.T * c.H * c.d), 60);
            Doubles want = reference_attend(c, cache, q);
            for (bool exact : {true, false}) {
                CAPTURE(exact);
                bool rounded = !exact && dtype != DType::F32 && c.T > 1;
                check_everywhere(want, rounded ? TOL_FOUR_ROUNDED : TOL_F32, {},
                                 [&](Backend& backend, float* out) {
                                     backend.exact = exact;
                                     backend.attend(out, q.data(), nullptr, cache.layer,
                                                    {c.pos, c.T});
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
        check_everywhere(reference_attend(c, cache, q), 1e-8, {},
                         [&](Backend& backend, float* out) {
                             backend.attend(out, q.data(), nullptr, cache.layer,
                                            {c.pos, T});  // a score of 1,000 has 6e-5
                         });                              //   of rounding in it
    }
}

TEST_CASE("append stores the first r coordinates at their positions, rounded, and nothing else") {
    Shapes c{4, 2, 20, 12, 8, 3, 5, "ranks below d"};
    Floats k = normals(size_t(c.T * c.G * c.d), 62), v = normals(size_t(c.T * c.G * c.d), 63);
    for (DType dtype : {DType::F32, DType::F16, DType::BF16})
        for (const std::string& isa : cpu_isas()) {
            CAPTURE(name_of(dtype));
            CAPTURE(isa);
            TestCache cache(c, dtype, 2), want(c, dtype, 2);
            for (int t = 0; t < c.T; t++)
                for (int g = 0; g < c.G; g++)
                    for (int i = 0; i < c.d; i++) {
                        size_t from = size_t((t * c.G + g) * c.d + i), at = size_t(c.pos + t);
                        if (i < c.rk) want.k[size_t(g)].set(at * size_t(c.rk) + size_t(i), k[from]);
                        if (i < c.rv) want.v[size_t(g)].set(at * size_t(c.rv) + size_t(i), v[from]);
                    }
            Threads threads(2);
            std::unique_ptr<Backend> backend = make_backend({.name = "cpu", .isa = isa}, threads);
            backend->append(cache.layer, k.data(), v.data(), {c.pos, c.T});
            for (size_t g = 0; g < 2; g++) {
                CHECK(cache.k[g].bytes == want.k[g].bytes);
                CHECK(cache.v[g].bytes == want.v[g].bytes);
            }
            CHECK_THROWS_WITH_AS(backend->append(cache.layer, k.data(), v.data(), {6, 5}),
                                 doctest::Contains("position 10 does not fit a cache of 10"),
                                 Error);
        }
}

TEST_SUITE_END();
