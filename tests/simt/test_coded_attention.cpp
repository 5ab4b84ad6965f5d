// Rows of codes on tensor cores: attention of decode and of prefill against the CPU's in f32, which is
// that of the definition (test_cache_rows.cpp), over widths, runs, tails, heads, ages and windows.
#include "coded_fragments.cuh"

#include "backends.h"
#include "cache/kv_cache.h"

using namespace stief;
using namespace stief::testing;

namespace {

RowFormat counts(std::array<uint16_t, RowFormat::WIDTHS> count) {
    return {count};
}

struct Attended {
    int H, G, d, S, T;
    bool rotated;
    std::vector<RowFormat> k, v;  // by age
    std::vector<int> ages;
    int sinks, recent;
    const char* why;
    bool means = true;  // every other head's keys are less one
};

// E scales by a power of two: exact, so that no coordinate falls into another cell. D is its inverse, or
// what it likes.
HeadBasis basis_of(int d, const std::vector<RowFormat>& formats, Random& random, bool inverse = false) {
    size_t n = size_t(d);
    HeadBasis one{formats, {}, {}, std::vector<float>(n * n), {}};
    for (size_t i = 0; i < n; i++) {
        one.encode[i * n + i] = std::ldexp(1.0f, int(random.below(3)) - 1);
        one.weight.push_back(float(0.25 + random.uniform()));
    }
    for (size_t i = 0; i < n * n; i++) one.decode.push_back(float(random.normal() / std::sqrt(d)));
    for (size_t i = 0; i < n * n && inverse; i++)
        one.decode[i] = one.encode[i] != 0 ? 1 / one.encode[i] : 0;
    return one;
}

// The last T of S tokens, attended at once; the others were appended by 24 at a time.
// shared: bytes that a block may have; 0: what the machine has. why_plain: what the backend says of it.
// expanded: bytes of rows that are made whole at once; 0: as ever.
Floats attended(const Attended& c, DType dtype, const Variant& variant, bool exact, size_t shared = 0,
                std::string* why_plain = nullptr, size_t expanded = 0) {
    Lab lab(variant);
    lab.backend->exact = exact;
    if (shared) static_cast<CudaBackend&>(*lab.backend).shared_limit = shared;
    if (expanded) static_cast<CudaBackend&>(*lab.backend).most_expanded = expanded;
    Config config;
    config.L = 1, config.H = c.H, config.G = c.G, config.d = c.d;
    Random random(9);
    Bases bases;
    bases.ages = c.ages, bases.sinks = c.sinks, bases.recent = c.recent;
    Bases::Layer& layer = bases.layer.emplace_back();
    layer.rotated = c.rotated;
    for (int g = 0; g < c.G; g++) {
        bool mean = c.means && g % 2 == 0;
        layer.k.push_back(basis_of(c.d, c.k, random, mean && c.rotated));
        if (mean) layer.k.back().mean = normals(size_t(c.d), 11 + uint64_t(g));
        layer.v.push_back(basis_of(c.d, c.v, random));
    }
    int batch = std::max(24, c.T);
    KvCache cache(*lab.backend, config, c.S + 5, dtype, &bases, batch);
    if (why_plain) *why_plain = lab.backend->plain_attention(cache.layer[0]);
    std::vector<char> nan(cache.rows.bytes, char(0xff));  // NaN, and the largest scale
    lab.backend->upload(cache.rows.data, nan.data(), nan.size());
    size_t width = size_t(c.d), kv = size_t(c.G) * width, head = size_t(c.H) * width;
    Floats keys = normals(size_t(c.S) * kv, 1), values = normals(size_t(c.S) * kv, 2), table;
    for (int s = 0; s < c.S + 5; s++)
        for (int j = 0; j < c.d; j++) {
            double angle = 0.3 * s / (j % (c.d / 2) + 1);
            table.push_back(float(j < c.d / 2 ? std::cos(angle) : std::sin(angle)));
        }
    const float *k = lab.in(keys), *v = lab.in(values);
    Floats q = normals(size_t(c.T) * head, 3);
    const float *queries = lab.in(q), *angles = lab.in(table);
    Output out(lab, size_t(c.T) * head);
    for (int pos = 0, n; pos < c.S; pos += n) {
        n = pos < c.S - c.T ? std::min(batch, c.S - c.T - pos) : c.T;
        Step step{pos, n};
        lab.step(step);
        lab.backend->append(cache.layer[0], k + size_t(pos) * kv, v + size_t(pos) * kv, step);
        if (pos == c.S - c.T) lab.backend->attend(out.data(), queries, angles, cache.layer[0], step);
    }
    return out.values();
}

void check_attention(Attended c) {
    if (c.means && c.rotated) {  // both ways: other kernels serve keys that are less none
        Attended none = c;
        none.means = false;
        check_attention(none);
    }
    CAPTURE(std::string(c.why));
    CAPTURE(c.S);
    CAPTURE(c.T);
    CAPTURE(c.rotated);
    CAPTURE(c.means);
    for (DType dtype : {DType::F16, DType::BF16}) {
        Floats computed = attended(c, dtype, {"cpu", {"cpu", "auto"}, 1, {}}, true);
        Doubles want(computed.begin(), computed.end());
        // Queries in steps and weights in scales are rounded to the rows' type, and D where keys are
        // rebuilt, as are those; or packed rows that are made whole, keys and values: four errors that
        // know nothing of each other, each of at most one unit.
        double unit = dtype == DType::F16 ? TOL_F16 : TOL_BF16;
        for (const Variant& variant : drawn(want)) {
            CAPTURE(variant.group);
            Floats got = attended(c, dtype, variant, false);
            CHECK(nmse(got.data(), want.data(), got.size()) <= 4 * unit);
        }
    }
}

}  // namespace

TEST_SUITE_BEGIN("cache");

TEST_CASE("attention over codes on tensor cores is the CPU's, of every width alone") {
    for (bool rotated : {true, false})
        for (size_t w = 1; w < RowFormat::WIDTHS; w++) {
            RowFormat many, few;
            many.count[w] = 64, few.count[w] = 24;
            for (int T : {1, 9})
                check_attention({4, 2, 64, 41, T, rotated, {many}, {few}, {}, 0, 0, "one width"});
        }
}

TEST_CASE("attention over codes on tensor cores is the CPU's, ragged, by any heads and tails") {
    RowFormat all = counts({4, 8, 8, 8, 8, 8, 8, 8}), two = counts({0, 8, 0, 0, 16, 0, 24, 0});
    RowFormat wide = counts({0, 0, 16, 8, 32, 24, 40, 8}), thin = counts({0, 0, 0, 0, 0, 0, 0, 8});
    RowFormat mixed = counts({20, 0, 0, 0, 16, 0, 64, 0}), none = counts({});
    RowFormat whole = RowFormat::whole(64), some = RowFormat::whole(20);
    for (bool rotated : {true, false}) {
        for (int S : {1, 15, 16, 17, 63, 65, 129})  // tails of steps, tiles and shares
            for (int T : {1, S})
                check_attention({6, 2, 64, S, T, rotated, {all}, {two}, {}, 0, 0, "tails"});
        for (auto [H, G] : {std::pair{3, 3}, {8, 1}, {17, 1}, {70, 1}})
            for (int T : {1, 3})
                check_attention({H, G, 64, 37, T, rotated, {two}, {all}, {}, 0, 0, "heads"});
        for (int T : {1, 20}) {
            check_attention({4, 2, 128, 90, T, rotated, {wide}, {mixed}, {}, 0, 0, "wide"});
            check_attention({9, 1, 128, 50, T, rotated, {mixed}, {wide}, {}, 2, 5, "wide, a window"});
            check_attention({4, 2, 64, 50, T, rotated, {thin}, {thin}, {}, 0, 0, "one bit of eight"});
            check_attention({4, 2, 64, 50, T, rotated, {two}, {none}, {}, 1, 0, "no values but one"});
            check_attention({4, 2, 64, 50, T, rotated, {some}, {two}, {}, 0, 3, "elements and codes"});
            check_attention({4, 2, 64, 150, T, rotated, {all, two, thin}, {whole, two, all}, {20, 70},
                             3, 9, "ages in turn, rings that come round"});
            check_attention({4, 2, 128, 150, T, rotated, {wide, mixed}, {mixed, thin}, {33}, 0, 17,
                             "wide ages"});
            for (RowFormat between : {some, none})
                check_attention({4, 2, 64, 100, T, rotated, {two, between, two}, {all, between, all},
                                 {20, 24}, 3, 9, "codes, none, and the same codes again"});
            for (auto [sinks, recent] : {std::pair{0, 1}, {1, 0}, {1, 1}, {40, 45}})
                check_attention({4, 2, 64, 100, T, rotated, {two}, {all}, {}, sinks, recent, "windows"});
        }
    }
}

TEST_CASE("rows are made whole for several tiles of queries, and in pieces they give the same") {
    RowFormat all = counts({4, 8, 8, 8, 8, 8, 8, 8}), two = counts({0, 8, 0, 0, 16, 0, 24, 0});
    RowFormat wide = counts({0, 0, 16, 8, 32, 24, 40, 8}), mixed = counts({20, 0, 0, 0, 16, 0, 64, 0});
    RowFormat whole = RowFormat::whole(64), some = RowFormat::whole(20);
    for (bool rotated : {true, false}) {
        Attended ages{4, 2, 64, 150, 70, rotated, {all, two, some}, {whole, two, all}, {20, 70}, 3, 9, ""};
        Attended heads{28, 2, 128, 60, 11, rotated, {wide, mixed}, {mixed, wide}, {17}, 2, 5, "wide"};
        for (auto [c, rows] : {std::pair{ages, 800}, {heads, 200}}) {  // of one kv head, not of two
            check_attention(c);
            if (rotated) c.means = false;  // else there is no other way
            Floats want = attended(c, DType::F16, groups()[0], false);
            // A head at a time. And of none: then each tile of queries unpacks and rebuilds.
            size_t one = size_t(rows * c.d) * 2;
            CHECK(attended(c, DType::F16, groups()[0], false, 0, nullptr, one) == want);
            Floats unpacked = attended(c, DType::F16, groups()[0], false, 0, nullptr, 1);
            CHECK(unpacked != want);
            CHECK(nmse(unpacked, want) <= 4 * TOL_F16);
        }
    }
}

TEST_CASE("with less shared memory attention has fewer rows on their way, then says that it is plain") {
    RowFormat two = counts({0, 8, 0, 0, 16, 0, 24, 0}), all = counts({4, 8, 8, 8, 8, 8, 8, 8});
    Variant cpu{"cpu", {"cpu", "auto"}, 1, {}};
    for (auto [rotated, means] : {std::pair{true, true}, {true, false}, {false, true}})
        for (int T : {1, 30}) {
            CAPTURE(rotated);
            CAPTURE(means);
            CAPTURE(T);
            Attended c{4, 2, 64, 150, T, rotated, {two}, {all}, {}, 2, 9, "", means};
            Floats want = attended(c, DType::F16, cpu, true);
            bool fast = false, plain = false;
            for (size_t shared = 4 << 10; shared <= 112 << 10; shared += 9 << 10) {
                CAPTURE(shared);
                std::string why;
                Floats got = attended(c, DType::F16, groups()[0], false, shared, &why);
                CHECK(nmse(got.data(), Doubles(want.begin(), want.end()).data(), got.size()) <=
                      4 * TOL_F16);
                bool slow = why.find("KiB of shared memory do not hold the rows") < why.size();
                CHECK(slow == !why.empty());
                CHECK_FALSE((fast && slow));  // with more memory never slower
                slow ? plain = true : fast = true;
            }
            CHECK(fast);
            CHECK(plain);
        }
}

TEST_CASE("a cache that tensor cores do not take is said to be one") {
    Lab lab(groups()[0]);
    CacheLayer layer;
    layer.dtype = DType::F16, layer.d = 96, layer.H = layer.G = 1;
    CHECK(lab.backend->plain_attention(layer).find("heads of 64 and 128, not of 96") < 200);
    layer.d = 64;
    layer.dtype = DType::F32;
    CHECK(lab.backend->plain_attention(layer).find("--cache f32") < 200);
    lab.backend->exact = true;
    CHECK(lab.backend->plain_attention(layer).empty());
}

TEST_SUITE_END();
