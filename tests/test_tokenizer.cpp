// Text to ids and back. Truth: ids that Hugging Face's tokenizers 0.23.3 gives, where they are
// stated; else a BPE that looks for the best pair anew before each merge.
#include <algorithm>

#include "base/file.h"
#include "base/random.h"
#include "formats/pretokenize.h"
#include "formats/unicode.h"
#include "testing.h"
#include "tokenizer_files.h"

TEST_SUITE_BEGIN("formats");
using namespace stief;
using namespace stief::testing;

namespace {

const std::string PARLOUR = "models/parlour";

std::vector<std::string> pieces(std::string_view text, Splitter splitter = llama3_piece_end) {
    std::vector<std::string> out;
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
        end = splitter(text, begin);
        REQUIRE(end > begin);
        REQUIRE(end <= text.size());
        out.emplace_back(text.substr(begin, end - begin));
    }
    return out;
}

// Merges among few tokens, so that they overlap in every way; some make a token that exists.
std::vector<Pair> random_merges(Random& random, size_t count) {
    std::vector<std::string> tokens = {"a", "b", "c", " ", "\xc3", "\xa9", "\xff", "1"};
    std::vector<Pair> merges;
    std::set<Pair> known;
    while (merges.size() < count) {
        Pair pair = {tokens[random.below(tokens.size())], tokens[random.below(tokens.size())]};
        if (pair.first.size() + pair.second.size() > 12 || !known.insert(pair).second) continue;
        merges.push_back(pair);
        std::string whole = pair.first + pair.second;
        if (std::find(tokens.begin(), tokens.end(), whole) == tokens.end()) tokens.push_back(whole);
    }
    return merges;
}

std::string random_text(Random& random, size_t length) {
    static const std::vector<std::string> parts = {
        "a", "b", "c", "a", "ab", " ", "\xc3\xa9", "\xff", "1", "\xc3", "\n", "'s", "\xe2\x80\x94"};
    size_t kinds = 1 + random.below(parts.size());        // few kinds: long pieces
    std::string text;
    while (text.size() < length) text += parts[random.below(kinds)];
    return text;
}

// rank(left, right): which pair is first, −1 for none. Recomputes everything before every merge.
template <class Rank>
std::vector<std::string> merge_naively(std::string_view piece, const Rank& rank) {
    std::vector<std::string> parts;
    for (char c : piece) parts.emplace_back(1, c);
    for (;;) {
        size_t best = 0;
        int lowest = -1;
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            int r = rank(parts[i], parts[i + 1]);
            if (r >= 0 && (lowest < 0 || r < lowest)) lowest = r, best = i;
        }
        if (lowest < 0) return parts;
        parts[best] += parts[best + 1];
        parts.erase(parts.begin() + std::ptrdiff_t(best) + 1);
    }
}

template <class Rank>
void compare_with_naive(const Tokenizer& tokenizer, const std::vector<Pair>& merges,
                        bool whole_first, Random& random, const Rank& rank) {
    std::map<std::string, Token> ids;
    for (const std::string& token : tokens_of(merges)) ids.emplace(token, Token(ids.size()));
    for (int i = 0; i < 60; i++) {
        std::string text = random_text(random, random.below(i % 10 == 0 ? 600 : 90));
        std::vector<Token> want;
        for (const std::string& piece : pieces(text)) {
            if (whole_first && ids.contains(piece)) {
                want.push_back(ids[piece]);
                continue;
            }
            for (const std::string& part : merge_naively(piece, rank)) want.push_back(ids[part]);
        }
        CAPTURE(quote(text));
        REQUIRE(tokenizer.encode(text) == want);
        REQUIRE(tokenizer.decode(want) == text);
    }
}

}  // namespace

TEST_CASE("characters are decoded strictly, a byte that begins none is one of its own") {
    constexpr uint32_t INVALID = Character::INVALID;
    const struct { const char* bytes; uint32_t code, length; } cases[] = {
        {"A", 'A', 1}, {"\xc3\xa9", 0xe9, 2}, {"\xe4\xb8\xad", 0x4e2d, 3},
        {"\xf0\x9f\x98\x8a", 0x1f60a, 4}, {"\xf4\x8f\xbf\xbf", 0x10ffff, 4},
        {"\xf4\x90\x80\x80", INVALID, 1}, {"\xc0\x80", INVALID, 1}, {"\xe0\x80\x80", INVALID, 1},
        {"\xed\xa0\x80", INVALID, 1}, {"\xe4\xb8", INVALID, 1}, {"\x80", INVALID, 1},
        {"\xff", INVALID, 1}};
    for (auto c : cases) {
        CAPTURE(c.code);
        Character got = character_at(c.bytes, 0);
        CHECK(got.code == c.code);
        CHECK(got.length == c.length);
    }
}

TEST_CASE("letters, numbers and spaces are those of Unicode 16") {
    size_t count[4] = {};
    for (uint32_t c = 0; c < 0x110000; c++) count[size_t(class_of(c))]++;
    CHECK(count[size_t(CharClass::Letter)] == 141028);
    CHECK(count[size_t(CharClass::Number)] == 1911);
    CHECK(count[size_t(CharClass::Space)] == 25);
    CHECK(class_of(0x10ffff) == CharClass::Other);
    CHECK(class_of(Character::INVALID) == CharClass::Other);
}

TEST_CASE("text is split as the pattern splits it") {
    const struct { const char* text; std::vector<std::string> want; } cases[] = {
        {"Hello, world!", {"Hello", ",", " world", "!"}},
        {"it's I'VE 'sall 'ſo'K", {"it", "'s", " I", "'VE", " '", "sall", " '", "ſo", "'K"}},
        {"'ſo", {"'ſ", "o"}},
        {"12345 6", {"123", "45", " ", "6"}},
        {"  two  spaces ", {" ", " two", " ", " spaces", " "}},
        {"a \n\n b\t\nc", {"a", " \n\n", " b", "\t\n", "c"}},
        {"x = {1}; \r\n\r\n  y", {"x", " =", " {", "1", "};", " \r\n\r\n", " ", " y"}},
        {"é中文 ٣٤٥٦ ²", {"é中文", " ", "٣٤٥", "٦", " ", "²"}},
        {"'llama 'r 're", {"'ll", "ama", " '", "r", " '", "re"}},
        {"\u00a0\u00a0x \u3000", {"\u00a0", "\u00a0x", " \u3000"}},
        {"!?\n\n!", {"!?\n\n", "!"}},
        {"a\u0301bc\u0301 \u0301", {"a", "\u0301bc", "\u0301", " \u0301"}},
        {"\n \n  z", {"\n \n", " ", " z"}},
        {"\xff\xfez \xff", {"\xff\xfe", "z", " \xff"}}};
    for (const auto& c : cases) CHECK(pieces(c.text) == c.want);
}

TEST_CASE("SmolLM's text is split at every digit, and between digits as GPT-2 splits it") {
    const struct { const char* text; std::vector<std::string> want; } cases[] = {
        {"Hello, world!", {"Hello", ",", " world", "!"}},
        {"it's I'VE 'sall they'll", {"it", "'s", " I", "'", "VE", " '", "sall", " they", "'ll"}},
        {"''s 's", {"''", "s", " '", "s"}},
        {"a12 3", {"a", "1", "2", " ", "3"}},
        {"x  12  y", {"x", "  ", "1", "2", " ", " y"}},
        {"  two  \n\n b \n", {" ", " two", "  \n\n", " b", " \n"}},
        {"a\n", {"a", "\n"}},
        {"\u00a0x \u2003 y", {"\u00a0", "x", " \u2003", " y"}},
        {"٣Ⅷ½x²", {"٣", "Ⅷ", "½", "x", "²"}},
        {"!?\n\n!", {"!?", "\n", "\n", "!"}},
        {"a\u0301b", {"a", "\u0301", "b"}},
        {"é\U00011de3 \U00011de3", {"é", "\U00011de3", " ", "\U00011de3"}},
        {" \xff\xfez", {" \xff\xfe", "z"}}};
    for (const auto& c : cases) CHECK(pieces(c.text, gpt2_piece_end) == c.want);
}

TEST_CASE("every text is cut completely by either splitter, and its digits one by one") {
    Random random(11);
    for (int i = 0; i < 400; i++) {
        std::string text, all;
        for (size_t n = random.below(60); n > 0; n--)
            text += " \n'sl12a\xc3\xa9!\xff"[random.below(13)];
        for (Splitter splitter : {llama3_piece_end, gpt2_piece_end}) {
            all.clear();
            for (const std::string& piece : pieces(text, splitter)) all += piece;
            CHECK(all == text);
        }
        for (const std::string& piece : pieces(text, gpt2_piece_end))
            CHECK((piece.size() == 1 || piece.find_first_of("12") == piece.npos));
    }
}

TEST_CASE("a byte that the vocabulary lacks gives no token, or the unknown one") {
    std::string json = tokenizer_json({{"a", "b"}, {"ab", "c"}}), without = json;
    size_t at = without.find("\"x\":120,");
    REQUIRE(at != without.npos);
    without.erase(at, 8);
    Tokenizer tokenizer = Tokenizer::from_json(without, "test");
    CHECK(tokenizer.encode("axb") == std::vector<Token>{256});       // neighbours without it
    CHECK(tokenizer.encode("x").empty());
    CHECK(tokenizer.encode("").empty());
    std::string text(100, 'x');                                      // longer than a short piece
    CHECK(tokenizer.encode(text).empty());
    CHECK(tokenizer.encode(text + "a" + text + "bc") == std::vector<Token>{257});
    std::string stated = without;
    stated.insert(stated.find("\"byte_fallback\""), "\"unk_token\": \"y\", ");
    CHECK(Tokenizer::from_json(stated, "test").encode("axxb") ==
          std::vector<Token>{'a', 'y', 'y', 'b'});
    stated.insert(stated.find("\"byte_fallback\""), "\"fuse_unk\": true, ");
    CHECK_THROWS_WITH_AS(Tokenizer::from_json(stated, "test"), doctest::Contains("fuse_unk"),
                         Error);
}

TEST_CASE("tokens are merged in the order of the merges, as one would do it by hand") {
    Random random(1);
    for (int round = 0; round < 12; round++) {
        std::vector<Pair> merges = random_merges(random, 40);
        JsonOptions options;
        options.whole_first = round % 2;
        options.pairs_as_arrays = round % 3;
        Tokenizer tokenizer = Tokenizer::from_json(tokenizer_json(merges, options), "test");
        std::map<Pair, int> ranks;
        for (const Pair& pair : merges) ranks.emplace(pair, int(ranks.size()));
        compare_with_naive(tokenizer, merges, options.whole_first, random,
                           [&](const std::string& left, const std::string& right) {
                               auto found = ranks.find({left, right});
                               return found == ranks.end() ? -1 : found->second;
                           });
    }
}

TEST_CASE("a tiktoken file merges whatever makes a token, the lowest rank first") {
    Random random(2);
    for (int round = 0; round < 12; round++) {
        std::vector<Pair> merges = random_merges(random, 40);
        Tokenizer tokenizer = Tokenizer::from_tiktoken(tiktoken_model(merges), "test");
        std::map<std::string, int> ranks;
        for (const std::string& token : tokens_of(merges)) ranks.emplace(token, int(ranks.size()));
        compare_with_naive(tokenizer, merges, true, random,
                           [&](const std::string& left, const std::string& right) {
                               auto found = ranks.find(left + right);
                               return found == ranks.end() ? -1 : found->second;
                           });
    }
}

TEST_CASE("megabytes without a word's end take no more than linear time") {
    Tokenizer tokenizer = Tokenizer::open(PARLOUR);
    for (const char* part : {" ", "\n", " \n", "a", "ab", "!", "'", "\xff", "é", "\n  x", "<|"}) {
        std::string text;
        while (text.size() < 1000000) text += part;
        CAPTURE(quote(part));
        CHECK(tokenizer.decode(tokenizer.encode(text, true)) == text);
    }
}

TEST_CASE("every byte sequence survives a round trip") {
    Tokenizer tokenizer = Tokenizer::open(PARLOUR);
    Random random(3);
    for (int i = 0; i < 300; i++) {
        std::string text;
        for (size_t n = random.below(80); n > 0; n--) text += char(random.next());
        CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
        CHECK(tokenizer.decode(tokenizer.encode(text, true)) == text);
    }
}

TEST_CASE("the model that ships encodes its reference prompt") {
    Tokenizer tokenizer = Tokenizer::open(PARLOUR);
    CHECK(tokenizer.size() == 4096);
    const char* prompt = "It was a dark and stormy night; the rain fell in torrents, and the wind";
    CHECK(tokenizer.encode(prompt) ==
          std::vector<Token>{944,  315, 258, 1058, 281,  350, 284, 1483, 885, 59,  262,
                             3337, 961, 295, 2485, 1333, 115, 44,  281,  262, 1053});
    CHECK(tokenizer.encode("").empty());
    CHECK_THROWS_WITH_AS(tokenizer.bytes(4096), doctest::Contains("0 to 4095"), Error);
    CHECK_THROWS_AS(tokenizer.bytes(-1), Error);
}

TEST_CASE("white space is stripped as Python strips it") {
    CHECK(strip(" \t\n\x1c\u00a0x\u3000 y\u0085\u2028\x1f ") == "x\u3000 y");
    CHECK(strip(" \u3000 ") == "");
    CHECK(strip("") == "");
    CHECK(strip("\u200b \u200b") == "\u200b \u200b");     // no White_Space
    CHECK(strip(" \x80\x80 ") == "\x80\x80");
    CHECK(strip(" \xe3\x80") == "\xe3\x80");
}

TEST_SUITE_END();
