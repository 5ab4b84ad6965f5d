// An exact answer through a compressed cache is the full cache's, whatever the compression.
#include <cmath>

#include "watching.h"

using namespace stief;
using namespace stief::testing;

namespace {

// What is written behind a prompt, and behind another one after it (0: none). stop: tokens of the
// first text after which the caller has enough; 0: never.
struct Script {
    int prompt, limit, stop, second;
    Sampling how;
};

template <class Generate>
std::vector<Token> play(const Script& script, int V, uint64_t seed, const Generate& generate) {
    Sampler sampler(script.how, seed);
    std::vector<Token> said;
    std::vector<Token> ends = {5};
    auto sink = [&](Token id) {
        said.push_back(id);
        return script.stop == 0 || int(said.size()) != script.stop;
    };
    Generated made = generate(sampler, some_ids(script.prompt, V, seed), script.limit, ends, sink);
    said.push_back(-1 - int(made.why));
    if (script.second == 0) return said;
    made = generate(sampler, some_ids(script.second, V, seed + 1), script.limit, ends, sink);
    said.push_back(-1 - int(made.why));
    return said;
}

std::vector<Token> play_full(Model& model, const Script& script, int context, uint64_t seed) {
    KvCache cache(*model.backend, model.config, context, DType::F16);
    Transformer transformer(model, context);
    return play(script, model.config.V, seed, [&](auto& sampler, auto&&... more) {
        return generate(transformer, cache, sampler, more...);
    });
}

std::vector<Token> play_watched(Watch& watch, const Script& script, uint64_t seed) {
    watch.cache.used = 0;
    watch.hold({});
    return play(script, watch.transformer.model.config.V, seed,
                [&](auto& sampler, auto&&... more) { return watch.generate(sampler, more...); });
}

std::vector<char> rows_of(const KvCache& cache) {
    std::vector<char> rows(cache.snapshot_bytes(cache.used));
    cache.save(rows.data());
    return rows;
}

}  // namespace

TEST_SUITE_BEGIN("forward");

TEST_CASE("an exact answer is what the full cache writes from the same seed") {
    const Sampling greedy{}, warm{false, 1.0, 0, 1, 0}, filtered{false, 0.8, 20, 0.9, 0.02};
    const struct {
        Script script;
        int context;
        const char* why;
    } cases[] = {
        {{20, 40, 0, 3, greedy}, 200, "greedy"},
        {{20, 40, 7, 3, greedy}, 200, "stopped in a block"},
        {{1, 1, 0, 1, greedy}, 200, "one token"},
        {{30, 60, 0, 0, greedy}, 70, "a full context"},
        {{20, 40, 0, 9, warm}, 200, "sampled"},
        {{33, 40, 11, 3, filtered}, 200, "filtered, stopped"},
        {{40, 60, 0, 0, warm}, 77, "sampled, a full context"},
    };
    for (const TinyModel& tiny : MODELS) {
        Scratch folder;
        write_tiny_model(tiny, folder.folder.string());
        for (int threads : {1, 3}) {
            Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, threads);
            std::vector<Bases> all = {crude(model.config, 4)};
            if (model.config.d % 8 == 0) {
                all.push_back(Bases::uniform(model.config, {}, {1}));
                all.back().sinks = 1, all.back().recent = 2;
            }
            int wrong = 0;
            auto play_both = [&](const Bases& bases, const auto& c) {
                for (int block : {0, 1, 5, 32}) {
                    CAPTURE(std::string(tiny.why));
                    CAPTURE(std::string(c.why));
                    CAPTURE(block);
                    uint64_t seed = uint64_t(block) + 1;
                    KvCache cache(*model.backend, model.config, c.context, DType::F16, &bases);
                    Transformer transformer(model, c.context);
                    WatchOptions how;
                    how.exact = true, how.block = block;
                    Watch watch(transformer, cache, how, {});
                    CHECK(play_watched(watch, c.script, seed) ==
                          play_full(model, c.script, c.context, seed));
                    CHECK(cache.used == int(watch.ids.size()));
                    CHECK(watch.whole->used == int(watch.ids.size()));
                    wrong += watch.drafting.rejected;
                }
            };
            for (const Bases& bases : all)
                for (const auto& c : cases) play_both(bases, c);
            CHECK(wrong > 0);    // the compression does lose something here
        }
    }
}

TEST_CASE("a draft is as long as agreement and the costs of both caches make it pay") {
    auto length = [](double each, double v, double w, int accepted, int rejected) {
        Drafting drafting;
        drafting.accepted = accepted, drafting.rejected = rejected;
        drafting.drafted = 100, drafting.draft_seconds = 100 * each;
        for (int tokens : {9, 3, 9, 3, 5}) drafting.add_verification(tokens, v + w * tokens);
        return drafting.best_length(32);
    };
    CHECK(length(0.01, 1, 0.01, 10000, 0) == 32);     // cheap drafts that are always right
    CHECK(length(0.5, 1, 0.3, 10000, 0) == 32);
    CHECK(length(1, 1, 0.3, 50, 50) == 1);
    int before = 32;
    for (int rejected : {1, 10, 30, 100}) {           // the shorter, the more are wrong
        int now = length(0.1, 1, 0.05, 100, rejected);
        CHECK(now <= before);
        CHECK(now >= 1);
        before = now;
    }
    CHECK(before < 8);
    CHECK(Drafting().best_length(32) == 7);
    CHECK(Drafting().best_length(5) == 5);
    Drafting sure;    // drafts cost half a verification's share, and nearly all are right
    sure.accepted = 300, sure.rejected = 10, sure.drafted = 100, sure.draft_seconds = 10;
    for (int tokens : {8, 3, 8, 3, 8}) sure.add_verification(tokens, 1 + 0.05 * tokens);
    int any = sure.best_length(32);
    CHECK(any > 8);
    CHECK((sure.best_length(32, 8) + 1) % 8 == 0);
    CHECK(std::abs(sure.best_length(32, 8) - any) <= 7);
}

TEST_CASE("an exact answer is the full cache's on every instruction set") {
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Model model = open_model(folder.folder.string(), variant, variant.threads);
        Bases bases = crude(model.config, 4);
        Script script{9, 12, 0, 2, Sampling{}};
        KvCache cache(*model.backend, model.config, 40, DType::F16, &bases);
        Transformer transformer(model, 40);
        WatchOptions how;
        how.exact = true, how.block = 3;
        Watch watch(transformer, cache, how, {});
        CHECK(play_watched(watch, script, 2) == play_full(model, script, 40, 2));
        CHECK(watch.drafting.verifications > 0);
    }
}

TEST_CASE("blocks may be longer from one answer to the next, audited or exact") {
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Model model = open_model(folder.folder.string(), variant, variant.threads);
        Bases bases = crude(model.config, 4);
        auto watch_of = [&](bool exact, int block, KvCache& cache, Transformer& transformer) {
            WatchOptions how;
            how.exact = exact, how.block = block;
            return Watch(transformer, cache, how, {});
        };
        Script script{9, 60, 0, 0, Sampling{}};
        std::vector<Token> full = play_full(model, script, 90, 2);
        KvCache cache(*model.backend, model.config, 90, DType::F16, &bases);
        Transformer transformer(model, 90);
        Watch watch = watch_of(true, 1, cache, transformer);
        auto audits = [&](Watch& one) {
            one.options.exact = false, one.options.block = 50;
            one.log.blocks.clear();
            play_watched(one, script, 2);
            std::vector<double> means;
            for (const AuditedBlock& block : one.log.blocks) means.push_back(block.mean);
            return means;
        };
        for (int block : {1, 3, 0}) {
            watch.options.exact = true, watch.options.block = block;
            CHECK(play_watched(watch, script, 2) == full);
        }
        KvCache other(*model.backend, model.config, 90, DType::F16, &bases);
        Watch fresh = watch_of(false, 50, other, transformer);
        std::vector<double> want = audits(fresh);
        REQUIRE(want.size() > 1);
        CHECK(audits(watch) == want);
    }
}

TEST_CASE("what drafts were taken back leaves no trace in either cache") {
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, 2);
    Bases bases = crude(model.config, 4);
    auto feed_singly = [&](Transformer& transformer, KvCache& cache, std::span<const Token> ids) {
        for (Token one : ids) transformer.forward(cache, {&one, 1}, nullptr, 0);
    };
    std::vector<Token> prompt = some_ids(30, model.config.V, 1);
    for (int block : {1, 4, 16}) {
        CAPTURE(block);
        KvCache cache(*model.backend, model.config, 200, DType::F16, &bases, 64);
        Transformer transformer(model, 200, 64);
        WatchOptions how;
        how.exact = true, how.block = block;
        Watch watch(transformer, cache, how, {});
        Sampler sampler(Sampling{}, 0);
        watch.generate(sampler, prompt, 50, {}, [](Token) { return true; });
        CHECK(watch.drafting.rejected > 0);

        KvCache alone(*model.backend, model.config, 200, DType::F16, &bases, 64);
        KvCache full(*model.backend, model.config, 200, DType::F16);
        for (KvCache* one : {&alone, &full}) {
            transformer.forward(*one, prompt, nullptr, 0);
            feed_singly(transformer, *one, std::span<const Token>(watch.ids).subspan(30));
        }
        CHECK(rows_of(*watch.whole) == rows_of(full));
        // So many more that what a draft wrote behind the end is written over.
        for (KvCache* one : {&alone, &cache})
            feed_singly(transformer, *one, some_ids(Watch::MOST, model.config.V, 2));
        CHECK(rows_of(cache) == rows_of(alone));
    }
}

TEST_CASE("exact sampling has the full cache's distribution") {
    TinyModel tiny{"16 tokens", 1, 16, 24, 16, 2, 1, 8, DType::F32, true, false, 0.7};
    Scratch folder;
    write_tiny_model(tiny, folder.folder.string());
    Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, 1);
    Bases bases = crude(model.config, 4);
    std::vector<Token> prompt = some_ids(24, model.config.V, 9);
    KvCache cache(*model.backend, model.config, 40, DType::F16, &bases);
    KvCache full(*model.backend, model.config, 40, DType::F16);
    Transformer transformer(model, 40);
    WatchOptions how;
    how.exact = true, how.block = 4;
    Watch watch(transformer, cache, how, {});

    // p(a) p(b | a) of the two tokens behind the prompt.
    size_t V = size_t(model.config.V);
    auto softmax = [&](Floats logits) {
        double sum = 0;
        Doubles p;
        for (float z : logits) p.push_back(std::exp(double(z))), sum += p.back();
        for (double& one : p) one /= sum;
        return p;
    };
    Floats logits(V);
    transformer.forward(full, prompt, logits.data(), 1);
    Doubles first = softmax(logits), expected(V * V);
    for (Token a = 0; a < Token(V); a++) {
        full.used = 24;
        transformer.forward(full, {&a, 1}, logits.data(), 1);
        Doubles second = softmax(logits);
        for (size_t b = 0; b < V; b++) expected[size_t(a) * V + b] = first[size_t(a)] * second[b];
    }
    constexpr int DRAWS = 4000;
    Doubles counted(V * V);
    Sampler sampler(Sampling{false, 1, 0, 1, 0}, 4);
    for (int i = 0; i < DRAWS; i++) {
        cache.used = 0;
        watch.hold({});
        size_t at = 0, given = 0;
        watch.generate(sampler, prompt, 3, {}, [&](Token id) {
            if (given++ < 2) at = at * V + size_t(id);    // the second was drafted
            return true;
        });
        counted[at]++;
    }
    // Cells that expect fewer than 5 are one cell (Cochran). χ² of n cells has a mean of n − 1 and a
    // deviation of √(2(n − 1)); five of them.
    double chi = 0, rest = 0, rest_counted = 0, cells = 0;
    auto add = [&](double want, double got) { chi += (got - want) * (got - want) / want, cells++; };
    for (size_t i = 0; i < V * V; i++) {
        double want = expected[i] * DRAWS;
        if (want >= 5) add(want, counted[i]);
        else rest += want, rest_counted += counted[i];
    }
    if (rest > 0) add(rest, rest_counted);
    CHECK(watch.drafting.rejected > 0);
    CHECK(cells > 10);
    CHECK(chi <= cells - 1 + 5 * std::sqrt(2 * (cells - 1)));
}

TEST_CASE("two distributions draw the same token as often as their distance allows") {
    Random random(3);
    Sampling how{false, 1, 0, 1, 0};
    for (double apart : {0.0, 0.1, 0.5, 2.0}) {
        Floats a, b;
        for (int i = 0; i < 40; i++) {
            a.push_back(float(2 * random.normal()));
            b.push_back(a.back() + float(apart * random.normal()));
        }
        double sum_a = 0, sum_b = 0, distance = 0;
        for (size_t i = 0; i < a.size(); i++)
            sum_a += std::exp(double(a[i])), sum_b += std::exp(double(b[i]));
        for (size_t i = 0; i < a.size(); i++)
            distance += std::abs(std::exp(double(a[i])) / sum_a - std::exp(double(b[i])) / sum_b) / 2;
        constexpr int DRAWS = 20000;
        Sampler one(how, 7), other(how, 7);
        int same = 0;
        for (int i = 0; i < DRAWS; i++) {
            Floats x = a, y = b;
            same += one.pick(x) == other.pick(y);
        }
        CAPTURE(distance);
        double least = (1 - distance) / (1 + distance);
        CHECK(double(same) / DRAWS >= least - 5 * 0.5 / std::sqrt(double(DRAWS)));
        CHECK((apart > 0 || same == DRAWS));
    }
}

TEST_SUITE_END();
