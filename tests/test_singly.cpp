// Several tokens in one step that come out as each alone would: what verifying a draft rests on.
#include "backends.h"
#include "cache/kv_cache.h"
#include "forward/transformer.h"
#include "forward/watch.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

std::vector<Token> random_ids(int n, int V, uint64_t seed) {
    Random random(seed);
    std::vector<Token> ids;
    for (int i = 0; i < n; i++) ids.push_back(Token(random.below(uint64_t(V))));
    return ids;
}

// Logits (n, V) after `first` tokens of ids were read as a prompt: the others in steps of `each`.
Floats logits_after(Transformer& transformer, KvCache& cache, const std::vector<Token>& ids,
                    int first, int each) {
    size_t V = size_t(transformer.model.config.V), n = ids.size();
    std::span<const Token> all = ids;
    Floats logits((n - size_t(first)) * V, NaN);
    cache.used = 0;
    transformer.forward(cache, all.first(size_t(first)), nullptr, 0);
    Singly singly(transformer, each > 1);
    for (size_t at = size_t(first); at < n; at += size_t(each)) {
        int T = int(std::min(size_t(each), n - at));
        transformer.forward(cache, all.subspan(at, size_t(T)),
                            logits.data() + (at - size_t(first)) * V, T);
    }
    return logits;
}

std::vector<char> rows_of(const KvCache& cache) {
    std::vector<char> rows(cache.snapshot_bytes(cache.used));
    cache.save(rows.data());
    return rows;
}

}  // namespace

TEST_SUITE_BEGIN("forward");

TEST_CASE("products that go singly are those of one token, to the last bit") {
    // why: of a device, whose warps have a slice of the columns each
    const struct { int T, N, K; const char* why; } cases[] = {
        {2, 9, 40, "part of a slice"},
        {9, 150, 1100, "several slices, one token past what a lane holds, a tail of columns"},
        {9, 5, 4100, "two chunks of a lane with weights of 32 bits"},
        {5, 6, 8200, "two chunks with weights of 16 bits, eight with 32"},
        {3, 4, 16400, "eight chunks"},
        {3, 7, 131, "rows that are no whole loads"},
    };
    int played = 0;    // cases so far: of slow variants each has its share
    for (const auto& c : cases)
        for (DType dtype : DTYPES)
            for (bool normed : {false, true}) {
                played++;
                CAPTURE(c.why);
                CAPTURE(std::string(name_of(dtype)));
                CAPTURE(normed);
                size_t T = size_t(c.T), N = size_t(c.N), K = size_t(c.K), M = N / 2 + 1;
                Floats x = normals(T * K, 1), before = normals(T * N, 2);
                for (float& one : x) one *= 2 / std::sqrt(float(K));
                Elements norm(normals(K, 3), dtype), w(normals(N * K, 4), dtype), u(normals(N * K, 5), dtype),
                    more(normals(M * K, 6), dtype);
                for (const Variant& variant : drawn({double(played)})) {
                    CAPTURE(variant.group);
                    Lab lab(variant);
                    Weight bound = lab.weight(w, c.N, c.K), up = lab.weight(u, c.N, c.K),
                           other = lab.weight(more, int(M), c.K), by = lab.weight(norm, c.K, 1);
                    const float* in = lab.in(x);
                    Output sum(lab, T * N, before), first(lab, T * N), second(lab, T * M), gate(lab, T * N);
                    Output scratch(lab, T * K), gate_scratch(lab, T * N);
                    auto run = [&](size_t t, int tokens) {
                        size_t at = t * N;
                        Input from(in + t * K);
                        if (normed) from = Input(in + t * K, by, 1e-2f, scratch.data() + t * K);
                        Projection two[] = {{first.data() + at, bound}, {second.data() + t * M, other}};
                        lab.backend->matmul(two, from, tokens, false);
                        lab.backend->matmul(sum.data() + at, in + t * K, bound, tokens, true);
                        lab.backend->gated(gate.data() + at, gate_scratch.data() + at, from, bound, up,
                                           tokens);
                    };
                    lab.backend->singly = true;
                    run(0, c.T);
                    Output* all[] = {&sum, &first, &second, &gate};
                    std::vector<Floats> together;
                    for (Output* one : all) {
                        CHECK(one->guarded());
                        together.push_back(one->values());
                        Floats again = one == &sum ? before : Floats(one->n, NaN);
                        lab.backend->upload(one->data(), again.data(), again.size() * sizeof(float));
                    }
                    lab.backend->singly = false;
                    for (size_t t = 0; t < T; t++) run(t, 1);
                    for (size_t i = 0; i < 4; i++) CHECK(same_bits(all[i]->values(), together[i]));
                }
            }
}

constexpr int CODES = -1, CODES_LESS_MEAN = -2, CODES_BEFORE_ROTATION = -3;

TEST_CASE("tokens that come together singly have the logits of single steps, to the last bit") {
    const struct {
        TinyModel model;
        int prompt, tokens, rank;            // 0: no bases; below: one of the CODES
        DType rows;
    } cases[] = {
        {{"f32 weights, plain cache", 2, 32, 48, 64, 4, 2, 8, DType::F32}, 5, 33, 0, DType::F16},
        {{"bf16 weights, widths of no vector", 2, 36, 52, 67, 3, 1, 12, DType::BF16}, 1, 40, 0,
         DType::F16},
        {{"f16 weights, f32 rows", 1, 64, 80, 64, 8, 2, 16, DType::F16}, 250, 20, 0, DType::F32},
        {{"across a change of split", 1, 32, 48, 64, 4, 2, 8, DType::BF16, true, false, 0.15, 8192},
         4080, 40, 0, DType::BF16},
        {{"a cache of rank 4", 2, 64, 80, 64, 8, 2, 16, DType::BF16}, 90, 37, 4, DType::F16},
        {{"heads of 64", 1, 300, 310, 64, 4, 2, 64, DType::BF16}, 250, 17, 0, DType::F16},
        {{"codes of heads of 64", 1, 64, 96, 64, 2, 1, 64, DType::BF16}, 40, 11, CODES, DType::F16},
        {{"codes of keys less a mean that turns", 1, 64, 96, 64, 2, 1, 64, DType::BF16}, 120, 40,
         CODES_LESS_MEAN, DType::F16},
        {{"codes of keys before rotation", 1, 64, 96, 64, 2, 1, 64, DType::BF16}, 120, 40,
         CODES_BEFORE_ROTATION, DType::F16},
    };
    for (const auto& c : cases) {
        Scratch folder;
        write_tiny_model(c.model, folder.folder.string());
        for (const Variant& variant : drawn({double(&c - cases)})) {
            if (variant.slow && c.prompt > 1000) continue;
            CAPTURE(std::string(c.model.why));
            CAPTURE(variant.group);
            Model model = open_model(folder.folder.string(), variant, variant.threads);
            CHECK(model.backend->most_singly == Watch::MOST + 1);    // a draft's verification
            const Config& config = model.config;
            std::vector<Token> ids = random_ids(c.prompt + c.tokens, config.V, 3);
            std::optional<Bases> bases;
            if (c.rank > 0) bases = Bases::identity(config, c.rank);
            if (c.rank < 0) bases = Bases::uniform(config, {}, {2}), bases->sinks = 1, bases->recent = 3;
            for (size_t l = 0; c.rank < CODES && l < bases->layer.size(); l++) {
                bases->layer[l].rotated = c.rank != CODES_BEFORE_ROTATION;
                for (HeadBasis& head : bases->layer[l].k) head.mean = normals(size_t(config.d), 9);
            }
            int context = c.prompt + c.tokens;
            KvCache cache(*model.backend, config, context, c.rows, bases ? &*bases : nullptr);
            Transformer transformer(model, context);
            Floats one = logits_after(transformer, cache, ids, c.prompt, 1);
            std::vector<char> rows = rows_of(cache);
            for (int each : variant.slow ? std::vector{9} : std::vector{2, 5, 8, 33}) {
                CAPTURE(each);
                CHECK(logits_after(transformer, cache, ids, c.prompt, each) == one);
                CHECK(rows_of(cache) == rows);
            }
        }
    }
}

TEST_CASE("rows that are kept cold are those of a cache beside the weights, and give the same logits") {
    for (auto [d, rows] : {std::pair{8, DType::F32}, {64, DType::F16}}) {
        CAPTURE(d);
        TinyModel tiny{"", 2, 32, 48, 64, 4, 2, d, DType::BF16};
        Scratch folder;
        write_tiny_model(tiny, folder.folder.string());
        for (const Variant& variant : groups()) {
            CAPTURE(variant.group);
            Model model = open_model(folder.folder.string(), variant);
            std::string in_memory;
            std::vector<Token> ids = random_ids(60, model.config.V, 7);
            Transformer transformer(model, 61);
            // Another capacity first: what is brought anew lies otherwise.
            for (int capacity : {50, 61}) {
                KvCache cold(*model.backend, model.config, capacity, rows, nullptr, 512, &in_memory);
                KvCache near(*model.backend, model.config, capacity, rows);
                std::vector<Floats> logits;
                for (KvCache* cache : {&cold, &near}) {
                    Floats& all = logits.emplace_back(4 * size_t(model.config.V), NaN);
                    float* to = all.data();
                    int at = 0;
                    for (auto [T, singly] : {std::pair{31, false}, {1, true}, {7, true}, {9, false}}) {
                        Singly alone(transformer, singly);
                        std::span<const Token> next(ids.data() + at, size_t(T));
                        transformer.forward(*cache, next, to, 1);
                        at += T, to += model.config.V;
                    }
                }
                CHECK(logits[0] == logits[1]);
                for (size_t l = 0; l < 2; l++)
                    for (size_t g = 0; g < 4; g++) {
                        auto head = [&](const KvCache& of) {
                            const CacheLayer& layer = of.layer[l];
                            return g < 2 ? layer.k[g].store[0] : layer.v[g - 2].store[0];
                        };
                        std::vector<char> want(size_t(head(near).bytes * near.used));
                        model.backend->download(want.data(), head(near).data, want.size());
                        // The host's memory on every backend.
                        const char* home = static_cast<const char*>(head(cold).data);
                        CHECK(std::vector<char>(home, home + want.size()) == want);
                    }
            }
        }
    }
}

TEST_SUITE_END();
