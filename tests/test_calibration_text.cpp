// What calibrate learns from: several texts evenly, marked texts with their conversations, and the
// text that ships.
#include <algorithm>
#include <cmath>
#include <set>

#include "calibrate/texts.h"
#include "formats/marked_text.h"
#include "program.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

// Text i holds the ids 1000 i, 1000 i + 1, …
std::vector<NamedText> counting(const std::vector<size_t>& lengths) {
    std::vector<NamedText> texts;
    for (size_t i = 0; i < lengths.size(); i++) {
        texts.push_back({format("t%zu", i), {}});
        for (size_t n = 0; n < lengths[i]; n++) texts[i].ids.push_back(Token(1000 * i + n));
    }
    return texts;
}

std::vector<size_t> drawn(const Sequences& all, size_t texts) {
    std::vector<size_t> count(texts);
    for (size_t text : all.text) count[text]++;
    return count;
}

const std::string MARKED =
    "=== stief text\nfor people\n=== part talk\n=== conversation\n=== system\nBe brief.\n=== user\n\n"
    "Hello\nthere\n\n=== assistant\nGood day.\n=== conversation\n=== user\nWhy?\n=== assistant\n"
    "Because.\n=== document\nplain\n=== part prose\nIt was\n\na night.\n=== document\nAnd a day.\n";

}  // namespace

TEST_CASE("sequences are drawn evenly from all texts, and what a short one lacks the others give") {
    const struct {
        std::vector<size_t> tokens;
        size_t at_most;
        std::vector<size_t> want;
        const char* why;
    } cases[] = {
        {{400}, 7, {7}, "one text gives all"},
        {{400, 400}, 8, {4, 4}, "half each"},
        {{400, 400, 400}, 8, {3, 3, 2}, "what is left over goes to the first"},
        {{900, 25, 400}, 9, {4, 1, 4}, "a short text gives what it has"},
        {{30, 30}, 100, {1, 1}, "no more than there are"},
        {{400, 400, 400}, 2, {1, 1, 1}, "each gives one, whatever was asked for"},
        {{19, 400}, 4, {0, 4}, "none of a text that holds none"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.why);
        std::vector<NamedText> texts = counting(c.tokens);
        Random random(1);
        Sequences cut = cut_sequences(texts, 20, c.at_most, 512, random);
        Sequences first = first_windows(texts, 20, c.at_most);
        CHECK(drawn(cut, texts.size()) == c.want);
        CHECK(drawn(first, texts.size()) == c.want);
        for (const Sequences* all : {&cut, &first})
            for (size_t s = 0; s < all->count(); s++) {
                REQUIRE(all->ids[s].size() == 20);
                CHECK(size_t(all->ids[s][0]) / 1000 == all->text[s]);
                CHECK(all->ids[s][19] - all->ids[s][0] == 19);
            }
        std::set<size_t> early(cut.text.begin(),
                               cut.text.begin() + std::min<ptrdiff_t>(2, ptrdiff_t(cut.count())));
        size_t full = size_t(std::count_if(c.want.begin(), c.want.end(), [](size_t n) { return n > 0; }));
        CHECK(early.size() == std::min<size_t>(2, full));  // a few of them are of all texts
    }
}

TEST_CASE("the divergence of each text is the mean over its own windows") {
    std::vector<NamedText> texts = counting({60, 30});
    Sequences windows = first_windows(texts, 20, 9);
    Measured measured;
    double sums[2] = {};
    for (size_t s = 0; s < windows.count(); s++)
        for (int i = 0; i < 19; i++) {
            measured.step.push_back(float(s * 100 + size_t(i)));
            sums[windows.text[s]] += double(measured.step.back());
        }
    std::vector<TextDivergence> all = by_text(measured, windows, texts);
    REQUIRE(all.size() == 2);
    CHECK((all[0].tokens == 57 && all[1].tokens == 19));
    CHECK(std::abs(all[0].mean - sums[0] / 57) <= 1e-12 * sums[0]);
    CHECK(std::abs(all[1].mean - sums[1] / 19) <= 1e-12 * sums[1]);
    CHECK(names_of(texts) == "t0, t1");
    CHECK(names_of({{"a: x", {}}, {"a: y", {}}, {"b", {}}, {"b: z", {}}}) == "a: x, y, b, b: z");
    measured.step.pop_back();
    CHECK_THROWS_AS(by_text(measured, windows, texts), Error);
}

TEST_CASE("a marked text has parts, documents and conversations, without the space around them") {
    CHECK(MarkedText::is_marked(MARKED));
    CHECK(!MarkedText::is_marked("=== stief texts\n"));
    CHECK(!MarkedText::is_marked("It was a night.\n"));
    MarkedText text = MarkedText::parse(MARKED, "m");
    REQUIRE(text.part.size() == 2);
    const MarkedText::Part &talk = text.part[0], &prose = text.part[1];
    CHECK((talk.name == "talk" && prose.name == "prose"));
    REQUIRE((talk.piece.size() == 3 && talk.piece[0].size() == 3 && prose.piece.size() == 2));
    CHECK((talk.piece[0][1].role == "user" && talk.piece[0][1].content == "Hello\nthere"));
    CHECK((talk.piece[2][0].role.empty() && talk.piece[2][0].content == "plain"));
    CHECK(prose.piece[0][0].content == "It was\n\na night.");
}

TEST_CASE("marks that cannot stand where they do are refused with their line") {
    const struct {
        const char *text, *says;
    } cases[] = {
        {"=== stief text\n=== user\n", "line 2: '=== user' before any"},
        {"=== stief text\n=== part a\n=== user\nx\n", "line 3: '=== user' outside"},
        {"=== stief text\n=== part a\n=== robot\n", "line 3: '=== robot' is no mark"},
        {"=== stief text\n=== part a\n=== conversation\n=== user\nx\n=== system\n", "line 6"},
        {"=== stief text\n=== part a\n=== conversation\nx\n", "line 4: 'x' stands before"},
        {"=== stief text\n=== part \nx\n", "states no name"},
        {"=== stief text\n=== part a\n=== part b\nx\n", "part a is empty"},
        {"=== stief text\nnothing\n", "no '=== part NAME'"},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.says));
        CHECK_THROWS_WITH_AS(MarkedText::parse(c.text, "m"), doctest::Contains(c.says), Error);
    }
}

TEST_CASE("conversations are encoded in the model's template, without BOS, or as plain text") {
    Tokenizer tokenizer = Tokenizer::open("models/parlour");
    ChatTemplate chat(tokenizer, chat_form("models/parlour", tokenizer, "", ""));
    MarkedText::Part part = MarkedText::parse(MARKED, "m").part[0];
    std::string header = "<|start_header_id|>", after = "<|end_header_id|>\n\n", end = "<|eot_id|>";
    CHECK(tokenizer.decode(encode_part(part, tokenizer, &chat)) ==
          header + "system" + after + "Be brief." + end + header + "user" + after + "Hello\nthere" + end +
              header + "assistant" + after + "Good day." + end + header + "user" + after + "Why?" + end +
              header + "assistant" + after + "Because." + end + "plain\n\n");
    CHECK(tokenizer.decode(encode_part(part, tokenizer, nullptr)) ==
          "Be brief.\n\nHello\nthere\n\nGood day.\n\nWhy?\n\nBecause.\n\nplain\n\n");
}

TEST_CASE("the text that ships is small, has all its kinds, and each of them turns or documents") {
    std::string bytes = read_text("models/calibration.txt");
    CHECK(bytes.size() <= 1000000);
    std::set<std::string> names;
    size_t turns = 0;
    for (const MarkedText::Part& part : MarkedText::parse(bytes, "it").part) {
        names.insert(part.name);
        CHECK(part.piece.size() >= 20);
        for (const MarkedText::Piece& piece : part.piece)
            for (const MarkedText::Turn& turn : piece) turns += turn.role == "assistant";
    }
    CHECK(names == std::set<std::string>{"prose", "dialogue", "conversations", "code",
                                         "letters and lists", "sums and tables"});
    CHECK(turns >= 300);
}

TEST_SUITE_END();

TEST_SUITE_BEGIN("commands");

namespace {

// A tiny model with the vocabulary and the template of the one that ships.
struct Speaking {
    Scratch scratch;
    std::string model = scratch.path("m"), bases = scratch.path("b");
    std::string options = " --tokens 64 --context 32 --window 4,0 --threads 2 --quiet";

    Speaking() {
        std::filesystem::create_directory(model);
        write_tiny_model({.why = "texts", .V = 4096}, model);
        for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
            std::filesystem::copy_file(std::string("models/parlour/") + name, model + "/" + name);
    }
    Ran calibrate(const std::string& more) {
        return run("calibrate " + model + " -o " + bases + options + " " + more);
    }
};

std::vector<std::string> texts_of(const std::string& json) {
    std::vector<std::string> names;
    for (size_t at = 0; (at = json.find("\"text\": \"", at)) != json.npos;) {
        at += 9;
        names.push_back(json.substr(at, json.find('"', at) - at));
    }
    return names;
}

}  // namespace

TEST_CASE("calibrate learns from the text that ships, or from several, and measures on each") {
    Speaking speaking;
    Ran shipped = speaking.calibrate("--json");
    CAPTURE(shipped.err);
    REQUIRE(shipped.status == 0);
    CHECK(texts_of(shipped.out).size() == 6);
    CHECK(texts_of(shipped.out)[2] == "calibration.txt: conversations");

    std::string a = speaking.scratch.path("a"), b = speaking.scratch.path("b.txt");
    std::string words;
    for (int i = 0; i < 300; i++) words += format("word %d and ", i);
    std::ofstream(a) << words;
    std::ofstream(b) << MARKED << words;
    Ran several = speaking.calibrate(a + " " + b + " --json");
    CHECK(several.status == 1);  // two words of talk are no sequence
    CHECK(several.err.find(b + ": talk: ") != several.err.npos);
    std::ofstream(b) << words << words;
    several = speaking.calibrate(a + " " + b + " --json");
    CAPTURE(several.err);
    REQUIRE(several.status == 0);
    CHECK(texts_of(several.out) == std::vector<std::string>{a, b});
    Ran other = speaking.calibrate(a + " --holdout " + b + " --json");
    REQUIRE(other.status == 0);
    CHECK(texts_of(other.out) == std::vector<std::string>{b});
}

TEST_CASE("without a text and without the one that ships, the error says what to give") {
    Speaking speaking;
    std::string alone = speaking.scratch.path("x/y/z");
    std::filesystem::create_directories(alone);
    std::filesystem::copy_file(program(), alone + "/stief");
    std::string command = alone + "/stief calibrate " + speaking.model + " -o " + speaking.bases +
                          " > /dev/null 2> " + speaking.scratch.path("err");
    CHECK(WEXITSTATUS(std::system(command.c_str())) == 1);
    std::string err = read_text(speaking.scratch.path("err"));
    CHECK(err.find("give a text: stief calibrate MODEL TEXT -o BASES") != err.npos);
    CHECK(std::count(err.begin(), err.end(), '\n') == 1);
    // The text that ships is not written over.
    Ran over = run("calibrate " + speaking.model + " -o models/calibration.txt");
    CHECK(over.status == 1);
    CHECK(over.err.find("the text to learn from") != over.err.npos);
}

TEST_SUITE_END();
