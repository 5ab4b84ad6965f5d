// An audit says what perplexity would say of the same tokens, and which of them are not the full cache's.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/signals.h"
#include "forward/perplexity.h"
#include "watching.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("forward");

TEST_CASE("an audit's divergence is perplexity's over the same tokens") {
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, 2);
    Bases bases = crude(model.config, 4);
    for (WatchOptions::Cold cold : {WatchOptions::Ram, WatchOptions::Reread, WatchOptions::File})
        for (int block : {7, 32, 64}) {
            CAPTURE(block);
            KvCache cache(*model.backend, model.config, 128, DType::F32, &bases);
            KvCache full(*model.backend, model.config, 128, DType::F32);
            Transformer transformer(model, 128);
            transformer.exact = true;
            WatchOptions how;
            how.block = block, how.cold = cold;
            if (cold == WatchOptions::File) how.file = (folder.folder / "rows").string();
            Watch watch(transformer, cache, how, {});
            CHECK(!std::filesystem::exists(folder.folder / "rows"));
            Sampler sampler(Sampling{}, 0);
            watch.generate(sampler, some_ids(50, model.config.V, 1), 40, {}, [](Token) { return true; });

            std::vector<Token> ids = watch.ids;
            ids.push_back(0);    // predicts nothing
            Runner tested{transformer, cache, true}, reference{transformer, full, true};
            Protocol protocol{.name = Protocol::Chunks, .context = int(ids.size())};
            Measured measured = measure(tested, &reference, ids, protocol, {});
            int first = 50 - std::min(block, 50);
            CHECK(watch.log.audited() == 90 - first);
            Doubles want, got;
            for (const AuditedBlock& one : watch.log.blocks) {
                got.push_back(one.mean), want.push_back(0);
                for (int i = 0; i < one.tokens; i++)
                    want.back() += double(measured.step[size_t(one.first + i)]) / one.tokens;
            }
            // Logits of single steps and of batches are f32 sums in another order: 1e-7 of them, a
            // few times that of a divergence that is their square.
            CHECK(nmse(got, want) <= 1e-8);
        }
}

TEST_CASE("an audit finds every token that the full cache would not have written") {
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, 2);
    Bases bases = Bases::uniform(model.config, {}, {6});
    bases.sinks = 1, bases.recent = 2;
    int found = 0, flagged = 0;
    for (bool greedy : {true, false})
        for (int block : {1, 7, 32}) {
            CAPTURE(greedy);
            CAPTURE(block);
            KvCache cache(*model.backend, model.config, 128, DType::F32, &bases);
            KvCache full(*model.backend, model.config, 128, DType::F32);
            Transformer transformer(model, 128);
            transformer.exact = true;
            WatchOptions how;
            how.block = block;
            Watch watch(transformer, cache, how, {});
            Sampler sampler(Sampling{greedy, 1, 0, 1, 0}, 3);
            auto sink = [](Token) { return true; };
            watch.generate(sampler, some_ids(20, model.config.V, 1), 40, {}, sink);
            CHECK(watch.log.written() == 40);
            watch.generate(sampler, some_ids(3, model.config.V, 2), 10, {}, sink);
            CHECK(watch.log.written() == 50);
            CHECK(watch.log.written(63) == 10);

            Runner tested{transformer, cache, true}, reference{transformer, full, true};
            Protocol protocol{.name = Protocol::Chunks, .context = int(watch.ids.size())};
            Measured measured = measure(tested, &reference, watch.ids, protocol, {});
            std::vector<int> want, got;
            Doubles swings, got_swings;
            for (int at = 20; at < int(watch.ids.size()); at++) {
                if (at >= 60 && at < 63) continue;    // of the second prompt
                size_t step = size_t(at) - 1;
                bool other = greedy ? !measured.same_top[step]
                                    : double(measured.swing_next[step]) > FlagLevel().swing;
                if (other) want.push_back(at), swings.push_back(double(measured.swing_next[step]));
            }
            for (const Departure& one : watch.log.departures) {
                got.push_back(one.position), got_swings.push_back(one.swing);
                CHECK(one.given == watch.ids[size_t(one.position)]);
                CHECK(one.full != one.given);
                CHECK(one.flagged == (one.swing > FlagLevel().swing));
            }
            CHECK(got == want);
            // Differences of logits that are f32 sums in another order.
            CHECK(nmse(got_swings, swings) <= 1e-8);
            found += int(got.size()), flagged += watch.log.flagged();
            const Departure* worst = watch.log.worst_flagged(63);
            CHECK((worst == nullptr) == (watch.log.flagged(63) == 0));
            // Taken back within blocks too, nothing is found in what was not looked at.
            for (size_t left = watch.ids.size(); left > 20; left -= 5) {
                watch.hold(std::vector<Token>(watch.ids.begin(), watch.ids.begin() + long(left)));
                CHECK(int(watch.log.departures.size()) <= watch.log.written());
                for (const Departure& one : watch.log.departures) {
                    int in = 0;
                    for (const AuditedBlock& of : watch.log.blocks)
                        in += of.first < one.position && one.position <= of.first + of.tokens;
                    CHECK(in == 1);
                }
            }
            watch.hold(std::vector<Token>(watch.ids.begin(), watch.ids.begin() + 20));
            CHECK(watch.log.departures.empty());
            CHECK(watch.log.written() == 0);
        }
    CHECK(found > flagged);
    CHECK(flagged > 0);
}

TEST_CASE("a few flagged tokens are usual, and more than chance allows are too many") {
    std::vector<float> greedy(1000, 0.1f), drawn(1000, 0.1f);
    for (size_t i = 0; i < 9; i++) greedy[i] = 0.3f;     // with what is stored the 11th is the level
    greedy[9] = greedy[10] = 0.25f;
    for (size_t i = 0; i < 99; i++) drawn[i] = 2;        // of these one in ten is beyond half a nat
    std::map<std::string, std::string> metadata = {{"risk_flags", risk_flags(greedy, drawn)}};
    AuditLog log;
    CHECK(log.levels.flags.greedy.rate == 0.01);
    log.levels = risk_levels(metadata);
    CHECK(log.levels.flags.greedy.swing == doctest::Approx(0.25));
    CHECK(log.levels.flags.greedy.rate == doctest::Approx(0.01).epsilon(1e-2));
    CHECK(log.levels.flags.drawn.swing == doctest::Approx(0.5));
    CHECK(log.levels.flags.drawn.rate == doctest::Approx(0.1).epsilon(1e-2));
    log.blocks.push_back({0, 40, 0.1, 40, 0});
    for (int i = 0; i < 38; i++) log.look_at(i + 1, 7, 7, 0);
    log.look_at(39, 7, 8, 0.2);    // a near tie
    CHECK(log.departures.size() == 1);
    CHECK(!log.too_many_flagged());
    log.look_at(40, 7, 8, 0.9);    // 1 of 40 at 1 %: one time in three
    CHECK(log.flagged() == 1);
    CHECK(!log.too_many_flagged());
    log.blocks.push_back({40, 2, 0.1, 0, 0});
    for (int i = 41; i < 43; i++) log.look_at(i, 7, 8, 0.8 + 0.1 * (i == 42));
    CHECK(log.too_many_flagged());     // 3 of 42
    CHECK(log.too_many_flagged(41));   // 2 of 2
    CHECK(log.worst_flagged()->position == 40);
    CHECK(log.worst_flagged(41)->position == 42);
    log.greedy = false;
    CHECK(!log.too_many_flagged());    // drawn, one in ten is usual
    log.look_at(42, 7, 8, 0.2);        // and a near tie says nothing
    CHECK(log.departures.size() == 4);
    metadata["risk_flags"] = "{\"tokens\": 10, \"greedy\": [0.5, 11], \"drawn\": [0.5, 0]}";
    CHECK_THROWS_AS(risk_levels(metadata), Error);
}

TEST_CASE("what is taken back within a block takes the block's flagged tokens along") {
    AuditLog log;
    log.blocks.push_back({0, 40, 0.1, 40, 0});
    for (int i = 1; i <= 40; i++) log.look_at(i, 7, i == 9 ? 8 : 7, 0.9);
    log.blocks.push_back({40, 8, 0.1, 0, 0});
    for (int i = 41; i <= 48; i++) log.look_at(i, 7, 8, 0.9);
    CHECK(log.too_many_flagged());
    log.take_back(45);    // four of the eight are left, and nothing that says out of how many
    CHECK(log.written() == 40);
    CHECK(log.flagged() == 1);
    CHECK(!log.too_many_flagged());
    log.take_back(40);
    CHECK(log.written() == 39);
    CHECK(log.flagged() == 1);
    log.take_back(39);
    CHECK(log.written() == 0);
    CHECK(log.flagged() == 0);
}

TEST_CASE("a level is the largest of the usual blocks, and a text leaves it by more than chance") {
    std::vector<float> steps(256, 0.01f);
    steps[3] = 0.5f, steps[200] = 0.9f;
    std::map<std::string, std::string> metadata = {{"risk_levels", risk_levels(steps, 128)}};
    AuditLog log;
    log.levels = risk_levels(metadata);
    REQUIRE(log.levels.blocks.size() == 8);
    CHECK(log.levels.blocks[0].blocks == 256);
    CHECK(log.levels.blocks[0].largest == doctest::Approx(0.9));
    CHECK(log.levels.blocks[0].decile == doctest::Approx(0.01));
    CHECK(log.levels.blocks[7].blocks == 2);
    CHECK(log.levels.blocks[7].largest == doctest::Approx((127 * 0.01 + 0.9) / 128));
    auto block = [](int first, double mean) { return AuditedBlock{first, 1, mean, 1, 0}; };
    for (int i = 0; i < 50; i++) log.blocks.push_back(block(i, 0.005));
    CHECK(log.verdict() == AuditLog::Verdict::Usual);
    log.blocks.push_back(block(50, 2));    // once in 51: one time in five
    CHECK(log.verdict() == AuditLog::Verdict::Usual);
    for (int i = 51; i < 53; i++) log.blocks.push_back(block(i, 2));
    CHECK(log.verdict() == AuditLog::Verdict::Above);
    CHECK(log.worst()->first == 50);
    log.take_back(51);
    CHECK(log.verdict() == AuditLog::Verdict::Usual);
    CHECK(log.audited() == 51);
    for (int i = 51; i < 66; i++) log.blocks.push_back(block(i, 0.02));    // 15 of 66 over the decile
    CHECK(log.verdict() == AuditLog::Verdict::Above);
    log.take_back(1);    // of so many blocks the chance of none is no number any more
    for (int i = 1; i < 9000; i++) log.blocks.push_back(block(i, i % 2 ? 0.005 : 0.02));
    CHECK(log.verdict() == AuditLog::Verdict::Above);
    for (AuditedBlock& one : log.blocks) one.mean = one.first % 11 ? 0.005 : 0.02;    // fewer than a tenth
    CHECK(log.verdict() == AuditLog::Verdict::Usual);
    CHECK(AuditLog().verdict() == AuditLog::Verdict::NoLevel);
    metadata["risk_levels"] = "{\"8\": 3}";
    CHECK_THROWS_WITH_AS(risk_levels(metadata), doctest::Contains("no block's level"), Error);
}

TEST_CASE("whole rows that cannot be kept are an error before anything is written") {
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, 1);
    auto cold = [&](const std::string& path) {
        KvCache rows(*model.backend, model.config, 16, DType::F16, nullptr, 16, &path);
    };
    std::string there = (folder.folder / "config.json").string();
    CHECK_THROWS_WITH_AS(cold(there), doctest::Contains("File exists"), Error);
    CHECK_THROWS_WITH_AS(cold((folder.folder / "no" / "rows").string()),
                         doctest::Contains("cannot be made"), Error);
    size_t huge = size_t(1) << 60;
    CHECK_THROWS_WITH_AS(
        Buffer::cold(*model.backend, huge, "rows", (folder.folder / "rows").string()),
        doctest::Contains("no room for rows"), Error);
    CHECK(!std::filesystem::exists(folder.folder / "rows"));
}

// As if the disk beneath a cache failed: the file that its rows lie in has one page.
static void fail_disk(const KvCache& cache, const std::string& path) {
    int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    REQUIRE(ftruncate(file, 4096) == 0);
    void* at = mmap(cache.rows.data, cache.rows.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                    file, 0);
    REQUIRE(at == cache.rows.data);
    close(file);
}

static Floats logits_of(Transformer& transformer, KvCache& cache, const std::vector<Token>& ids) {
    Floats logits(ids.size() * size_t(transformer.model.config.V), NaN);
    transformer.forward(cache, ids, logits.data(), int(ids.size()));
    return logits;
}

TEST_CASE("a disk that fails beneath cold rows ends the audits, and not the text") {
    install_signal_handlers();
    Scratch folder;
    write_tiny_model(MODELS[0], folder.folder.string());
    Model model = Model::open(folder.folder.string(), {"cpu", "auto"}, 2);
    Bases bases = crude(model.config, 4);
    for (bool exact : {false, true}) {
        CAPTURE(exact);
        KvCache cache(*model.backend, model.config, 512, DType::F16, &bases);
        Transformer transformer(model, 512);
        WatchOptions how;
        how.exact = exact, how.block = 8;
        how.cold = WatchOptions::File, how.file = (folder.folder / "rows").string();
        Watch watch(transformer, cache, how, {});
        REQUIRE(watch.whole->rows.bytes > 2 * 4096);
        Sampler sampler(Sampling{}, 0);
        std::vector<Token> prompt = some_ids(200, model.config.V, 1), said;
        auto sink = [&](Token id) {
            said.push_back(id);
            if (said.size() == 20) fail_disk(*watch.whole, (folder.folder / "short").string());
            return true;
        };
        if (exact)
            CHECK_THROWS_WITH_AS(watch.generate(sampler, prompt, 60, {}, sink),
                                 doctest::Contains("rows: the whole rows of --risk are lost"), Error);
        else watch.generate(sampler, prompt, 60, {}, sink);
        CHECK(watch.lost.find("its disk is full or has failed") != std::string::npos);

        // What follows goes in the arithmetic of a session that never had whole rows.
        KvCache later(*model.backend, model.config, 512, DType::F16, &bases);
        KvCache fresh(*model.backend, model.config, 512, DType::F16, &bases);
        Transformer anew(model, 512);
        std::vector<Token> second = some_ids(90, model.config.V, 2);
        CHECK(logits_of(transformer, later, second) == logits_of(anew, fresh, second));

        // What was written is what is written without a disk: the compressed cache's, all of it, or,
        // exact, the full cache's as far as it was verified.
        KvCache other(*model.backend, model.config, 512, DType::F16, exact ? nullptr : &bases);
        std::vector<Token> want;
        generate(transformer, other, sampler, prompt, 60, {}, [&](Token id) {
            want.push_back(id);
            return true;
        });
        CHECK(said.size() >= 20);
        CHECK((exact || said.size() == 60));
        want.resize(said.size());
        CHECK(said == want);
        CHECK(watch.log.audited() < 200);
    }
}

TEST_SUITE_END();
