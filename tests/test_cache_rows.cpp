// Rows of codes and of several ages: append and attention are pack_row and unpack_row of every row
// in the format that each token's distance says, and plain attention over what comes out.
#include <algorithm>
#include <climits>

#include "backend/cpu/kernels.h"
#include "backends.h"
#include "cache/kv_cache.h"

using namespace stief;
using namespace stief::testing;

namespace {

using Formats = std::vector<RowFormat>;

struct Case {
    int H, G, d, sinks, recent, S;
    bool rotated;
    std::vector<int> ages;
    std::vector<Formats> formats;  // by age, of all heads' keys, then of their values, again and again
    const char* why;
    bool means = true;
};

// Coordinates at 16, 8, 6, 5, 4, 3, 2 and 1 bits.
RowFormat counts(std::array<uint16_t, RowFormat::WIDTHS> count) {
    return {count};
}

// c = k E permutes, turns signs and scales by powers of two: exact in any arithmetic, so that no
// coordinate can fall into another cell. D is what it likes: nothing here asks for E D = I, but for keys
// that are less a turned mean.
HeadBasis exact_basis(int d, const Formats& formats, Random& random) {
    size_t n = size_t(d);
    HeadBasis one{formats, {}, {}, std::vector<float>(n * n), {}};
    std::vector<size_t> to(n);
    for (size_t i = 0; i < n; i++) to[i] = i;
    for (size_t i = n; i > 1; i--) std::swap(to[i - 1], to[random.below(i)]);
    for (size_t i = 0; i < n; i++) {
        float size = std::ldexp(1.0f, int(random.below(3)) - 1);
        one.encode[i * n + to[i]] = random.below(2) ? size : -size;
        one.weight.push_back(float(0.25 + random.uniform()));
    }
    for (size_t i = 0; i < n * n; i++) one.decode.push_back(float(random.normal() / std::sqrt(d)));
    return one;
}

// Of a matrix with one power of two in each row and column.
Floats inverse_of(const Floats& M, size_t n) {
    Floats inverse(n * n, 0.0f);
    for (size_t i = 0; i < n * n; i++)
        if (M[i] != 0) inverse[i % n * n + i / n] = 1 / M[i];
    return inverse;
}

Bases bases_of(const Case& c) {
    Random random(5);
    Bases bases;
    bases.ages = c.ages, bases.sinks = c.sinks, bases.recent = c.recent;
    Bases::Layer& layer = bases.layer.emplace_back();
    layer.rotated = c.rotated;
    size_t next = 0;
    for (auto* side : {&layer.k, &layer.v})
        for (int g = 0; g < c.G; g++)
            side->push_back(exact_basis(c.d, c.formats[next++ % c.formats.size()], random));
    // Keys of the first head, and of every other one, have a mean: of the size of a key.
    for (size_t g = 0; c.means && g < layer.k.size(); g += 2) {
        layer.k[g].mean = normals(size_t(c.d), 7 + g);
        if (c.rotated) layer.k[g].decode = inverse_of(layer.k[g].encode, size_t(c.d));
    }
    return bases;
}

// x_j, x_{j+d/2} turned by a position's angles
Doubles turned(const Doubles& x, const float* angle) {
    size_t half = x.size() / 2;
    Doubles out(x.size());
    for (size_t j = 0; j < half; j++) {
        double cos = double(angle[j]), sin = double(angle[half + j]);
        out[j] = x[j] * cos - x[j + half] * sin, out[j + half] = x[j + half] * cos + x[j] * sin;
    }
    return out;
}

// x as a token reads it that sees its row in this format. Keys before rotation: μ + unpack(pack((x − μ) E))
// D, rotated to `angle`. After it, where x comes without the mean that codes lose: R μ + unpack(pack(x
// E)) D, and whole rows as they came. Not packed: as if its codes lost nothing.
Doubles through(const float* x, const HeadBasis& head, const RowFormat& format, int d, DType dtype,
                const float* angle, bool before, bool packed) {
    size_t n = size_t(d);
    Doubles mean(head.mean.begin(), head.mean.end());
    mean.resize(n, 0.0);
    Floats c(n, 0.0f);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            c[j] += (x[i] - (before ? float(mean[i]) : 0)) * head.encode[i * n + j];
    std::vector<char> row(format.bytes(dtype) + 1);
    pack_row(row.data(), c.data(), head.weight.data(), format, dtype);
    if (packed) unpack_row(c.data(), row.data(), format, dtype);
    Doubles out(n, 0.0);
    for (size_t i = 0; i < size_t(format.kept()); i++)
        for (size_t j = 0; j < n; j++) out[j] += double(c[i]) * double(head.decode[i * n + j]);
    if (!before) mean = turned(mean, angle);
    for (size_t j = 0; j < n && (before || !format.keeps_all(d)); j++) out[j] += mean[j];
    return before ? turned(out, angle) : out;
}

// The format in which a token at p sees the row of s: 0 whole, i + 1 the bases' i-th.
size_t seen_in(const Case& c, int p, int s) {
    if (s < c.sinks || p - s < c.recent) return 0;
    size_t i = 0;
    while (i < c.ages.size() && p - s >= c.ages[i]) i++;
    return i + 1;
}

// (format, S, G) rows of one side; angles by position, all 0 of values
std::vector<std::vector<Doubles>> all_rows(const Case& c, const std::vector<HeadBasis>& heads,
                                           const Floats& x, DType dtype, const Floats& rotation,
                                           bool before, bool packed) {
    std::vector<std::vector<Doubles>> rows(c.ages.size() + 2);
    for (size_t f = 0; f < rows.size(); f++)
        for (int i = 0; i < c.S * c.G; i++) {
            const HeadBasis& head = heads[size_t(i % c.G)];
            RowFormat format = f ? head.format[f - 1] : RowFormat::whole(c.d);
            const float* angle = &rotation[size_t(i / c.G * c.d)];
            rows[f].push_back(
                through(&x[size_t(i * c.d)], head, format, c.d, dtype, angle, before, packed));
        }
    return rows;
}

Doubles definition(const Case& c, const Bases& bases, DType dtype, const Floats& q, const Floats& k,
                   const Floats& v, const Floats& rotation, bool packed_keys = true) {
    const Bases::Layer& layer = bases.layer[0];
    auto key_rows = all_rows(c, layer.k, k, dtype, rotation, !c.rotated, packed_keys);
    auto value_rows = all_rows(c, layer.v, v, dtype, rotation, false, true);
    Doubles out;
    for (int t = 0; t < c.S; t++)
        for (int h = 0; h < c.H; h++) {
            Doubles keys, values;
            for (int s = 0; s <= t; s++) {
                size_t f = seen_in(c, t, s), row = size_t(s * c.G + h / (c.H / c.G));
                keys.insert(keys.end(), key_rows[f][row].begin(), key_rows[f][row].end());
                values.insert(values.end(), value_rows[f][row].begin(), value_rows[f][row].end());
            }
            reference::attend_head(out, &q[size_t(t * c.H + h) * size_t(c.d)], keys, values, t + 1,
                                   c.d, c.d, c.d);
        }
    return out;
}

// exact: rows are unpacked to f32 and multiplied in f32. Otherwise fixed point of 16 bits or bf16
// pairs for one token, bf16 for several, and tensor cores on a device; and with VBMI keys that are
// rebuilt may be off by PRODUCT_LOSS of what their codes have lost, which moves an output as much.
double tolerance(const Lab& lab, DType dtype, bool exact, int piece, double lost) {
    if (exact) return 1e-10;
    if (!lab.device() && piece > 1 && dtype != DType::F32) return TOL_FOUR_ROUNDED;
    return 4 * (dtype == DType::BF16 ? TOL_BF16 : TOL_F16) +
           (lab.group == "vbmi" || lab.group == "amx" ? double(PRODUCT_LOSS) * lost : 0);
}

// Kernels that are played by the host take long: the small cases, codes also in f32 and in bf16.
bool small_enough(const Case& c, DType dtype, bool exact, int piece) {
    bool codes = false;
    for (const Formats& formats : c.formats)
        for (const RowFormat& one : formats) codes |= !one.is_whole();
    return c.S <= 100 && piece < c.S && (dtype == DType::F16 ? !exact || codes : !exact && codes);
}

void check_case(const Case& c, DType dtype, bool exact, std::initializer_list<int> pieces) {
    CAPTURE(std::string(c.why));
    CAPTURE(std::string(name_of(dtype)));
    CAPTURE(exact);
    Config config;
    config.L = 1, config.H = c.H, config.G = c.G, config.d = c.d;
    Bases bases = bases_of(c);
    size_t width = size_t(c.d);
    Floats q = normals(size_t(c.S * c.H) * width, 1), k = normals(size_t(c.S * c.G) * width, 2);
    Floats v = normals(size_t(c.S * c.G) * width, 3), rotation = rotations(c.S, c.d);
    Doubles want = definition(c, bases, dtype, q, k, v, rotation);
    double lost = 0;
    if (!exact && !c.rotated)
        lost = nmse(want, definition(c, bases, dtype, q, k, v, rotation, false));
    for (int piece : pieces) {
        CAPTURE(piece);
        auto allowed = [&](const Lab& lab) { return tolerance(lab, dtype, exact, piece, lost); };
        check_everywhere(
            want, allowed, {},
            [&](Lab& lab, float* out) {
                Backend& backend = *lab.backend;
                backend.exact = exact;
                KvCache cache(backend, config, c.S + 9, dtype, &bases, piece);  // rings come round
                std::vector<char> nan(cache.rows.bytes, char(0xff));  // NaN, and the largest scale
                backend.upload(cache.rows.data, nan.data(), nan.size());
                const float *keys = lab.in(k), *values = lab.in(v), *queries = lab.in(q);
                const float* angles = lab.in(rotation);
                for (int pos = 0; pos < c.S; pos += piece) {
                    Step step{pos, std::min(piece, c.S - pos)};
                    size_t kv = size_t(pos * c.G) * width, head = size_t(pos * c.H) * width;
                    lab.step(step);
                    backend.append(cache.layer[0], keys + kv, values + kv, step);
                    backend.attend(out + head, queries + head, angles, cache.layer[0], step);
                }
            },
            small_enough(c, dtype, exact, piece));
    }
}

const RowFormat ALL = counts({4, 8, 8, 8, 8, 8, 8, 8}), FOUR = counts({0, 0, 0, 0, 64, 0, 0, 0});
const RowFormat TWO = counts({0, 8, 0, 0, 16, 0, 24, 0}), NONE = counts({});
const RowFormat WHOLE = RowFormat::whole(64), SOME = RowFormat::whole(20);
const RowFormat WIDE = counts({0, 0, 0, 8, 24, 24, 24, 24});  // of 128

const Case cases[] = {
    {4, 2, 64, 0, 0, 70, true, {}, {{ALL}, {FOUR}, {TWO}, {SOME}}, "every width, no window"},
    {4, 2, 64, 0, 0, 70, false, {}, {{ALL}, {TWO}, {FOUR}}, "the same, keys before rotation"},
    {4, 2, 64, 3, 9, 90, true, {30}, {{FOUR, TWO}, {WHOLE, SOME}, {ALL, NONE}}, "a window, an age"},
    {4, 2, 64, 3, 9, 90, false,
     {30}, {{FOUR, TWO}, {WHOLE, SOME}, {SOME, ALL}, {TWO, TWO}},
     "a window, an age, keys before rotation"},
    {3, 3, 64, 4, 0, 60, true,
     {5, 11, 40}, {{WHOLE, FOUR, FOUR, TWO}, {FOUR, FOUR, FOUR, FOUR}, {ALL, TWO, SOME, NONE}},
     "three ages, sinks, every head its own, some ages alike"},
    {4, 2, 64, 3, 9, 90, true,
     {30}, {{WHOLE, SOME}, {SOME, RowFormat::whole(12)}, {SOME, NONE}}, "whole rows of several ages"},
    {4, 2, 64, 0, 9, 90, false,
     {30}, {{WHOLE, SOME}, {SOME, RowFormat::whole(12)}, {SOME, SOME}},
     "whole rows of several ages, keys before rotation"},
    {4, 2, 64, 3, 5, 100, true, {8, 20},
     {{WHOLE, FOUR, TWO}, {TWO, WHOLE, SOME}, {WHOLE, WHOLE, FOUR}, {FOUR, TWO, WHOLE}},
     "first tokens among the whole rows of a young age"},
    {4, 2, 64, 3, 0, 100, false, {20},
     {{WHOLE, FOUR}, {WHOLE, TWO}, {WHOLE, WHOLE}, {FOUR, WHOLE}},
     "first tokens among the whole rows of a young age, keys before rotation"},
    {4, 2, 64, 3, INT_MAX, 60, true, {}, {{FOUR}, {TWO}}, "all tokens are recent"},
    {4, 2, 64, INT_MAX, INT_MAX, 60, false, {}, {{FOUR}, {TWO}}, "all tokens are first and recent"},
    {4, 2, 64, INT_MAX, 0, 60, true, {}, {{FOUR}, {TWO}}, "all tokens are first ones"},
    {4, 2, 64, 3, 9, 60, true, {20, INT_MAX}, {{FOUR, TWO, ALL}, {ALL, FOUR, SOME}},
     "an age without end"},
    {4, 2, 64, 3, 50, 70, false, {INT_MAX - 1}, {{FOUR, TWO}, {WHOLE, SOME}},
     "an age beyond the cache, keys before rotation"},
    {2, 1, 128, 2, 5, 45, true,
     {20}, {{counts({4, 0, 32, 0, 88}), counts({0, 0, 0, 0, 16, 16, 40, 56})}}, "wide heads"},
    {9, 1, 64, 0, 1, 50, false, {7}, {{FOUR, TWO}}, "nine heads of one, only the token itself"},
    {2, 1, 24, 2, 5, 60, true,
     {20}, {{counts({4, 8, 0, 0, 8, 0, 0, 0}), counts({0, 0, 0, 0, 0, 0, 16, 0})}},
     "a width of no vector"},
    {2, 1, 26, 2, 5, 60, true, {20},
     {{counts({4, 8, 0, 0, 8, 0, 0, 0}), counts({0, 0, 0, 0, 0, 0, 16, 8})}}, "a width of no four"},
    {2, 1, 160, 2, 5, 45, true, {20},
     {{counts({4, 0, 32, 0, 96}), counts({0, 0, 0, 0, 16, 16, 40, 56})}}, "the widest tiles"},
    {2, 1, 128, 4, 33, 300, true,
     {100}, {{counts({0, 0, 32, 0, 96, 0, 0, 0}), counts({0, 0, 0, 0, 16, 16, 40, 56})}},
     "wide heads, more than a split"},
    {2, 1, 128, 4, 33, 300, false,
     {100}, {{counts({0, 0, 32, 0, 96, 0, 0, 0}), counts({0, 0, 0, 0, 16, 16, 40, 56})}},
     "wide heads, more than a split, keys before rotation"},
    {2, 2, 128, 0, 0, 90, true, {12, 40},
     {{RowFormat::whole(128), WIDE, WIDE},
      {WIDE, counts({0, 0, 0, 8, 24, 32, 24, 24}), counts({0, 0, 0, 8, 24, 24, 24, 16})}},
     "a young age of whole rows beside a head of three formats of codes", false},
    {4, 2, 64, 0, 0, 90, false, {12, 40}, {{FOUR, SOME, TWO}, {TWO, SOME, FOUR}},
     "elements between two ages of codes, keys before rotation"},
};

}  // namespace

TEST_SUITE_BEGIN("cache");

TEST_CASE(
    "attention over codes and ages is its definition in f32, whatever was appended together") {
    for (const Case& c : cases)
        for (DType dtype : {DType::F16, DType::F32}) check_case(c, dtype, true, {1, 7, c.S});
}

TEST_CASE(
    "attention over codes and ages is its definition to 16 bits, whatever was appended together") {
    for (const Case& c : cases)
        for (DType dtype : {DType::F16, DType::BF16}) check_case(c, dtype, false, {1, 37, c.S});
}

TEST_CASE("a packed cache takes what its formats say, every age counted") {
    const Case& c = cases[4];  // three ages, sinks
    Config config;
    config.L = 1, config.H = c.H, config.G = c.G, config.d = c.d;
    Bases bases = bases_of(c);
    Lab lab({"cpu", {"cpu", "auto"}, 1, {}});
    KvCache cache(*lab.backend, config, 200, DType::F16, &bases, 16);
    CHECK(cache.bytes() == KvCache::bytes_for(config, 200, DType::F16, &bases, 16));
    CHECK(cache.bytes_per_token() == bases.bytes_per_token(DType::F16));
    size_t rows = 0, blocks = 0;
    for (const std::vector<HeadBasis>* side : {&bases.layer[0].k, &bases.layer[0].v})
        for (const HeadBasis& head : *side) {
            std::vector<std::pair<RowFormat, int>> stores = {{RowFormat::whole(64), 4 + 0 + 16}};
            for (size_t i = 0; i < 4; i++)
                stores.push_back({head.format[i], i < 3 ? 4 + c.ages[i] + 16 : 200});
            for (size_t i = 0; i < stores.size(); i++) {
                bool again = false;  // in an older store, where those rows lie as well
                for (size_t j = i + 1; j < stores.size(); j++)
                    again |= stores[j].first == stores[i].first;
                if (!again) rows += stores[i].first.bytes(DType::F16) * size_t(stores[i].second);
                blocks += !again;
            }
        }
    CHECK(cache.rows.bytes >= rows + 64);
    CHECK(cache.rows.bytes < rows + 64 + 64 * blocks);
}

TEST_CASE("a packed cache that was saved goes on with the same bits, and at another context") {
    const Case& c = cases[2];  // a window, an age
    Config config;
    config.L = 1, config.H = c.H, config.G = c.G, config.d = c.d;
    Bases bases = bases_of(c);
    size_t width = size_t(c.d), G = size_t(c.G), H = size_t(c.H);
    Floats q = normals(size_t(c.S) * H * width, 1), k = normals(size_t(c.S) * G * width, 2);
    Floats v = normals(size_t(c.S) * G * width, 3), rotation = rotations(c.S, c.d);
    Lab lab({"cpu", {"cpu", "auto"}, 2, {}});
    for (int stop : {5, 70}) {  // before any ring is full, and after all are
        auto attend = [&](KvCache& cache, int pos, int end) {
            Floats out(size_t(end - pos) * H * width, NaN);
            Step step{pos, end - pos};
            lab.backend->append(cache.layer[0], k.data() + size_t(pos) * G * width,
                                v.data() + size_t(pos) * G * width, step);
            lab.backend->attend(out.data(), q.data() + size_t(pos) * H * width, rotation.data(),
                                cache.layer[0], step);
            return out;
        };
        KvCache one(*lab.backend, config, c.S, DType::F16, &bases, 20);
        for (int pos = 0; pos < stop; pos += 5) attend(one, pos, pos + 5);
        one.used = stop;
        std::vector<char> saved(one.snapshot_bytes(stop));
        one.save(saved.data());
        Floats want = attend(one, stop, stop + 20);
        for (int context : {c.S + 100, stop + 20}) {  // the latter: where 5 are there, without rings
            KvCache other(*lab.backend, config, context, DType::F16, &bases, 20);
            REQUIRE(other.snapshot_bytes(stop) == saved.size());
            other.load(saved.data(), stop);
            CHECK(same_bits(want, attend(other, stop, stop + 20)));
        }
    }
}

TEST_SUITE_END();
