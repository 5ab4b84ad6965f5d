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

struct Heads {
    int H, G, d, S;
    int joint() const { return G * d; }
    Config config() const {
        Config c;
        c.L = 1, c.H = H, c.G = G, c.d = d, c.rope_theta = 100;
        return c;
    }
};

// Keys whole, values by a Hadamard matrix of powers of two: values of few bits meet it without rounding.
Bases joint_bases(const Config& c, const RowFormat& format, bool rotated, int sinks, int recent) {
    Bases bases = Bases::identity(c, c.d);
    bases.sinks = sinks, bases.recent = recent;
    Random random(7);
    for (Bases::Layer& layer : bases.layer) {
        size_t n = size_t(c.G) * size_t(c.d);
        // ± powers of two, n of them: a power of two, too.
        Matrix encode = random_rotation(n, random), decode = transpose(encode);
        double entry = std::exp2(-std::floor(std::log2(double(n)) / 2));
        for (double& x : encode.data) x = std::copysign(entry, x);
        for (double& x : decode.data) x = std::copysign(1 / entry / double(n), x);
        layer.rotated = rotated, layer.joint = true;
        layer.v = {{{format}, Floats(n, 1.0f), to_floats(encode), to_floats(encode), to_floats(decode)}};
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
    size_t n = basis.width();
    Floats all(v.size());
    for (size_t s = 0; s < v.size(); s += n) {
        Floats c(n), back(n);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) c[j] += v[s + i] * basis.encode[i * n + j];
        std::vector<unsigned char> row(format.bytes(dtype) + 1);
        pack_row(row.data(), c.data(), nullptr, format, dtype);
        unpack_row(back.data(), row.data(), format, dtype);
        for (size_t i = size_t(format.kept()); i < n; i++) back[i] = 0;
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) all[s + j] += back[i] * basis.decode[i * n + j];
    }
    return all;
}

// Attention over whole keys, rotated where they lie before rotation, and these values.
Doubles definition(const Heads& of, const Bases& bases, const Floats& q, Floats k, const Floats& exact,
                   const Floats& cut, const Floats& rotation) {
    Doubles out;
    size_t d = size_t(of.d), G = size_t(of.G), m = size_t(of.H / of.G);
    for (size_t row = 0; row < size_t(of.S) * G && !bases.layer[0].rotated; row++)
        for (size_t j = 0; j < d / 2; j++) {
            float *a = &k[row * d + j], *b = a + d / 2, x = *a, y = *b;
            float cos = rotation[row / G * d + j], sin = rotation[row / G * d + d / 2 + j];
            *a = x * cos - y * sin, *b = y * cos + x * sin;
        }
    for (int t = 0; t < of.S; t++)
        for (size_t h = 0; h < size_t(of.H); h++) {
            Doubles p, acc(d, 0.0);
            double sum = 0;
            for (int s = 0; s <= t; s++) {
                double score = 0;
                for (size_t i = 0; i < d; i++)
                    score += double(q[(size_t(t) * size_t(of.H) + h) * d + i]) *
                             double(k[(size_t(s) * G + h / m) * d + i]);
                p.push_back(std::exp(score / std::sqrt(double(of.d)))), sum += p.back();
            }
            for (int s = 0; s <= t; s++) {
                bool whole = s < bases.sinks || t - s < bases.recent;
                for (size_t i = 0; i < d; i++)
                    acc[i] += p[size_t(s)] / sum *
                              double((whole ? exact : cut)[(size_t(s) * G + h / m) * d + i]);
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

// What one way through the test differs in.
struct Way {
    RowFormat format;
    DType dtype;
    bool rotated, exact;
    int batch, sinks, recent;
    int first = 0;  // tokens of the first step; 0: batch
};

struct Trial {
    Heads shape;
    Floats q, k, v, rotation;

    // loud: how much wider scores are than those of heads of 8 with such numbers
    explicit Trial(const Heads& of, float loud)
        : shape(of),
          q(eighths(size_t(of.S * of.H * of.d), 1)),
          k(eighths(size_t(of.S * of.joint()), 2)),
          v(eighths(size_t(of.S * of.joint()), 3)) {
        for (float& one : q) one *= loud * std::sqrt(8 / float(of.d));
        for (int s = 0; s < of.S; s++)
            for (int i = 0; i < of.d; i++) {
                double angle = 0.3 * s / (i % (of.d / 2) + 1);
                rotation.push_back(float(i < of.d / 2 ? std::cos(angle) : std::sin(angle)));
            }
    }
    void check(Lab& lab, const Way& way) const {
        CAPTURE(lab.group);
        CAPTURE(way.format.kept());
        CAPTURE(way.format.codes());
        CAPTURE(std::string(name_of(way.dtype)));
        CAPTURE(way.rotated);
        CAPTURE(way.exact);
        CAPTURE(way.batch);
        CAPTURE(way.recent);
        Config c = shape.config();
        lab.backend->exact = way.exact;
        Bases bases = joint_bases(c, way.format, way.rotated, way.sinks, way.recent);
        const HeadBasis& basis = bases.layer[0].v[0];
        int first = way.first ? way.first : way.batch;
        KvCache cache(*lab.backend, c, shape.S, way.dtype, &bases, std::max(first, way.batch));
        Doubles want = definition(shape, bases, q, k,
                                  through(v, basis, RowFormat::whole(shape.joint()), way.dtype),
                                  through(v, basis, way.format, way.dtype), rotation);
        Output out(lab, want.size());
        for (int pos = 0, T; pos < shape.S; pos += T) {
            T = std::min(pos ? way.batch : first, shape.S - pos);
            Step step{pos, T};
            size_t at = size_t(pos), row = size_t(shape.joint()), queries = size_t(shape.H * shape.d);
            lab.backend->begin_step(step);
            lab.backend->append(cache.layer[0], lab.in(k) + at * row, lab.in(v) + at * row, step);
            lab.backend->attend(out.data() + at * queries, lab.in(q) + at * queries, lab.in(rotation),
                                cache.layer[0], step);
            lab.backend->end_step();
        }
        // bf16 products of many tokens round each factor by 2⁻⁹, as bf16 rows do; over codes the weights
        // are integers.
        bool rounds = !way.exact && (way.dtype != DType::F32 || way.format.codes());
        CHECK(nmse(out.values(), want) <= (rounds ? 5e-5 : 1e-9));
        CHECK(out.guarded());
        // Who meets such rows slowly says why.
        bool eights = way.format.codes() == 0 || way.format.count[0] % ROW_GROUP == 0;
        if (lab.device() && !way.exact && way.dtype != DType::F32 && shape.d >= 64)
            CHECK(lab.backend->plain_attention(cache.layer[0]).empty() == eights);
    }
};

}  // namespace

TEST_CASE("attention over joint rows is attention over the values that they decode to") {
    Trial trial({.H = 6, .G = 2, .d = 8, .S = 70}, 1);
    int joint = trial.shape.joint();
    const RowFormat formats[] = {
        RowFormat::whole(joint), RowFormat::whole(12), RowFormat::whole(4),
        codes({{4, 8}, {5, 8}}), codes({{6, 8}}), codes({{1, 8}}, 8), RowFormat::whole(0)};
    for (const Variant& variant : groups()) {
        Lab lab(variant);
        int number = 0;
        for (const RowFormat& format : formats)
            for (DType dtype : {DType::F16, DType::F32})
                for (bool rotated : {true, false})
                    for (bool exact : {true, false})
                        for (int batch : {1, 9, trial.shape.S})
                            for (auto [sinks, recent] : {std::pair{0, 0}, {2, 5}})
                                if (!variant.slow || number++ % 11 == 0)
                                    trial.check(lab, {format, dtype, rotated, exact, batch, sinks, recent});
    }
}

// Heads of 64 and 128, as tensor cores take them.
TEST_CASE("the same of heads as models have them, in rows of every width") {
    const Heads shapes[] = {{.H = 6, .G = 2, .d = 64, .S = 70}, {.H = 2, .G = 2, .d = 128, .S = 40},
                            {.H = 36, .G = 4, .d = 64, .S = 35}};
    for (const Variant& variant : groups()) {
        Lab lab(variant);
        for (const Heads& shape : shapes) {
            Trial trial(shape, 6);  // so that later scores are far above earlier ones, too
            const RowFormat formats[] = {codes({{1, 8}, {2, 16}, {3, 24}, {4, 24}, {5, 16}, {6, 24}, {7, 8}}),
                                         codes({{4, 40}, {6, 48}}, 16), codes({{3, 16}, {7, 72}}, 5),
                                         RowFormat::whole(shape.joint()), RowFormat::whole(shape.d + 13)};
            int number = 0;
            for (const RowFormat& format : formats)
                for (DType dtype : {DType::F16, DType::BF16})
                    for (bool rotated : {true, false})
                        for (int batch : {1, 9, shape.S})
                            for (auto [sinks, recent] : {std::pair{0, 0}, {2, 5}})
                                if (number++ % (!variant.slow ? 2 : batch == 1 ? 5 : 17) == 0)
                                    trial.check(lab, {format, dtype, rotated, false, batch, sinks, recent,
                                                      variant.slow ? shape.S - 4 : 0});
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
    Bases joint = joint_bases(c, RowFormat::whole(16), true, 0, 0);
    KvCache with(*model.backend, c, 40, DType::F32, &joint), plain(*model.backend, c, 40, DType::F32);
    Transformer transformer(model, 40);
    std::vector<Token> ids = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
    Floats a(12 * size_t(c.V), NaN), b = a;
    transformer.forward(with, ids, a.data(), 12);
    transformer.forward(plain, ids, b.data(), 12);
    CHECK(nmse(a, Doubles(b.begin(), b.end())) <= 1e-10);
}

TEST_SUITE_END();
