// The program from outside: what is typed, what comes out, the exit status.
#include <cmath>
#include <cstring>

#include "backends.h"
#include "base/json.h"
#include "commands/args.h"
#include "program.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

static size_t lines(const std::string& text) {
    size_t n = 0;
    for (char c : text) n += c == '\n';
    return n;
}

TEST_SUITE_BEGIN("commands");

TEST_CASE("help names every verb, and each verb's help every option it takes") {
    Ran all = run("--help");
    CHECK(all.status == 0);
    Args args;
    REQUIRE(verbs.size() >= 10);
    for (const Verb& verb : verbs) {
        const std::string name = verb.name;
        CAPTURE(name);
        CHECK(all.out.find("\n  " + name + " ") != all.out.npos);
        Ran one = run(name + " --help");
        CHECK(one.status == 0);
        CHECK(one.out.find("usage: stief " + name + " ") == 0);
        for (const Flag& flag : flags(args)) {
            CAPTURE(std::string(flag.name));
            bool listed = one.out.find("\n  " + std::string(flag.name) + " ") != one.out.npos;
            CHECK(listed == takes(name, flag.name));
        }
        CHECK(takes(name, "--help"));
        CHECK(run("help " + name).out == one.out);
    }
    CHECK_FALSE(takes("needle", "--risk"));
    CHECK(run("--version").out == "stief " STIEF_VERSION "\n");
}

TEST_CASE("wrong usage exits with 2 and the line that would be right") {
    const struct {
        const char *words, *says;
    } cases[] = {
        {"", "usage: stief VERB MODEL"},
        {"chta x", "did you mean chat?"},
        {"generate", "no MODEL given"},
        {"generate models/parlour --tokns 3", "did you mean --tokens?"},
        {"generate models/parlour --temp 3", "did you mean --temperature?"},
        {"generate models/parlour -n", "--tokens needs N"},
        {"generate models/parlour -n 0", "from 1"},
        {"generate models/parlour -n 2.5", "whole number"},
        {"generate models/parlour -n 99999999999", "whole number"},
        {"generate models/parlour --top-p 1.5", "from 0 to 1"},
        {"generate models/parlour --temperature nan", "number"},
        {"generate models/parlour --greedy=yes", "takes no value"},
        {"generate models/parlour --seed -2", "from 0 to 18446744073709551615, or -1"},
        {"generate models/parlour --seed 18446744073709551616", "18446744073709551615"},
        {"calibrate models/parlour x -o y --keep 250%", "from 0% to 100%, not '250%'"},
        {"calibrate models/parlour x -o y --keep 25", "from 0 to 1, or from 0% to 100%"},
        {"calibrate models/parlour x -o y --method star --objective layer",
         "--method star belongs to --objective model"},
        {"calibrate models/parlour x -o y --method star --ppl-budget 1%", "steered to --keep"},
        {"calibrate models/parlour x -o y --method star --ages 64:4", "other caches have one format"},
        {"calibrate models/parlour x -o y --method star --metric query",
         "--metric belongs to --objective layer"},
        {"calibrate models/parlour x -o y --method identity --metric query",
         "--method identity keeps the coordinates"},
        {"calibrate models/parlour x -o y --method identity --metric output", "--metric output"},
        {"calibrate models/parlour x -o y --method identity --steps 3", "identity has none"},
        {"calibrate models/parlour x -o y --method eigen --steps 3", "eigen has none"},
        {"calibrate models/parlour x -o y --cache q8", "one of f16, bf16, f32, not 'q8'"},
        {"calibrate models/parlour x -o y --method eigen --value-basis joint",
         "--value-basis joint belongs to --objective model"},
        {"calibrate models/parlour x -o y --context 128 --ages 32:16,256:4",
         "nothing in a sequence of 128 tokens is older "},
        {"help chta", "did you mean chat?"},
        {"generate models/parlour -p a --greedy --temperature 0.7", "give one"},
        {"generate models/parlour -p a --cache q4 --ages 0:8", "ages from 1"},
        {"generate models/parlour --temperature 5%", "a number from 0 to 100"},
        {"chat models/parlour --message a --commands", "--commands belongs to lines"},
        {"generate models/parlour extra", "one argument too many"},
        {"generate models/parlour -p a -f b", "give one of them"},
        {"perplexity models/parlour", "too few arguments"},
        {"perplexity models/parlour x --protocol y", "chunks, llama.cpp, strided"},
        {"perplexity models/parlour x --cache f8", "f16, bf16, f32"},
        {"generate models/parlour -p x --backend quantum", "auto, cpu, cuda"},
        {"bench models/parlour --depth 1,,2", "--depth takes"},
        {"logits models/parlour -o x", "--ids"},
        {"logits models/parlour --ids 1", "-o OUT"},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.words));
        Ran ran = run(c.words);
        CHECK(ran.status == 2);
        CHECK(ran.out.empty());
        CHECK(ran.err.find("error: ") == 0);
        CAPTURE(ran.err);
        CHECK(ran.err.find(c.says) != ran.err.npos);
    }
}

TEST_CASE("shares may be per cent, seeds have 64 bits, -1 stands for what is not fixed") {
    auto parsed = [](std::vector<std::string> more) {
        std::vector<std::string> words = {more[0], "M"};
        if (more[0] == "calibrate") words.insert(words.end(), {"T", "-o", "b"});
        words.insert(words.end(), more.begin() + 1, more.end());
        return parse_args(words);
    };
    CHECK(parsed({"calibrate", "--keep", "25%"}).keep == 0.25);
    CHECK(parsed({"calibrate", "--keep=0.25"}).keep == 0.25);
    CHECK(parsed({"calibrate", "--keep", "100%", "--error-budget", "5%"}).error_budget == 0.05);
    CHECK(parsed({"calibrate", "--ppl-budget", "1%"}).ppl_budget == 1);
    CHECK(parsed({"generate", "--top-p", "90%"}).top_p == 0.9);
    CHECK(parsed({"generate", "--top-k", "-1"}).top_k == -1);
    Seed largest = parsed({"generate", "--seed", "18446744073709551615"}).seed;
    CHECK((largest.given && !largest.drawn && largest.value == UINT64_MAX));
    CHECK(parsed({"generate", "--seed", "-1"}).seed.drawn);
    CHECK(!parsed({"generate"}).seed.given);
}

TEST_CASE("sampling that generation_config.json gets wrong stops only who samples") {
    Scratch scratch;
    std::filesystem::copy("models/parlour", scratch.path("m"));
    std::ofstream(scratch.path("m/generation_config.json")) << R"({"top_p": 7})";
    std::string model = scratch.path("m");
    CHECK(run("inspect " + model).status == 0);
    CHECK(run("tokenize " + model + " a").status == 0);
    CHECK(run("logits " + model + " --ids 1 -o " + scratch.path("o")).status == 0);
    CHECK(run("generate " + model + " -p a -n 1").err.find("top_p") != std::string::npos);
    std::ofstream(scratch.path("m/generation_config.json"))
        << R"({"top_k": -1, "repetition_penalty": 1.3})";
    Ran ran = run("generate " + model + " -p a -n 3 --greedy");
    CHECK(ran.status == 0);
    CHECK(ran.err.find("repetition_penalty 1.3") != std::string::npos);
    CHECK(ran.err.find("repetition") == ran.err.rfind("repetition"));
}

TEST_CASE("calibrate --exact learns for an f32 cache, unless --cache says otherwise") {
    Scratch scratch;
    // Of a budget that is too small for anything it is said how many bytes that is.
    auto says = [&](const std::string& more) {
        return run("calibrate models/parlour models/calibration.txt --bits 16 --keep 0.001 --quiet -o " +
                   scratch.path("b") + more).err;
    };
    for (const std::string objective : {" --objective model", " --objective layer"}) {
        CAPTURE(objective);
        CHECK(says(objective).find("is 3.1 bytes a token") != std::string::npos);
        CHECK(says(objective + " --exact").find("is 6.1 bytes a token") != std::string::npos);
        CHECK(says(objective + " --exact --cache bf16").find("is 3.1 bytes a token") != std::string::npos);
    }
}

TEST_CASE("what the machine or a file gets wrong exits with 1 and one line") {
    const struct {
        const char *words, *says;
    } cases[] = {
        {"chat no/such/folder", "no/such/folder"},
        {"inspect models", "config.json"},
        {"generate models/parlour -p x --isa mmx", "mmx"},
        {"generate models/parlour -p x --context 4096", "2048"},
        {"generate models/parlour -f no-such-file", "no-such-file"},
        {"logits models/parlour --ids '1 x' -o out.tmp", "'x'"},
        {"logits models/parlour --ids 4096 -o out.tmp", "vocabulary of 4096"},
        {"logits models/parlour --ids 1 -o no/such/folder/out", "no/such/folder"},
        {"tokenize models/parlour --decode 99999", "99999"},
        {"perplexity models/parlour /dev/null --quiet", "too few"},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.words));
        Ran ran = run(c.words);
        CHECK(ran.status == 1);
        CHECK(ran.err.find("error: ") == 0);
        CHECK(lines(ran.err) == 1);
        CAPTURE(ran.err);
        CHECK(ran.err.find(c.says) != ran.err.npos);
    }
    CHECK(!file_exists("out.tmp"));
    Ran full = run("tokenize models/parlour hello", "", "/dev/full");
    CHECK(full.status == 1);
    CHECK(full.err == "error: cannot write to standard output: No space left on device\n");
}

TEST_CASE("--backend cuda without a device is one line that says why not") {
    for (const Variant& one : variants())
        if (one.device()) return skip("a device is here");
    Ran ran = run("generate models/parlour -p x --backend cuda");
    CHECK(ran.status == 1);
    CHECK(ran.err.find("error: --backend cuda: ") == 0);
    CHECK(lines(ran.err) == 1);
}

TEST_CASE("tokenize takes standard input byte for byte and gives it back") {
    std::string text =
        "Voilà, 12345 naïve\r\n\n  “quotes” \xff\xfe 🏃‍♂️ <|eot_id|>\n";
    Ran ids = run("tokenize models/parlour", text);
    CHECK(ids.status == 0);
    CHECK(lines(ids.out) == 1);
    CHECK(ids.out.find("4089") == ids.out.npos);
    CHECK(run("tokenize models/parlour --decode", ids.out).out == text);
    CHECK(run("tokenize models/parlour --special '<|eot_id|>'").out == "4089\n");
    CHECK(run("tokenize models/parlour", "").out == "\n");
}

TEST_CASE("the same seed gives the same text, on one thread or two") {
    std::string words = "generate models/parlour -p 'The captain' -n 30 --quiet --seed 7";
    Ran one = run(words + " --threads 1"), two = run(words + " --threads 2");
    CHECK(one.status == 0);
    CHECK(one.err.empty());
    CHECK(one.out == two.out);
    CHECK(one.out != run(words + "8").out);
    Ran echo = run(words + " --echo");
    CHECK(echo.out == "The captain" + one.out);
    CHECK(run("generate models/parlour -n 30 --quiet --seed 7 -f -", "The captain").out == one.out);
}

TEST_CASE("logits writes (T, V) floats, in a folder without a tokenizer too") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    std::string out = scratch.path("logits");
    std::ofstream(scratch.path("ids")) << "1 2, 3\n4\n";
    Ran ran = run("logits " + scratch.folder.string() + " --ids-file " + scratch.path("ids") +
                  " -o " + out);
    CHECK(ran.status == 0);
    std::string first = read_text(out);
    CHECK(first.size() == 4 * 64 * sizeof(float));
    CHECK(run("logits " + scratch.folder.string() + " --ids '1 2 3 4' -o " + out).status == 0);
    CHECK(read_text(out) == first);
}

TEST_CASE("perplexity says of every compressed cache how much of what was read was compressed") {
    const std::string words =
        "perplexity models/parlour models/parlour/MODEL.md --context 128 --chunks 1 --quiet";
    const std::string says = "% of what was read of it was compressed";
    CHECK(run(words + " --cache f32").out.find(says) == std::string::npos);
    for (const std::string cache : {" --cache q8", " --cache q4"}) {
        CAPTURE(cache);
        Ran ran = run(words + cache);
        CHECK(ran.status == 0);
        CHECK(ran.out.find(says) != ran.out.npos);
        CHECK(ran.out.find("against full: ") != ran.out.npos);
    }
}

TEST_CASE("perplexity, inspect and bench print one JSON object and nothing else on stdout") {
    Ran ran = run(
        "perplexity models/parlour models/parlour/MODEL.md --context 128 --json --compare exact");
    CHECK(ran.status == 0);
    Json json = Json::parse(ran.out, "stdout");
    for (const char* key :
         {"perplexity", "stderr", "tokens", "context", "seconds", "cache_bytes_per_token",
          "perplexity_full", "kld_mean", "kld_p99", "kld_max", "same_top", "compressed_share"}) {
        CAPTURE(std::string(key));
        REQUIRE(json.find(key) != nullptr);
        CHECK(json.find(key)->kind == Json::Number);
    }
    CHECK(json.find("cache_bytes_per_token")->text == "3072");
    CHECK(json.find("kld_mean")->number("kld_mean") <= 1e-4);

    Json inspected = Json::parse(run("inspect models/parlour --json").out, "stdout");
    CHECK(inspected.find("parameters")->number("") == 11015040);

    Ran bench = run("bench models/parlour --prompt 8 --generate 2 --repeat 1 --depth 0,16 --json");
    CHECK(bench.status == 0);
    Json measured = Json::parse(bench.out, "stdout");
    for (const std::string risk : {"audit", "exact"}) {
        Ran more = run("bench models/parlour --prompt 8 --generate 3 --repeat 1 --depth 0,80 --cache q4 "
                       "--json --risk " + risk);
        CAPTURE(more.err);
        REQUIRE(more.status == 0);
        Json all = Json::parse(more.out, "stdout");
        const std::vector<Json>& rows = all.find("rows")->items;
        REQUIRE(rows.size() == 5);
        CHECK(rows[4].find("test")->text == (risk == "exact" ? "verify" : "audited"));
        CHECK(rows[4].find("tokens_per_second")->find("median")->number("") > 0);
    }
    CHECK(run("bench models/parlour --risk exact").status == 2);
    REQUIRE(measured.find("rows") != nullptr);
    CHECK(measured.find("rows")->items.size() == 3);
    CHECK(measured.find("bandwidth_gbs")->number("") > 0);
    CHECK(measured.find("matrix_tflops")->number("") > 0);
    REQUIRE(measured.find("rows")->items[0].find("share_of_matrix_rate") != nullptr);
    CHECK(measured.find("rows")->items[1].find("share_of_matrix_rate") == nullptr);
    CHECK(measured.find("rows")->items[2].find("resident_bytes")->number("") > 0);
    for (const Json& row : measured.find("rows")->items) {  // shares are of the bound that is shown
        double share = row.find("share_of_bandwidth")->number("");
        double gbs = row.find("gbs")->number("");
        double bound = measured.find("bandwidth_gbs")->number("");
        CHECK(std::abs(share * bound / gbs - 1) <= 1e-6);
        CHECK(row.find("above_bandwidth")->flag("") == (share > 1));
    }
}

TEST_SUITE_END();
