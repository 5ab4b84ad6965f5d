// Formats by prices of the model's own prediction: calibrate --objective model.
#include "calibrate/allocation.h"
#include "calibrate/calibrate.h"
#include "calibrate/compare.h"
#include "calibrate/end_to_end.h"
#include "calibrate/partial.h"
#include "calibrate/prices.h"
#include "calibration_lab.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Tried : CalibrationLab {
    explicit Tried(int threads = 2) : CalibrationLab({.why = "prices", .L = 3, .d = 16}, threads) {
        model.backend->exact = true;
        options.measured_windows = 4, options.keep = 0.25;
        options.sinks = 4, options.recent = 0;
    }
};

}  // namespace

TEST_CASE("calibrate by prices keeps to its bytes, and what it measured is what the cache does") {
    for (const char* keys : {"pre", "post", "auto"})
        for (const char* bits : {"mixed", "16"})
            for (auto [keep, joint] : {std::pair{0.15, false}, {0.25, false}, {1.0, false}, {0.15, true},
                                       {1.0, true}}) {
                CAPTURE(keys);
                CAPTURE(bits);
                CAPTURE(keep);
                CAPTURE(joint);
                Tried tried;
                tried.options.joint_values = joint;
                tried.options.keys = keys, tried.options.bits = bits, tried.options.keep = keep;
                CalibrationResult result = tried.run();
                CHECK(double(result.bytes_per_token) <=
                      keep * double(result.full_bytes_per_token));
                CHECK(result.bytes_per_token > 0);
                CHECK(result.bases.bytes_per_token(DType::F16) == result.bytes_per_token);
                if (keep == 1) CHECK(result.measured.divergence.mean <= 1e-4);
                std::string path = tried.output();
                write_bases(result, tried.model, tried.text, tried.partial);
                const Config& c = tried.model.config;
                Bases bases = Bases::open(path, c, tried.model.weights.fingerprint(c));
                CHECK(bases.hash(1) == result.bases.hash(1));
                for (size_t l = 0; l < bases.layer.size() && keys != std::string("auto"); l++)
                    CHECK(bases.layer[l].rotated == (keys == std::string("post")));
                CHECK((keys == std::string("post") || !bases.layer[0].rotated));

                // The layer pass with these cuts against the cache with these bases: one text, the
                // first 4 tokens whole and no others.
                std::vector<LayerCuts> cuts = cuts_of(bases, c, 4, DType::F16);
                CHECK(cuts[0].joint == joint);
                Sequences one;
                one.T = 24;
                one.ids = {{tried.text.held_out[0].ids.begin(), tried.text.held_out[0].ids.begin() + 24}};
                one.pos = {0};
                std::vector<float> rotation = rotation_table(c, 24);
                LayerPass pass(tried.model, 24, rotation);
                EndToEnd end_to_end(pass, one, 1);
                Measured by_cuts = end_to_end.measure(cuts);
                Transformer transformer(tried.model, 24);
                KvCache cut(*tried.model.backend, c, 24, DType::F16, &bases);
                KvCache full(*tried.model.backend, c, 24, DType::F32);
                Runner tested{transformer, cut, true}, reference{transformer, full, true};
                Measured by_cache = measure(tested, &reference, one.ids[0],
                                            {.name = Protocol::Chunks, .context = 24}, {});
                double a = by_cuts.divergence.mean, b = by_cache.divergence.mean;
                // Products in another order move a coordinate over a cell's edge now and then.
                CHECK(std::abs(a - b) <= 0.02 * a + 1e-7);
            }
}

TEST_CASE("a descent is taken where held-out text is better for it, and the result says so") {
    int taken = 0;
    for (double keep : {0.15, 0.5})
        for (const char* bits : {"mixed", "16"}) {
            CAPTURE(keep);
            CAPTURE(bits);
            auto found = [&](int steps) {
                Tried tried;
                tried.options.keep = keep, tried.options.bits = bits;
                tried.options.steps = steps, tried.options.batch = 2, tried.options.tau = 0.1;
                return tried.run();
            };
            CalibrationResult without = found(0), with = found(6);
            CHECK(!without.descent);
            REQUIRE(with.descent);
            CHECK(with.descent->before > 0);
            bool same = with.bases.hash(1) == without.bases.hash(1);
            CHECK(same == !with.descent->taken());
            taken += with.descent->taken();
        }
    CHECK(taken > 0);
}

TEST_CASE("values that are joint in rows wider than codes are refused before anything is learned") {
    CalibrationLab wide({"", 1, 16, 24, 64, 33, 33, 64});
    wide.options.objective = "model", wide.options.joint_values = true;
    wide.options.sinks = 4, wide.options.recent = 0;
    bool begun = false;
    CHECK_THROWS_WITH_AS(wide.run([&](size_t, size_t, const std::string&) { begun = true; }),
                         doctest::Contains("rows of 2112 coordinates, rows of codes have at most 2048"),
                         Error);
    CHECK(!begun);
}

TEST_CASE("ages: each keeps to its bytes, and what is written is what was measured") {
    Tried tried;
    CalibrationOptions& o = tried.options;
    o.recent = 3, o.ages = {8, 14}, o.age_bits = {8, 4}, o.keep = 0.15;
    CalibrationResult result = tried.run();
    const Config& c = tried.model.config;
    size_t bytes[3] = {};
    for (const Bases::Layer& layer : result.bases.layer)
        for (auto side : {&Bases::Layer::k, &Bases::Layer::v})
            for (const HeadBasis& head : layer.*side) {
                REQUIRE(head.format.size() == 3);
                for (size_t age = 0; age < 3; age++) bytes[age] += head.format[age].bytes(DType::F16);
            }
    double full = double(result.full_bytes_per_token);
    CHECK(double(bytes[0]) <= full * 8 / 16);
    CHECK(double(bytes[1]) <= full * 4 / 16);
    CHECK(double(bytes[2]) <= full * 0.15);
    CHECK(bytes[1] > bytes[2]);
    CHECK(bytes[2] == result.bytes_per_token);
    write_bases(result, tried.model, tried.text, tried.partial);
    Bases bases =
        Bases::open(tried.output(), c, tried.model.weights.fingerprint(c));
    CHECK(bases.hash(1) == result.bases.hash(1));
    CHECK(bases.ages == o.ages);
    Transformer transformer(tried.model, o.sequence);
    KvCache cut(*tried.model.backend, c, o.sequence, DType::F16, &bases);
    KvCache whole(*tried.model.backend, c, o.sequence, DType::F16);
    Runner tested{transformer, cut, true}, reference{transformer, whole, true};
    Measured again = measure(tested, &reference, tried.text.held_out[0].ids,
                             {.name = Protocol::Chunks, .context = o.sequence, .limit = 4}, {});
    CHECK(again.divergence.mean == result.measured.divergence.mean);
}

TEST_CASE("a group of layers cut alone is a model with the others whole") {
    Tried tried;
    CalibrationResult result = tried.run();
    const Config& c = tried.model.config;
    Sequences two;
    two.T = 24, two.pos = {0, 7};
    for (int s : {0, 40})
        two.ids.push_back({tried.text.learn[0].ids.begin() + s, tried.text.learn[0].ids.begin() + s + 24});
    std::vector<float> rotation = rotation_table(c, 64);
    LayerPass pass(tried.model, 24, rotation);
    std::vector<LayerCuts> cuts = cuts_of(result.bases, c, 4, DType::F16);
    for (const std::vector<int>& ends : {std::vector<int>{1, 2, 3}, {2, 3}, {3}}) {
        EndToEnd end_to_end(pass, two, 2, ends);
        auto alone = end_to_end.each_alone(cuts);
        int first = 0;
        for (size_t i = 0; i < ends.size(); first = ends[i++])
            for (bool values : {false, true}) {
                std::vector<LayerCuts> others = cuts;
                for (int l = 0; l < c.L; l++)
                    for (bool side : {false, true})
                        if (l < first || l >= ends[i] || side != values)
                            for (Cut& cut : side ? others[size_t(l)].v : others[size_t(l)].k) cut = {};
                double want = end_to_end.measure(others).divergence.mean;
                CHECK(want > 0);
                CHECK(std::abs(alone[i][values] - want) <= 1e-12 + 1e-9 * want);
            }
    }
}

TEST_CASE("the layer pass with ages against the cache with ages, over two blocks of queries") {
    for (const char* keys : {"pre", "post"})
        for (int recent : {0, 6}) {
            CAPTURE(keys);
            CAPTURE(recent);
            Tried tried;
            CalibrationOptions& o = tried.options;
            o.keys = keys, o.recent = recent, o.ages = {8, 30}, o.age_bits = {8, 4}, o.sequence = 60;
            CalibrationResult result = tried.run();
            const Config& c = tried.model.config;
            constexpr int T = 300;
            Sequences one;
            one.T = T, one.pos = {0};
            one.ids = {{tried.text.learn[0].ids.begin(), tried.text.learn[0].ids.begin() + T}};
            std::vector<float> rotation = rotation_table(c, T);
            LayerPass pass(tried.model, T, rotation);
            pass.split_by_distance({recent, 8, 30});
            EndToEnd end_to_end(pass, one, 1);
            std::vector<LayerCuts> cuts = cuts_of(result.bases, c, o.sinks, o.cache);
            double a = end_to_end.measure(cuts).divergence.mean;
            Transformer transformer(tried.model, T);
            KvCache cut(*tried.model.backend, c, T, DType::F16, &result.bases);
            KvCache full(*tried.model.backend, c, T, DType::F32);
            Runner tested{transformer, cut, true}, reference{transformer, full, true};
            double b = measure(tested, &reference, one.ids[0],
                               {.name = Protocol::Chunks, .context = T}, {})
                           .divergence.mean;
            CHECK(a > 0);
            CHECK(std::abs(a - b) <= 0.02 * a + 1e-7);
        }
}

TEST_CASE("a run by prices that is killed and resumed gives the bases of an uninterrupted one") {
    for (int recent : {0, 6}) {
        Tried whole, killed;
        whole.options.recent = killed.options.recent = recent;
        CalibrationResult want = whole.run();
        int phases = 0;
        for (const char* until :
             {"prices", "groups of layers", "what it costs"}) {
            CAPTURE(std::string(until));
            struct Interrupted {};
            auto stop = [&](size_t, size_t, const std::string& phase) {
                if (phase.find(until) == 0) throw Interrupted();
            };
            CHECK_THROWS_AS(
                calibrate(killed.model, killed.text, killed.options, killed.partial, stop), Interrupted);
            std::string units = killed.partial.folder + "/units.";
            CHECK(file_exists(units + std::to_string(phases)) == (phases > 0));
            CHECK(!file_exists(units + std::to_string(phases + 1)));
            killed.options.resume = true, phases++;
        }
        CalibrationResult got = killed.run();
        CHECK(got.resumed == 2);
        CHECK(got.bases.hash(1) == want.bases.hash(1));
        CHECK(got.measured.step == want.measured.step);
        REQUIRE(got.foretold.size() == want.foretold.size());
        for (size_t i = 0; i < got.foretold.size(); i++)
            CHECK((got.foretold[i].predicted == want.foretold[i].predicted &&
                   got.foretold[i].last == want.foretold[i].last &&
                   got.foretold[i].values == want.foretold[i].values));
        killed.options.recent++;
        CHECK_THROWS_WITH_AS(killed.run(), doctest::Contains("run again without --resume"), Error);
        killed.options.recent--;
        killed.options.objective = "layer";    // which would find nothing of its own there
        CHECK_THROWS_WITH_AS(killed.run(), doctest::Contains("run again without --resume"), Error);
        killed.options.objective = "model", killed.options.resume = false;
        CHECK(killed.run().resumed == 0);
    }
}

TEST_CASE("the same seed gives the same formats for any number of threads") {
    Tried one(1), three(3);
    CHECK(one.run().bases.hash(1) == three.run().bases.hash(1));
}

TEST_SUITE_END();
