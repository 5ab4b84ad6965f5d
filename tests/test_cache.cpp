// The low-rank cache: full rank is the plain cache, rank r is its definition, the window is exact,
// and how tokens were batched does not show.
#include <algorithm>

#include "base/linalg.h"
#include "cache/kv_cache.h"
#include "commands/ids.h"
#include "forward/transformer.h"
#include "backends.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

Matrix random_matrix(size_t n, Random& random) {
    Matrix A(n, n);
    for (double& x : A.data) x = random.normal();
    return A;
}

// E = S Q with Q orthonormal and S diagonal of condition 4; D = E⁻¹.
HeadBasis random_basis(int d, int r, Random& random, bool orthonormal) {
    size_t n = size_t(d);
    Matrix Q = qr(random_matrix(n, random)).Q, S = identity(n), S_inverse = identity(n);
    for (size_t i = 0; i < n && !orthonormal; i++) {
        S(i, i) = 0.5 + 1.5 * random.uniform();
        S_inverse(i, i) = 1 / S(i, i);
    }
    return HeadBasis::whole(r, to_floats(Q), to_floats(times(S, Q)),
                            to_floats(times(transpose(Q), S_inverse)));
}

struct Case {
    int H, G, d, sinks, recent, S;
    bool rotated;
    const char* why;
};

Bases random_bases(const Config& c, const std::vector<int>& ranks, bool rotated,
                   bool orthonormal = false) {
    Random random(3);
    Bases bases;
    size_t next = 0;
    for (int l = 0; l < c.L; l++) {
        Bases::Layer& layer = bases.layer.emplace_back();
        layer.rotated = rotated;
        for (auto* side : {&layer.k, &layer.v})
            for (int g = 0; g < c.G; g++)
                side->push_back(
                    random_basis(c.d, ranks[next++ % ranks.size()], random, orthonormal));
    }
    return bases;
}

Config config_of(const Case& c) {
    Config config;
    config.L = 1, config.H = c.H, config.G = c.G, config.d = c.d;
    config.rope_theta = 100;
    return config;
}

double rounded(double x, DType dtype) {
    if (dtype == DType::F16) return double(to_float(to_f16(float(x))));
    if (dtype == DType::BF16) return double(to_float(to_bf16(float(x))));
    return x;
}

// x[:r] of E-coordinates, stored and decoded: round(x E) J_r D, in double.
Doubles through(const float* x, const HeadBasis& basis, int r, int d, DType dtype) {
    Doubles c(size_t(d), 0.0), out(c);
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++)
            c[size_t(j)] += double(x[i]) * double(basis.encode[size_t(i * d + j)]);
    for (int i = 0; i < r; i++)
        for (int j = 0; j < d; j++)
            out[size_t(j)] +=
                rounded(c[size_t(i)], dtype) * double(basis.decode[size_t(i * d + j)]);
    return out;
}

void rotate_double(Doubles& x, const float* angle) {
    size_t half = x.size() / 2;
    for (size_t j = 0; j < half; j++) {
        double a = x[j], b = x[j + half], cos = double(angle[j]), sin = double(angle[half + j]);
        x[j] = a * cos - b * sin, x[j + half] = b * cos + a * sin;
    }
}

// Every row of one side, all d coordinates of it or truncated, as attention means it.
struct Decoded {
    std::vector<Doubles> exact, cut;                       // (S, G)
    Decoded(const Case& c, const std::vector<HeadBasis>& basis, const Floats& x, DType dtype,
            const Floats* rotation) {
        for (int row = 0; row < c.S * c.G; row++)
            for (bool whole : {true, false}) {
                const HeadBasis& head = basis[size_t(row % c.G)];
                Doubles one = through(&x[size_t(row * c.d)], head,
                                      whole ? c.d : head.format[0].kept(), c.d, dtype);
                if (rotation) rotate_double(one, &(*rotation)[size_t(row / c.G * c.d)]);
                (whole ? exact : cut).push_back(one);
            }
    }
};

// The definition: every key and value that token t sees, exact or truncated, then plain attention.
Doubles definition(const Case& c, const Bases& bases, DType dtype, const Floats& q, const Floats& k,
                   const Floats& v, const Floats& rotation) {
    Doubles out;
    const Bases::Layer& layer = bases.layer[0];
    Decoded keys_of(c, layer.k, k, dtype, c.rotated ? nullptr : &rotation);
    Decoded values_of(c, layer.v, v, dtype, nullptr);
    for (int t = 0; t < c.S; t++)
        for (int h = 0; h < c.H; h++) {
            int g = h / (c.H / c.G);
            Doubles keys, values;
            for (int s = 0; s <= t; s++) {
                bool exact = s < c.sinks || t - s < c.recent;
                size_t row = size_t(s * c.G + g);
                const Doubles& key = (exact ? keys_of.exact : keys_of.cut)[row];
                const Doubles& value = (exact ? values_of.exact : values_of.cut)[row];
                keys.insert(keys.end(), key.begin(), key.end());
                values.insert(values.end(), value.begin(), value.end());
            }
            reference::attend_head(out, &q[size_t(t * c.H + h) * size_t(c.d)], keys, values, t + 1,
                                   c.d, c.d, c.d);
        }
    return out;
}

// Appends and attends S tokens of one layer, `piece` at a time, and compares all outputs.
// What is stored is rounded once, in the definition as well; beyond that a device's matrix unit
// rounds queries, keys that it rebuilds, the basis and the weights: four relative errors of at most
// u (and an element of c may round the other way), so 4 u² for the square of their sum if they are
// independent. The CPU's takes its factors as bf16 in batches.
double tolerance(const Lab& lab, DType dtype, bool exact, int piece) {
    if (dtype == DType::F32) return 1e-10;
    if (!lab.device() && !exact && piece > 1) return TOL_FOUR_ROUNDED;
    return 4 * (dtype == DType::F16 ? TOL_F16 : TOL_BF16);
}

void check_case(const Case& c, const std::vector<int>& ranks, DType dtype, bool exact,
                std::initializer_list<int> pieces) {
    CAPTURE(std::string(c.why));
    CAPTURE(std::string(name_of(dtype)));
    CAPTURE(exact);
    Config config = config_of(c);
    Bases bases = random_bases(config, ranks, c.rotated);
    bases.sinks = c.sinks, bases.recent = c.recent;
    size_t width = size_t(c.d);
    Floats q = normals(size_t(c.S * c.H) * width, 1), k = normals(size_t(c.S * c.G) * width, 2);
    Floats v = normals(size_t(c.S * c.G) * width, 3), rotation = rotations(c.S, c.d);
    Doubles want = definition(c, bases, dtype, q, k, v, rotation);
    for (int piece : pieces) {
        CAPTURE(piece);
        auto allowed = [&](const Lab& lab) { return tolerance(lab, dtype, exact, piece); };
        check_everywhere(want, allowed, {}, [&](Lab& lab, float* out) {
            Backend& backend = *lab.backend;
            backend.exact = exact;
            KvCache cache(backend, config, c.S, dtype, &bases, piece);  // rings come round
            std::vector<char> nan(cache.rows.bytes, char(0xff));
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
        });
    }
}

std::vector<float> run(Model& model, const std::vector<Token>& ids, const Bases* bases, DType type,
                       int piece) {
    KvCache cache(*model.backend, model.config, int(ids.size()), type, bases, 64);
    Transformer transformer(model, int(ids.size()), 64);
    transformer.exact = true;
    std::vector<float> logits(ids.size() * size_t(model.config.V), NaN);
    for (size_t at = 0; at < ids.size(); at += size_t(piece)) {
        size_t n = std::min(size_t(piece), ids.size() - at);
        transformer.forward(cache, {ids.data() + at, n},
                            logits.data() + at * size_t(model.config.V), int(n));
    }
    return logits;
}

std::vector<Token> some_ids(int n) {
    Random random(8);
    std::vector<Token> ids;
    for (int i = 0; i < n; i++) ids.push_back(Token(random.below(64)));
    return ids;
}

}  // namespace

TEST_SUITE_BEGIN("cache");

// Rotated keys without a rotation come as they are stored: one head's less its turned mean, by which
// then no row is whole.
TEST_CASE("append with a rotation is rope, then append, and attention goes on from either") {
    for (bool rotated : {true, false})
        for (bool plain : {false, true})
            for (int piece : {1, 9}) {
                CAPTURE(rotated);
                CAPTURE(plain);
                CAPTURE(piece);
                bool less = rotated && !plain;
                Case c{4, 2, 64, less ? 0 : 4, less ? 0 : 8, 27, rotated, ""};
                Config config = config_of(c);
                Bases bases = random_bases(config, {64, 20, 32, 64}, rotated);
                bases.sinks = c.sinks, bases.recent = c.recent;
                Floats mean = bases.layer[0].k[1].mean = normals(size_t(c.d), 5);
                size_t kv = size_t(c.G * c.d), width = size_t(c.H * c.d), n = size_t(c.S);
                Floats q = normals(n * width, 1), k = normals(n * kv, 2), v = normals(n * kv, 3);
                Floats rotation = rotations(c.S, c.d), k_less = k;
                for (size_t i = 0; less && i < n * kv; i++)
                    if (i / mean.size() % 2) k_less[i] -= mean[i % mean.size()];
                for (const Variant& variant : groups()) {
                    CAPTURE(variant.group);
                    Lab lab(variant);
                    Backend& ops = *lab.backend;
                    const float *angles = lab.in(rotation), *values = lab.in(v);
                    // att, then q as it is left
                    auto attended = [&](bool together) {
                        KvCache cache(ops, config, c.S, DType::F16, plain ? nullptr : &bases, piece);
                        const CacheLayer& layer = cache.layer[0];
                        Output queries(lab, n * width, q), keys(lab, n * kv, together ? k : k_less);
                        Output out(lab, n * width);
                        for (int pos = 0; pos < c.S; pos += piece) {
                            Step step{pos, std::min(piece, c.S - pos)};
                            float* own = queries.data() + size_t(pos) * width;
                            float* key = keys.data() + size_t(pos) * kv;
                            const float* value = values + size_t(pos) * kv;
                            lab.step(step);
                            if (!together) ops.rope(own, angles, c.H, c.d, step);
                            if (!together && layer.rotated) ops.rope(key, angles, c.G, c.d, step);
                            if (together) ops.append(layer, own, key, value, angles, step);
                            else ops.append(layer, key, value, step);
                            ops.attend(out.data() + size_t(pos) * width, own, angles, layer, step);
                        }
                        CHECK(out.guarded());
                        CHECK(queries.guarded());
                        return std::pair(out.values(), queries.values());
                    };
                    auto [out, left] = attended(true);
                    auto [want, turned] = attended(false);
                    // A device may contract its sums in another way, and a mean is taken off in another
                    // order: a row may round to the other side.
                    CHECK(nmse(left, turned) <= TOL_F32);
                    CHECK(nmse(out, want) <= (lab.device() || less ? TOL_F16 : 0));
                }
            }
}

TEST_CASE("attention over truncated rows is its definition, whatever was appended together") {
    const Case cases[] = {
        {4, 2, 16, 0, 0, 40, true, "no window"},
        {4, 2, 16, 0, 0, 40, false, "no window, keys before rotation"},
        {4, 2, 16, 4, 7, 60, true, "a window"},
        {4, 2, 16, 4, 7, 60, false, "a window, keys before rotation"},
        {3, 1, 64, 3, 20, 150, true, "one kv head, more than a tile of keys"},
        {3, 3, 20, 2, 9, 141, false, "a width of no vector"},
        {6, 2, 8, 100, 5, 50, true, "everything is a sink"},
        {6, 2, 8, 0, 1, 50, true, "only the token itself"},
        {2, 1, 128, 4, 64, 300, true, "wide heads, one past a split"},
        {2, 1, 128, 4, 64, 300, false, "wide heads, one past a split, keys before rotation"},
    };
    for (const Case& c : cases)
        check_case(c, {8, c.d, 0, 4, c.d / 4 * 4, 4, c.d / 8 * 4}, DType::F32, true, {1, 7, 31});
}

TEST_CASE("attention over rows of 16 bits is its definition: windows, either key, any group") {
    const struct {
        Case c;
        std::vector<int> ranks;  // keys, then values of each head
        std::initializer_list<int> pieces;
    } cases[] = {
        {{4, 2, 64, 0, 0, 70, true, "no window"}, {64, 20, 36, 64}, {1, 33}},
        {{4, 2, 64, 0, 0, 70, false, "no window, before rotation"}, {28, 64, 32, 4}, {1, 33}},
        {{4, 2, 64, 4, 17, 150, true, "a window"}, {12, 0, 64, 40}, {1, 70}},
        {{4, 2, 64, 4, 17, 150, false, "a window, before rotation"}, {12, 16, 0, 40}, {1, 70}},
        {{3, 3, 64, 70, 5, 90, false, "sinks beyond a tile, every head its own"}, {16, 8}, {1, 5}},
        {{9, 1, 64, 0, 40, 60, true, "nine heads of one kv head"}, {8, 44}, {1, 13}},
        {{17, 1, 64, 3, 0, 20, false, "seventeen heads, no recent tokens"}, {20, 24}, {1, 20}},
        {{2, 1, 128, 4, 64, 200, true, "wide heads"}, {32, 60}, {1, 128}},
        {{2, 1, 128, 4, 64, 200, false, "wide heads, before rotation"}, {36, 128}, {1, 128}},
        {{2, 2, 20, 4, 9, 40, false, "a width of no tensor core"}, {8, 20, 4, 12}, {1, 7}},
    };
    for (auto& [c, ranks, pieces] : cases)
        for (auto [dtype, exact] : {std::pair{DType::F16, false}, std::pair{DType::BF16, false},
                                    std::pair{DType::F16, true}})  // exact: bf16 is loads alone
            check_case(c, ranks, dtype, exact, pieces);
}

TEST_CASE("a cache of full rank in the identity basis is the plain cache, to the last bit") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    for (const Variant& variant : groups()) {
        std::vector<Token> ids = some_ids(variant.slow ? 70 : 130);
        Model model = open_model(scratch.folder.string(), variant);
        Bases bases = Bases::identity(model.config, model.config.d);
        for (DType type : {DType::F16, DType::BF16, DType::F32})
            for (int piece : {1, 50}) {
                CAPTURE(variant.group);
                CAPTURE(piece);
                std::vector<float> plain = run(model, ids, nullptr, type, piece);
                std::vector<float> full = run(model, ids, &bases, type, piece);
                CHECK(std::memcmp(plain.data(), full.data(), plain.size() * sizeof(float)) == 0);
            }
    }
}

TEST_CASE("tables of heads are aligned in every layer, however many heads there are") {
    Config c;
    c.L = 3, c.d = 8;
    for (const Variant& variant : groups())
        for (int G : {1, 2, 3, 5}) {
            Lab lab(variant);
            c.G = G, c.H = 2 * G;
            KvCache cache(*lab.backend, c, 4, DType::F16);
            for (const CacheLayer& layer : cache.layer) {
                CHECK(uintptr_t(layer.rows) % alignof(CacheRows) == 0);
                CHECK(uintptr_t(layer.seen_rows) % alignof(Seen) == 0);
            }
        }
}

TEST_CASE("any orthonormal basis at full rank agrees with the plain cache to rounding") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {"cpu", "auto"}, 2);
    std::vector<Token> ids = some_ids(100);
    std::vector<float> plain = run(model, ids, nullptr, DType::F32, 100);
    for (bool rotated : {true, false}) {
        Bases bases = random_bases(model.config, {model.config.d}, rotated, true);
        for (int piece : {1, 33})
            CHECK(nmse(run(model, ids, &bases, DType::F32, piece), plain) <= 1e-9);
    }
}

TEST_CASE("with a window as long as the text every rank agrees with the plain cache") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {"cpu", "auto"}, 2);
    std::vector<Token> ids = some_ids(100);
    std::vector<float> plain = run(model, ids, nullptr, DType::F32, 100);
    for (bool rotated : {true, false}) {
        Bases bases = random_bases(model.config, {4, 0}, rotated, true);
        bases.sinks = 0, bases.recent = 100;
        for (int piece : {1, 33})
            CHECK(nmse(run(model, ids, &bases, DType::F32, piece), plain) <= 1e-9);
    }
}

TEST_CASE("the cache takes what it says, and rank makes it smaller") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {"cpu", "auto"}, 2);
    const Config& c = model.config;
    for (int rank : {0, 4, 8}) {
        Bases bases = Bases::identity(c, rank);
        KvCache cache(*model.backend, c, 300, DType::F16, &bases, 32);
        CHECK(cache.bytes_per_token() == size_t(c.L * c.G * 2 * rank * 2));
        CHECK(cache.bytes() == KvCache::bytes_for(c, 300, DType::F16, &bases, 32));
        size_t exact = rank == 8 ? 0 : size_t(c.L * c.G * 2) * size_t(4 + 64 + 32) * 8 * 2;
        CHECK(cache.rows.bytes >= 300 * cache.bytes_per_token() + exact);
        CHECK(cache.rows.bytes <=
              300 * cache.bytes_per_token() + exact + size_t(c.L * c.G * 4) * 64);
    }
}

TEST_SUITE_END();
