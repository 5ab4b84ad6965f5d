// Values of all heads of a layer in one basis: rows stored once a token and layer, and attention
// over them.
#include "backends.h"
#include "cache/kv_cache.h"
#include "commands/ids.h"
#include "forward/transformer.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("cache");

namespace {

constexpr int G = 2, H = 6, WIDTH = 8, JOINT = G * WIDTH, S = 70;

Config some_config(int L) {
    Config c;
    c.L = L, c.H = H, c.G = G, c.d = WIDTH, c.rope_theta = 100;
    return c;
}

// Keys whole, values by a Hadamard matrix of ±1/4: values of few bits meet it without rounding.
Bases joint_bases(const Config& c, const RowFormat& format, bool rotated, int sinks, int recent) {
    Bases bases = Bases::identity(c, c.d);
    bases.sinks = sinks, bases.recent = recent;
    Random random(7);
    for (Bases::Layer& layer : bases.layer) {
        size_t n = size_t(c.G) * size_t(c.d);
        Matrix Q = random_rotation(n, random);
        layer.rotated = rotated, layer.joint = true;
        layer.v = {{{format}, Floats(n, 1.0f), to_floats(Q), to_floats(Q), to_floats(transpose(Q))}};
    }
    return bases;
}

RowFormat codes(std::initializer_list<std::pair<size_t, int>> widths, int whole = 0) {
    RowFormat format = RowFormat::whole(whole);
    for (auto [w, n] : widths) format.count[w] = uint16_t(n);
    return format;
}

// unpack(pack(v E)) D of every token, (S, G, d)
Floats through(const Floats& v, const HeadBasis& basis, const RowFormat& format, DType dtype) {
    Floats all(v.size());
    for (size_t s = 0; s < v.size(); s += JOINT) {
        Floats c(JOINT), back(JOINT);
        for (size_t i = 0; i < JOINT; i++)
            for (size_t j = 0; j < JOINT; j++) c[j] += v[s + i] * basis.encode[i * JOINT + j];
        std::vector<unsigned char> row(format.bytes(dtype) + 1);
        pack_row(row.data(), c.data(), nullptr, format, dtype);
        unpack_row(back.data(), row.data(), format, dtype);
        for (size_t i = size_t(format.kept()); i < JOINT; i++) back[i] = 0;
        for (size_t i = 0; i < JOINT; i++)
            for (size_t j = 0; j < JOINT; j++) all[s + j] += back[i] * basis.decode[i * JOINT + j];
    }
    return all;
}

// Attention over whole keys, rotated where they lie before rotation, and these values.
Doubles definition(const Bases& bases, const Floats& q, Floats k, const Floats& exact,
                   const Floats& cut, const Floats& rotation) {
    Doubles out;
    for (size_t row = 0; row < size_t(S * G) && !bases.layer[0].rotated; row++)
        for (size_t j = 0; j < WIDTH / 2; j++) {
            float *a = &k[row * WIDTH + j], *b = a + WIDTH / 2, x = *a, y = *b;
            float cos = rotation[row / G * WIDTH + j], sin = rotation[row / G * WIDTH + WIDTH / 2 + j];
            *a = x * cos - y * sin, *b = y * cos + x * sin;
        }
    for (int t = 0; t < S; t++)
        for (int h = 0; h < H; h++) {
            size_t g = size_t(h / (H / G));
            Doubles p, acc(WIDTH, 0.0);
            double sum = 0;
            for (int s = 0; s <= t; s++) {
                double score = 0;
                for (size_t i = 0; i < WIDTH; i++)
                    score += double(q[size_t(t * H + h) * WIDTH + i]) *
                             double(k[(size_t(s) * G + g) * WIDTH + i]);
                p.push_back(std::exp(score / std::sqrt(double(WIDTH)))), sum += p.back();
            }
            for (int s = 0; s <= t; s++) {
                bool whole = s < bases.sinks || t - s < bases.recent;
                for (size_t i = 0; i < WIDTH; i++)
                    acc[i] += p[size_t(s)] / sum *
                              double((whole ? exact : cut)[(size_t(s) * G + g) * WIDTH + i]);
            }
            out.insert(out.end(), acc.begin(), acc.end());
        }
    return out;
}

Floats eighths(size_t n, uint64_t seed) {
    Random random(seed);
    Floats x;
    for (size_t i = 0; i < n; i++) x.push_back(float(int(random.below(33)) - 16) / 8);
    return x;
}

}  // namespace

TEST_CASE("attention over joint rows is attention over the values that they decode to") {
    const RowFormat formats[] = {
        RowFormat::whole(JOINT), RowFormat::whole(12), RowFormat::whole(4),
        codes({{4, 8}, {5, 8}}), codes({{6, 8}}), codes({{1, 8}}, 8), RowFormat::whole(0)};
    Floats q = eighths(S * H * WIDTH, 1), k = eighths(S * JOINT, 2), v = eighths(S * JOINT, 3);
    Floats rotation;
    for (int s = 0; s < S; s++)
        for (int i = 0; i < WIDTH; i++) {
            double angle = 0.3 * s / (i % (WIDTH / 2) + 1);
            rotation.push_back(float(i < WIDTH / 2 ? std::cos(angle) : std::sin(angle)));
        }
    Config c = some_config(1);
    for (const Variant& variant : groups()) {
        Lab lab(variant);
        if (!lab.backend->joint_values) continue;
        for (const RowFormat& format : formats)
            for (DType dtype : {DType::F16, DType::F32})
                for (bool rotated : {true, false})
                    for (bool exact : {true, false})
                        for (int batch : {1, 9, S})
                            for (auto [sinks, recent] : {std::pair{0, 0}, {2, 5}}) {
                                CAPTURE(variant.group);
                                CAPTURE(format.kept());
                                CAPTURE(format.codes());
                                CAPTURE(rotated);
                                CAPTURE(exact);
                                CAPTURE(batch);
                                CAPTURE(recent);
                                lab.backend->exact = exact;
                                Bases bases = joint_bases(c, format, rotated, sinks, recent);
                                const HeadBasis& basis = bases.layer[0].v[0];
                                KvCache cache(*lab.backend, c, S, dtype, &bases, batch);
                                Doubles want = definition(
                                    bases, q, k, through(v, basis, RowFormat::whole(JOINT), dtype),
                                    through(v, basis, format, dtype), rotation);
                                Output out(lab, want.size());
                                for (int pos = 0; pos < S; pos += batch) {
                                    Step step{pos, std::min(batch, S - pos)};
                                    size_t at = size_t(pos);
                                    lab.backend->begin_step(step);
                                    lab.backend->append(cache.layer[0], lab.in(k) + at * JOINT,
                                                        lab.in(v) + at * JOINT, step);
                                    lab.backend->attend(out.data() + at * H * WIDTH,
                                                        lab.in(q) + at * H * WIDTH,
                                                        lab.in(rotation), cache.layer[0], step);
                                    lab.backend->end_step();
                                }
                                // bf16 products of many tokens round each factor by 2⁻⁹; over
                                // codes the weights are integers.
                                bool rounds = !exact && (dtype == DType::F16 || format.codes());
                                CHECK(nmse(out.values(), want) <= (rounds ? 5e-5 : 1e-9));
                                CHECK(out.guarded());
                            }
    }
}

TEST_CASE("joint rows are counted, allocated and saved once for a layer") {
    Scratch scratch;
    write_tiny_model({.why = "joint", .H = 6, .G = 2, .d = 8}, scratch.path("."));
    Model model = Model::open(scratch.path("."), {.name = "cpu"}, 2);
    const Config& c = model.config;
    RowFormat format = codes({{4, 8}, {5, 8}});
    Bases joint = joint_bases(c, format, false, 2, 5), head = Bases::identity(c, c.d);
    for (Bases::Layer& layer : head.layer) layer.v = {layer.v[0], layer.v[0]};
    size_t row = 2 * size_t(c.d) * 2 + format.bytes(DType::F16);  // keys of both heads, values
    CHECK(joint.bytes_per_token(DType::F16) == size_t(c.L) * row);
    KvCache cache(*model.backend, c, 40, DType::F16, &joint, 40);
    CHECK(cache.bytes_per_token() == size_t(c.L) * row);
    CHECK(cache.bytes() == KvCache::bytes_for(c, 40, DType::F16, &joint, 40));
    // In a ring as many whole rows of values; keys are whole anyway.
    size_t whole = 2 * size_t(c.d) * 2;
    CHECK(cache.snapshot_bytes(40) == size_t(c.L) * 40 * (row + whole));

    Transformer transformer(model, 40, 40);
    std::vector<Token> ids = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
    transformer.forward(cache, ids, nullptr, 0);
    std::vector<char> saved(cache.snapshot_bytes(12));
    cache.save(saved.data());
    KvCache again(*model.backend, c, 40, DType::F16, &joint, 40);
    again.load(saved.data(), 12);
    Floats a(size_t(c.V), NaN), b = a;
    std::vector<Token> next = {7, 9};
    transformer.forward(cache, next, a.data(), 1);
    transformer.forward(again, next, b.data(), 1);
    CHECK(same_bits(a, b));
}

TEST_CASE("a joint basis of whole rows is the plain cache") {
    Scratch scratch;
    write_tiny_model({.why = "joint", .H = 6, .G = 2, .d = 8}, scratch.path("."));
    Model model = Model::open(scratch.path("."), {.name = "cpu"}, 2);
    model.backend->exact = true;
    const Config& c = model.config;
    Bases joint = joint_bases(c, RowFormat::whole(JOINT), true, 0, 0);
    KvCache with(*model.backend, c, 40, DType::F32, &joint), plain(*model.backend, c, 40, DType::F32);
    Transformer transformer(model, 40);
    std::vector<Token> ids = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
    Floats a(12 * size_t(c.V), NaN), b = a;
    transformer.forward(with, ids, a.data(), 12);
    transformer.forward(plain, ids, b.data(), 12);
    CHECK(nmse(a, Doubles(b.begin(), b.end())) <= 1e-10);
}

TEST_CASE("a backend that knows no joint values says so when the cache is made") {
    Scratch scratch;
    write_tiny_model({.why = "joint", .H = 6, .G = 2, .d = 8}, scratch.path("."));
    Model model = Model::open(scratch.path("."), {.name = "cpu"}, 1);
    model.backend->joint_values = false;
    Bases joint = joint_bases(model.config, RowFormat::whole(8), true, 0, 0);
    CHECK_THROWS_WITH_AS(KvCache(*model.backend, model.config, 40, DType::F16, &joint),
                         doctest::Contains("joint values"), Error);
}

TEST_SUITE_END();
