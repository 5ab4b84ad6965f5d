// stief calibrate on tiny models: budgets, methods, interruption, and what must be refused.
#include "calibrate/calibrate.h"

#include <filesystem>

#include "base/file.h"
#include "calibrate/stiefel.h"
#include "calibration_lab.h"
#include "reference.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Tried : CalibrationLab {
    explicit Tried(const TinyModel& tiny = {.why = "calibrate"}, int threads = 2)
        : CalibrationLab(tiny, threads, 400, 100) {
        options.objective = "layer", options.bits = "16";
        options.steps = 12, options.batch = 3;
        options.measured_windows = 3, options.keep = 0.5;
        options.sinks = options.recent = 0;
    }
};

struct Interrupted {};

bool same_bases(const Bases& a, const Bases& b) {
    bool same = a.layer.size() == b.layer.size();
    for (size_t l = 0; same && l < a.layer.size(); l++)
        for (auto side : {&Bases::Layer::k, &Bases::Layer::v})
            for (size_t g = 0; g < (a.layer[l].*side).size(); g++) {
                const HeadBasis &x = (a.layer[l].*side)[g], &y = (b.layer[l].*side)[g];
                same = same && x.format == y.format && same_bits(x.q, y.q) && same_bits(x.encode, y.encode) &&
                       same_bits(x.decode, y.decode);
            }
    return same;
}

}  // namespace

TEST_CASE("every method and space keeps to its budget of bytes and opens again") {
    for (const char* method : {"stiefel", "eigen", "identity"})
        for (bool shared : {false, true})
            for (const char* keys : {"pre", "post", "auto"})
                for (double keep : {0.3, 0.5, 1.0}) {
                    // At d = 8 a rank for every head is half of the cache.
                    if (std::string(method) == "eigen" && keep < 0.5) continue;
                    CAPTURE(method);
                    CAPTURE(shared);
                    CAPTURE(keys);
                    CAPTURE(keep);
                    Tried tried;
                    CalibrationOptions& o = tried.options;
                    o.method = method, o.key_basis_per_layer = shared,
                    o.metric = shared ? "identity" : "output";
                    o.keys = keys, o.keep = keep, o.steps = 2;
                    CalibrationResult result = tried.run();
                    CHECK(double(result.bytes_per_token) <=
                          keep * double(result.full_bytes_per_token));
                    CHECK(result.bytes_per_token > 0);
                    write_bases(result, tried.model, tried.text, tried.partial);
                    const Config& c = tried.model.config;
                    Bases bases =
                        Bases::open(tried.output(), c, tried.model.weights.fingerprint(c));
                    CHECK(bases.bytes_per_token(DType::F16) == result.bytes_per_token);
                    CHECK(!folder_exists(tried.output() + ".partial"));
                    bool whole = result.bytes_per_token == result.full_bytes_per_token;
                    if (whole) CHECK(result.measured.divergence.mean <= 1e-4);  // an f16 cache
                    for (double error : result.error) CHECK((error >= 0 && error < 1));
                }
}

TEST_CASE("the same seed gives the same bases for any number of threads, another seed others") {
    Bases one = Tried({.why = "one"}, 1).run().bases;
    CHECK(same_bases(Tried({.why = "three"}, 3).run().bases, one));
    Tried other;
    other.options.seed = 2;
    CHECK(!same_bases(other.run().bases, one));
}

TEST_CASE("a run that is killed and resumed gives the bases of an uninterrupted one") {
    Tried whole, killed;
    Bases want = whole.run().bases;
    auto stop_in_layer_2 = [](size_t, size_t, const std::string& phase) {
        if (phase.find("layer 2 of 2, error against") != phase.npos) throw Interrupted();
    };
    auto stop_in_descent_2 = [](size_t, size_t, const std::string& phase) {
        if (phase.find("layer 2 of 2, error of") != phase.npos) throw Interrupted();
    };
    CHECK_THROWS_AS(killed.run(stop_in_layer_2), Interrupted);
    CHECK(!file_exists(killed.output()));
    killed.options.resume = true;
    CHECK_THROWS_AS(killed.run(stop_in_descent_2), Interrupted);
    CalibrationResult result = killed.run();
    CHECK(result.resumed == 3);  // two eigenbases and a descent
    CHECK(same_bases(result.bases, want));
    write_bases(result, killed.model, killed.text, killed.partial);
    const Config& c = killed.model.config;
    uint64_t fingerprint = killed.model.weights.fingerprint(c);
    CHECK(same_bases(Bases::open(killed.output(), c, fingerprint), want));
    CHECK(!folder_exists(killed.output() + ".partial"));
}

TEST_CASE("resuming with other options, or from a damaged layer, is refused") {
    Tried tried;
    auto stop = [](size_t, size_t, const std::string& phase) {
        if (phase.find("layer 2 of 2") != phase.npos) throw Interrupted();
    };
    CHECK_THROWS_AS(tried.run(stop), Interrupted);
    tried.options.resume = true;
    tried.options.steps++;
    CHECK_THROWS_WITH_AS(tried.run(), doctest::Contains("run again without --resume"), Error);
    tried.options.steps--;
    std::string path = tried.output() + ".partial/layers.0";
    std::string text = read_text(path);
    AtomicFile file(path);
    file.write(std::string_view(text).substr(0, text.size() - 9));
    file.commit();
    CHECK_THROWS_WITH_AS(tried.run(), doctest::Contains("damaged"), Error);
}

TEST_CASE("a folder of that name which no run made is refused, and nothing in it is removed") {
    Scratch scratch;
    std::string output = scratch.path("b"), folder = output + ".partial";
    std::filesystem::create_directories(folder + "/mine");
    CHECK_THROWS_WITH_AS(Partial{output}, doctest::Contains("was not made by stief calibrate"), Error);
    CHECK(folder_exists(folder + "/mine"));
    std::filesystem::remove_all(folder);
    {
        Partial partial(output);
        std::filesystem::create_directories(folder + "/layers.0.mine");
        for (const char* name : {"notes", "layers.", "layers.1x", "layers.7"})
            AtomicFile(join(folder, name)).commit();
        partial.begin(1, false);
        CHECK(!file_exists(folder + "/layers.7"));
        AtomicFile(folder + "/layers.8").commit();
        partial.remove();
    }
    for (const char* name : {"notes", "layers.", "layers.1x"})
        CHECK(file_exists(join(folder, name)));
    CHECK(folder_exists(folder + "/layers.0.mine"));
    for (const char* name : {"layers.8", "run"}) CHECK(!file_exists(join(folder, name)));
}

TEST_CASE("two runs on one output: the second is refused, until the first is gone") {
    Scratch scratch;
    std::string output = scratch.path("b"), folder = output + ".partial";
    {
        Partial first(output);
        AtomicFile(folder + "/layers.0").commit();
        CHECK_THROWS_WITH_AS(Partial{output}, doctest::Contains("another run is working there"), Error);
        CHECK(file_exists(folder + "/layers.0"));
    }
    CHECK(file_exists(folder + "/layers.0"));             // the lock went with the run, its layers not
    {
        Partial again(output);
        again.begin(1, false);
    }
    CHECK(!folder_exists(folder));                        // nothing in it that is worth keeping
    AtomicFile(output + ".partial").commit();
    CHECK_THROWS_AS(Partial{output}, Error);              // a file
}

TEST_CASE("an error budget is met by every layer, measured") {
    for (const char* method : {"stiefel", "eigen"})
        for (double budget : {0.02, 0.1, 0.3}) {
            CAPTURE(method);
            CAPTURE(budget);
            Tried tried;
            tried.options.keep = 0, tried.options.error_budget = budget;
            tried.options.method = method, tried.options.metric = "identity";
            CalibrationResult result = tried.run();
            for (double error : result.error) CHECK(error <= budget);
            if (budget > 0.2) CHECK(result.bytes_per_token < result.full_bytes_per_token);
        }
}

TEST_CASE("a planted rank is found, by every metric, with and without descent") {
    for (int planted : {4, 8, 12})
        for (bool rotated : {false, true})
            for (const char* metric : {"output", "query", "identity"})
                for (int steps : {0, 12}) {
                    CAPTURE(planted);
                    CAPTURE(rotated);
                    CAPTURE(metric);
                    CAPTURE(steps);
                    Tried tried({.why = "planted", .L = 2, .D = 32, .d = 16, .planted = planted,
                                 .planes = rotated});
                    CalibrationOptions& o = tried.options;
                    o.keep = 0, o.error_budget = 0.001, o.metric = metric, o.steps = steps;
                    o.keys = rotated ? "post" : "pre";
                    CalibrationResult result = tried.run();
                    for (const LayerRanks& ranks : result.ranks)
                        for (int g = 0; g < 2; g++)
                            for (bool values : {false, true})
                                CHECK(ranks.at(values, g) == planted);
                    for (double error : result.error) CHECK(error <= 0.001);
                }
}

TEST_CASE("a perplexity budget is met, measured through the cache") {
    for (auto [objective, method] :
         {std::pair{"layer", "stiefel"}, {"layer", "eigen"}, {"model", "stiefel"}}) {
        CAPTURE(objective);
        CAPTURE(method);
        Tried tried;
        tried.options.keep = 0, tried.options.ppl_budget = 2;
        tried.options.objective = objective, tried.options.method = method;
        Measured measured = tried.run().measured;
        CHECK(measured.loss.perplexity <= measured.reference.perplexity * 1.02);
    }
}

TEST_CASE("a calibration that would measure nothing is refused before any work") {
    for (auto [sinks, recent] : {std::pair{4, 19}, {23, 0}, {1000, 1000}})
        for (double ppl_budget : {0.0, 2.0}) {
            Tried tried;
            tried.options.sinks = sinks, tried.options.recent = recent;
            tried.options.ppl_budget = ppl_budget, tried.options.keep = ppl_budget > 0 ? 0 : 0.5;
            CHECK_THROWS_WITH_AS(tried.run([](size_t, size_t, const std::string&) { FAIL("work"); }),
                                 doctest::Contains("nothing of the cache would be read compressed"),
                                 Error);
        }
    Tried little;  // 24 tokens, of which the last few read a little compressed
    little.options.sinks = 4, little.options.recent = 18;
    double share = little.run().measured.compressed_share;
    CHECK(std::abs(share - 1.0 / (23 * 24 / 2)) <= 1e-12);
    little.options.keep = 0, little.options.ppl_budget = 2;
    CHECK_THROWS_WITH_AS(little.run(), doctest::Contains("less than a quarter"), Error);
}

TEST_CASE("the shortest sequences of a perplexity budget read a quarter of the cache compressed") {
    for (int window : {10, 68, 500}) {
        int T = 2 * window + 2;
        std::vector<Window> one = {{0, size_t(T), 1, false}};
        CHECK(share_outside(one, 4, window - 4) >= 0.25);
    }
}

TEST_CASE("a budget that lets every head go to rank 0 is refused") {
    Tried tried;
    tried.options.keep = 0, tried.options.ppl_budget = 1e6;
    for (const char* objective : {"layer", "model"}) {
        tried.options.objective = objective;
        CHECK_THROWS_WITH_AS(tried.run(), doctest::Contains("--ppl-budget 1e+06"), Error);
    }
    tried.options.objective = "layer";
    tried.options.ppl_budget = 0, tried.options.error_budget = 100;
    CHECK_THROWS_WITH_AS(tried.run(), doctest::Contains("--error-budget 100"), Error);
}

TEST_CASE("a text too short is told sequences that fit, and none within the whole window") {
    Tried tried;
    tried.options.sequence = 200, tried.options.sinks = 4, tried.options.recent = 16;
    CHECK_THROWS_WITH_AS(tried.run(), doctest::Contains("--context 100"), Error);
    auto gives_no_length = [&] {
        try {
            tried.run();
            FAIL("ran");
        } catch (const Error& error) {
            CHECK(std::string(error.what()).ends_with("give more text"));
        }
    };
    tried.options.least_advised = 101;  // a shorter one comes with another window
    gives_no_length();
    tried.options.least_advised = 0, tried.options.recent = 120;
    gives_no_length();
}

TEST_CASE(
    "descent never leaves a layer's keys or values worse than the eigenbasis on held-out text") {
    Tried tried({.why = "descent", .L = 1, .D = 32, .H = 4, .G = 2});
    tried.options.steps = 60;
    CalibrationResult result = tried.run();
    REQUIRE(result.layer[0].errors.size() == 2);
    CHECK(result.error[0] <= result.error_warm[0]);
    for (bool values : {false, true})
        for (int g = 0; g < 2; g++) {
            const LearnedLayer& layer = result.layer[0];
            std::vector<RankPoint> best = layer.curve(values, g);
            const std::vector<RankPoint>& warm = (values ? layer.warm_v : layer.warm_k)[size_t(g)];
            for (size_t i = 0; i < best.size(); i++) CHECK(best[i].error <= warm[i].error);
        }
    for (const BasisUnit& unit : result.layer[0].units) CHECK(infeasibility(unit.Q) <= FEASIBLE);
}

TEST_CASE("curves fall to zero at full rank and count nothing twice") {
    Tried tried;
    CalibrationResult result = tried.run();
    for (const LearnedLayer& layer : result.layer)
        for (const auto* side : {&layer.k, &layer.v})
            for (const std::vector<RankPoint>& curve : *side) {
                CHECK(curve.front().rank == 0);
                CHECK(curve.front().error > 0);
                CHECK(curve.back().rank == tried.model.config.d);
                CHECK(curve.back().error == 0);
            }
}

TEST_CASE("a text of one repeated token is learnt from without complaint") {
    Tried tried;
    std::fill(tried.text.learn[0].ids.begin(), tried.text.learn[0].ids.end(), Token(5));
    std::fill(tried.text.held_out[0].ids.begin(), tried.text.held_out[0].ids.end(), Token(5));
    for (const char* method : {"stiefel", "eigen"}) {
        tried.options.method = method;
        CalibrationResult result = tried.run();
        for (const BasisUnit& unit : result.layer[0].units)
            CHECK(infeasibility(unit.Q) <= FEASIBLE);
    }
}

TEST_CASE("a model of zeros, or with NaN, is refused in one line") {
    Tried zeros({.why = "zeros", .deviation = 0});
    CHECK_THROWS_WITH_AS(zeros.run(), doctest::Contains("zero everywhere"), Error);
    Tried broken({.why = "NaN", .deviation = double(NaN)});
    CHECK_THROWS_WITH_AS(broken.run(), doctest::Contains("not finite"), Error);
    CHECK(!file_exists(broken.output()));
    for (const char* method : {"stiefel", "star"}) {
        CalibrationLab by_prices({.why = "NaN", .deviation = double(NaN)});
        by_prices.options.sinks = 4, by_prices.options.recent = 0, by_prices.options.method = method;
        CHECK_THROWS_WITH_AS(by_prices.run(), doctest::Contains("damaged or not trained"), Error);
    }
}

TEST_CASE("too little text and too small a budget say what is missing") {
    Tried little;
    little.text.learn[0].ids.resize(30);
    CHECK_THROWS_WITH_AS(little.run(), doctest::Contains("30 tokens to learn from"), Error);
    Tried small;
    small.options.keep = 0.01;
    CHECK_THROWS_WITH_AS(small.run(),
                         doctest::Contains("too few for the smallest rank of one head"), Error);
    Tried flat;  // any threshold keeps something of every head
    flat.options.method = "eigen", flat.options.keep = 0.45;
    auto never = [](size_t, size_t, const std::string&) { FAIL("work was done"); };
    CHECK_THROWS_WITH_AS(
        flat.run(never),
        doctest::Contains(
            "too few for the smallest rank of every head, the least of --method eigen"),
        Error);
}

TEST_CASE("an output that cannot be written is said before any work") {
    Tried tried;
    CHECK_THROWS_AS(Partial(tried.scratch.path("no/out")), Error);
    CHECK_THROWS_AS(Partial("/proc/out.bases"), Error);
}

TEST_CASE("activations that do not fit in memory give the same floats from a file") {
    Scratch scratch;
    Activations memory(1000, scratch.path("."), false), file(1000, scratch.path("."), true);
    file.data[999] = 3;
    CHECK(memory.data[999] == 0);
    memory.swap(file);
    CHECK(memory.data[999] == 3);
    CHECK(std::filesystem::is_empty(scratch.path(".")));
}

TEST_SUITE_END();
