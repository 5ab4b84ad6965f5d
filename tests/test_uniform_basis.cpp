// Caches without learned bases, --cache q8 and q4: what rotated codes cost, and the room that any window
// and age may take.
#include <climits>

#include "backends.h"
#include "cache/kv_cache.h"
#include "forward/transformer.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("cache");

TEST_CASE("rotated codes without bases: eight bits are near the plain cache, four less so") {
    Scratch scratch;
    write_tiny_model({.why = "", .d = 16}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {"cpu", "auto"}, 2);
    std::vector<Token> ids;
    for (int i = 0; i < 100; i++) ids.push_back(Token(3 + i * 7 % 50));
    auto run = [&](const Bases* bases) {
        KvCache cache(*model.backend, model.config, 100, DType::F16, bases, 64);
        Transformer transformer(model, 100, 64);
        transformer.exact = true;
        Floats logits(ids.size() * size_t(model.config.V), NaN);
        transformer.forward(cache, ids, logits.data(), int(ids.size()));
        return logits;
    };
    Floats plain = run(nullptr);
    auto error = [&](const std::vector<int>& ages, const std::vector<int>& bits) {
        Bases bases = Bases::uniform(model.config, ages, bits);
        bases.sinks = bases.recent = 0;
        CHECK(bases.bytes_per_token(DType::F16) ==
              size_t(model.config.L) * 4 * (size_t(bits.back()) * 16 / 8 + 1));
        return nmse(run(&bases), plain);
    };
    double q8 = error({}, {8}), q4 = error({}, {4}), aged = error({40}, {8, 4});
    CHECK(q8 <= 1e-4);
    CHECK(q8 < aged);
    CHECK(aged < q4);
    CHECK(q4 <= 1e-1);
    Config odd = model.config;
    odd.d = 20;
    CHECK_THROWS_WITH_AS(Bases::uniform(odd, {}, {4}), doctest::Contains("groups of 8"), Error);
}

TEST_CASE("no window and no age takes more rows than the cache has positions") {
    Config config;
    config.L = 2, config.H = 4, config.G = 2, config.d = 64;
    Bases bases = Bases::uniform(config, {INT_MAX}, {8, 4});
    const int S = 200;
    bases.sinks = 0, bases.recent = 0, bases.ages = {};
    for (Bases::Layer& layer : bases.layer)
        for (auto* side : {&layer.k, &layer.v})
            for (HeadBasis& head : *side) head.format.erase(head.format.begin());
    size_t four = KvCache::bytes_for(config, S, DType::F16, &bases, 16);
    size_t whole = KvCache::bytes_for(config, S, DType::F16, nullptr, 16);
    for (auto [sinks, recent] : {std::pair{4, 180}, {4, S}, {4, 1000000}, {4, INT_MAX}, {INT_MAX, 0},
                                 {INT_MAX, INT_MAX}}) {
        CAPTURE(sinks);
        CAPTURE(recent);
        bases.sinks = sinks, bases.recent = recent;
        CHECK(KvCache::bytes_for(config, S, DType::F16, &bases, 16) <= four + whole);
        Lab lab({"cpu", {"cpu", "auto"}, 1, {}});
        KvCache cache(*lab.backend, config, S, DType::F16, &bases, 16);
        CHECK(cache.bytes_per_token() == bases.bytes_per_token(DType::F16));
    }
}

TEST_SUITE_END();
