// --risk and the verbs that measure it, from outside.
#include <cmath>

#include "base/json.h"
#include "base/random.h"
#include "program.h"

using namespace stief;
using namespace stief::testing;

namespace {

const char* const PROMPT = "-p 'The old house stood at the end of the lane, and' -n 60 --context 256";

std::string generated(const std::string& options) {
    Ran ran = run("generate models/parlour " + std::string(PROMPT) + " --quiet " + options);
    CAPTURE(ran.err);
    CHECK(ran.status == 0);
    return ran.out;
}

std::string text_of(int words, uint64_t seed) {
    static const char* const WORDS[] = {"the ", "old ", "man ", "went ", "to ", "her ", "house ", "and ",
                                        "said ", "that ", "it ", "was ", "late. ", "Then "};
    Random random(seed);
    std::string text;
    for (int i = 0; i < words; i++) text += WORDS[random.below(14)];
    return text;
}

// Keys that are null, as numbers are that are not finite; dotted: "windows.kld_audited".
void nulls_of(const Json& json, const std::string& path, std::vector<std::string>& found) {
    if (json.kind == Json::Null) found.push_back(path);
    for (const Json& one : json.items) nulls_of(one, path, found);
    for (const Json::Member& one : json.members)
        nulls_of(one.value, path.empty() ? one.key : path + "." + one.key, found);
}

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("an exact answer through a cache of few bits is the full cache's, byte for byte") {
    const std::string crude = " --cache q4 --window 1,2 --risk exact";
    for (const std::string how : {"--greedy", "--temperature 0.8 --seed 3", "--seed 4 --threads 1"}) {
        CAPTURE(how);
        std::string full = generated(how);
        CHECK(generated(how + crude) == full);
        CHECK(generated(how + crude + " --audit 3") == full);
    }
    Scratch scratch;
    std::string rows = scratch.path("rows");
    CHECK(generated("--greedy --backend cpu" + crude + " --cold '" + rows + "'") ==
          generated("--greedy --backend cpu"));
    CHECK(!file_exists(rows));
}

TEST_CASE("a conversation is the same with exact answers, and says what an audit found") {
    std::string lines = "Good evening.\nAnd who is your friend?\n/stats\n";
    const std::string options = "chat models/parlour --greedy --commands --context 400 ";
    Ran full = run(options, lines), exact = run(options + "--cache q4 --window 0,1 --risk exact", lines);
    CHECK(full.status == 0);
    CHECK(exact.out == full.out);
    CHECK(exact.err.find("of the guesses were right") != exact.err.npos);
    for (const std::string cold : {"ram", "reread"}) {
        Ran audit = run(options + "--cache q4 --window 0,1 --risk audit --audit 16 --cold " + cold, lines);
        CHECK(audit.status == 0);
        CHECK(audit.out == run(options + "--cache q4 --window 0,1", lines).out);
        CHECK(audit.err.find("positions audited: KL ") != audit.err.npos);
        CHECK(audit.err.find("no level stored") != audit.err.npos);
    }
    // Of one bit an element little is left, and a person is told where.
    Ran crude = run(options + "--cache q4 --ages 400:1 --window 0,1 --risk audit", lines);
    CHECK(crude.status == 0);
    CHECK(crude.err.find("may be lost to the compressed cache: after \"") != crude.err.npos);
    CHECK(crude.err.find(" are not the full cache's, ") != crude.err.npos);
    size_t warnings = 0;
    for (size_t at = 0; (at = crude.err.find("may be lost", at)) != crude.err.npos; at++) warnings++;
    CHECK(warnings <= 2);
}

TEST_CASE("with exact answers a saved conversation is the full cache's, and goes on in its words") {
    Scratch scratch;
    std::string file = scratch.path("talk");
    const std::string full = "chat models/parlour --greedy --commands --context 400 --quiet ";
    const std::string exact = full + "--cache q4 --ages 400:1 --window 0,1 --risk exact ";
    const std::string first = "Good evening.\n", second = "And who is your friend?\n";
    std::string whole = run(full, first + second).out;
    std::string begun = run(full, first).out;
    REQUIRE(whole.starts_with(begun));
    const struct {
        const std::string &saves, &loads;
    } pairs[] = {{exact, exact}, {exact, full}, {full, exact}};
    for (const auto& pair : pairs) {
        CAPTURE(pair.saves);
        CAPTURE(pair.loads);
        std::filesystem::remove(file);
        Ran saved = run(pair.saves, first + "/save " + file + "\n");
        CHECK(saved.out == begun);
        Ran loaded = run(pair.loads, "/load " + file + "\n" + second);
        CAPTURE(loaded.err);
        CHECK(loaded.status == 0);
        CHECK(begun + loaded.out == whole);
    }
    const std::string crude = full + "--cache q4 --ages 400:1 --window 0,1 ";
    Ran refused = run(crude, "/load " + file + "\n");
    CHECK(refused.status == 1);
    CHECK(refused.err.find("holds the full cache's rows") < refused.err.size());
    // One that the compressed cache wrote goes on as well, over whole rows that are read anew.
    std::filesystem::remove(file);
    CHECK(run(crude, first + "/save " + file + "\n").status == 0);
    CHECK(run(exact, "/load " + file + "\n" + second).status == 0);
    Ran wrong = run(full, "/load " + file + "\n" + second);
    CHECK(wrong.status == 1);
    CHECK(wrong.out.empty());
}

TEST_CASE("what --risk cannot do is said before a conversation") {
    const struct {
        const char* words;
        int status;
        const char* says;
    } cases[] = {
        {"chat models/parlour --risk exact", 2, "belongs to a compressed cache"},
        {"chat models/parlour --cache q4 --audit 8", 2, "belong to --risk"},
        {"chat models/parlour --cache q4 --cold ram", 2, "belong to --risk"},
        {"chat models/parlour --cache q4 --risk exact --cold reread", 2, "--cold reread keeps nothing"},
        {"chat models/parlour --cache q4 --risk exact --audit 64", 2, "at most 32 tokens"},
        {"chat models/parlour --cache q4 --risk audit --cold models/parlour/config.json --backend cpu", 1,
         "cannot be made"},
        {"chat models/parlour --cache q4 --risk maybe", 2, "one of off, audit, exact"},
        {"risk models/parlour README.md", 2, "--bases FILE, --cache q8 or q4"},
        {"needle models/parlour --lengths 1K,9K", 1, "do not fit"},
        {"needle models/parlour --lengths 12", 2, "from 64"},
        {"needle models/parlour --lengths 2M", 2, "a whole number"},
        {"needle models/parlour --risk audit", 2, "--risk"},
        {"needle models/parlour --audit 8", 2, "belongs to a compressed cache"},
        {"needle models/parlour --lengths 64", 1, "too few for needles"},
        {"needle models/parlour --lengths 256 --file /dev/null", 1, "0 bytes are too few to hide"},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.words));
        Ran ran = run(c.words, "hello\n");
        CAPTURE(ran.err);
        CHECK(ran.status == c.status);
        CHECK(ran.out.empty());
        CHECK(ran.err.find(c.says) != ran.err.npos);
    }
    Ran inspected = run("inspect models/parlour --cache q4 --json");
    CHECK(Json::parse(inspected.out, "inspect").find("memory")->find("whole_rows_of_risk")->integer(
              "whole rows", 1, 1 << 30) > 0);
}

TEST_CASE("risk measures each window, and its page and its JSON are whole") {
    Scratch scratch;
    std::ofstream(scratch.path("text")) << text_of(500, 1);
    std::string page = scratch.path("r.html");
    Ran ran = run("risk models/parlour '" + scratch.path("text") + "' --cache q4 --window 0,1 --context 128 "
                  "--audit 8 --json --quiet --report '" + page + "'");
    CAPTURE(ran.err);
    REQUIRE(ran.status == 0);
    Json json = Json::parse(ran.out, "risk");
    const Json& windows = *json.find("windows");
    REQUIRE(windows.items.size() >= 3);
    double sum = 0, tokens = 0;
    for (const Json& one : windows.items) {
        double n = one.find("tokens")->number("tokens");
        sum += n * one.find("kld")->number("kld"), tokens += n;
        CHECK(one.find("kld")->number("kld") > 0);
        CHECK(one.find("tail")->number("tail") > 0);
        CHECK(one.find("flagged")->number("flagged") <= n);
        CHECK(one.find("verdict")->string("verdict") == "no level stored");
    }
    CHECK(json.find("kld")->number("kld") == doctest::Approx(sum / tokens));
    CHECK(read_text(page).find("</svg>") != std::string::npos);
    std::vector<std::string> nulls;
    nulls_of(json, "", nulls);
    CHECK(nulls == std::vector<std::string>{"level", "level_decile"});    // none is stored

    // The same as perplexity says.
    Ran perplexity = run("perplexity models/parlour '" + scratch.path("text") +
                         "' --cache q4 --window 0,1 --context 128 --json --quiet");
    Json other = Json::parse(perplexity.out, "perplexity");
    CHECK(other.find("kld_mean")->number("kld") == doctest::Approx(sum / tokens).epsilon(1e-4));
}

TEST_CASE("a window of which an audit saw nothing decides no correlation, and is no number") {
    Scratch scratch;
    std::ofstream(scratch.path("text")) << text_of(500, 1);
    std::string words = "risk models/parlour '" + scratch.path("text") +
                        "' --cache q4 --window 0,1 --context 128 --quiet ";
    Json seldom = Json::parse(run(words + "--json --audit 128").out, "risk");
    Json often = Json::parse(run(words + "--json --audit 8").out, "risk");
    const std::vector<Json>& windows = seldom.find("windows")->items;
    REQUIRE(windows.size() >= 3);
    CHECK(windows[0].find("kld_audited") != nullptr);
    CHECK(windows[1].find("kld_audited") == nullptr);    // one block each, and one in eight is looked at
    CHECK(seldom.find("coverage")->find("correlation") == nullptr);
    REQUIRE(seldom.find("tail_correlation") != nullptr);
    double tail = often.find("tail_correlation")->number("tail");
    CHECK(std::abs(seldom.find("tail_correlation")->number("tail") - tail) <= 1e-9);
    std::string said = run(words + "--audit 128").out;
    CHECK(said.find("nan") == said.npos);
    CHECK(said.find("whole: not to be had (windows: 1)") != said.npos);
}

TEST_CASE("needles are scored only where the full cache finds them, and exact loses none") {
    const std::string options = "needle models/parlour --lengths 512 --tries 1 --json --quiet ";
    for (const std::string cache : {"", "--cache q4 --window 0,1", "--cache q4 --window 0,1 --audit 2",
                                    "--cache q4 --window 0,1 --audit 64"}) {
        CAPTURE(cache);
        Ran ran = run(options + cache);
        CAPTURE(ran.err);
        REQUIRE(ran.status == 0);
        Json json = Json::parse(ran.out, "needle");
        const std::vector<Json>& rows = json.find("rows")->items;
        REQUIRE(rows.size() == 4);
        for (const Json& row : rows) {
            auto number = [&](const char* key) { return row.find(key)->integer(key, 0, 4); };
            CHECK(number("asked") == 4);
            CHECK(number("tries") == 1);
            CHECK((row.find("with_risk") == nullptr) == cache.empty());
            if (cache.empty()) continue;
            CHECK(number("compressed") <= number("full"));
            CHECK(number("with_risk") == number("full"));
            CHECK(number("warned") <= number("flagged"));
            CHECK(number("flagged") <= number("noticed"));
            CHECK(number("noticed") <= number("full") - number("compressed"));
            CHECK(number("kept_warned") <= number("kept_flagged"));
            CHECK(number("kept_flagged") == 0);    // what was said is what the full cache says
        }
        CHECK(run(options + cache).out == ran.out);
    }
}

TEST_SUITE_END();
