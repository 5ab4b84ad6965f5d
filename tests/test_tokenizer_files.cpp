// The files of a tokenizer: real ones against the ids of the reference tokenizer, special tokens,
// the stream of an answer, and files that must be refused.
#include <cstdio>
#include <sstream>

#include "base/file.h"
#include "testing.h"
#include "tokenizer_files.h"

TEST_SUITE_BEGIN("formats");
using namespace stief;
using namespace stief::testing;

namespace {

void write(const std::string& path, std::string_view text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
}

// The tokenizer in a .json.gz; the tests link no zlib.
Tokenizer open_gz(const std::string& path) {
    std::string json, command = "gzip -dc '" + path + "'";
    std::FILE* pipe = popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::vector<char> part(1 << 16);
    for (size_t n; (n = fread(part.data(), 1, part.size(), pipe)) > 0;) json.append(part.data(), n);
    REQUIRE(pclose(pipe) == 0);
    return Tokenizer::from_json(json, path);
}

std::vector<std::string> lines_of(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    for (size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size())
        text.replace(at, from.size(), to);
    return text;
}

// Cases of a vector file: text and the ids that belong to it. kitoken writes a case a line, with \n
// for a line break and \s for a space at the end; utf8_input.txt is one case.
std::vector<std::pair<std::string, std::vector<Token>>> cases_of(const std::string& folder,
                                                                 const std::string& name) {
    std::string input = read_text(folder + "/" + name + "_input.txt");
    std::vector<std::string> texts = {input};
    if (name != "utf8") texts = lines_of(replaced(replaced(input, "\\n", "\1"), "\\s", " "));
    std::vector<std::string> ids = lines_of(read_text(folder + "/" + name + "_tokens_llama32.txt"));
    REQUIRE(texts.size() == ids.size());

    std::vector<std::pair<std::string, std::vector<Token>>> cases;
    for (size_t i = 0; i < texts.size(); i++) {
        std::istringstream stream(replaced(ids[i], ",", " "));
        std::vector<Token> want;
        for (Token id; stream >> id;) want.push_back(id);
        cases.emplace_back(replaced(texts[i], "\1", "\n"), want);
    }
    return cases;
}

const char* ADDED = R"([
    {"id": 256, "content": "<|eot_id|>", "special": true, "normalized": false},
    {"id": 257, "content": "<|eot_id|>!", "special": true, "normalized": false},
    {"id": 258, "content": "<tool>", "special": false, "normalized": true},
    {"id": 259, "content": "<|eom", "special": true}])";

}  // namespace

TEST_CASE("Llama 3's own tokenizer files give the reference ids, all three the same") {
    std::string folder = shared("data/llama3");
    if (folder.empty()) return skip("needs ../shared/data/llama3");
    Scratch scratch;
    std::filesystem::copy_file(folder + "/tokenizer.model", scratch.path("tokenizer.model"));
    Tokenizer llama32 = open_gz(folder + "/tokenizer-3.2.json.gz");
    Tokenizer llama3 = open_gz(folder + "/tokenizer-8b.json.gz");
    Tokenizer tiktoken = Tokenizer::open(scratch.folder.string());

    size_t count = 0;
    for (const char* name : {"small", "mixed", "utf8"})
        for (const auto& vector : cases_of(folder + "/vectors", name)) {
            const std::string& text = vector.first;
            const std::vector<Token>& want = vector.second;
            CAPTURE(name);
            CAPTURE(quote(text));
            CHECK(llama32.encode(text) == want);
            CHECK(llama3.encode(text) == want);
            CHECK(tiktoken.encode(text) == want);
            CHECK(tiktoken.decode(want) == text);
            count++;
        }
    CHECK(count == 141);

    for (const Tokenizer* t : {&llama32, &llama3, &tiktoken}) {
        CHECK(t->size() == 128256);
        CHECK(t->special("<|begin_of_text|>") == 128000);
        CHECK(t->special("<|eot_id|>") == 128009);
    }
    for (const Tokenizer* t : {&llama32, &tiktoken}) CHECK(t->special("<|eom_id|>") == 128008);
    CHECK(tiktoken.special("<|reserved_special_token_245|>") == 128255);
}

TEST_CASE("Llama 3's three tokenizer files agree about a book") {
    std::string folder = shared("data/llama3"), book = shared("data/text/wikitext2-test.txt");
    if (folder.empty() || book.empty()) return skip("needs ../shared/data");
    std::string text = read_text(book);
    std::vector<Token> ids = open_gz(folder + "/tokenizer-3.2.json.gz").encode(text);
    CHECK(ids.size() == 289076);
    CHECK(open_gz(folder + "/tokenizer-8b.json.gz").encode(text) == ids);
    MappedFile model(folder + "/tokenizer.model");
    CHECK(Tokenizer::from_tiktoken(model.text(), model.path).encode(text) == ids);
}

TEST_CASE("a small tiktoken file is read, with Llama 3's special tokens behind its own") {
    std::string path = shared("data/llama3/vectors/tiktoken_small.model");
    if (path.empty()) return skip("needs ../shared/data/llama3/vectors");
    Tokenizer tokenizer = Tokenizer::from_tiktoken(read_text(path), path);
    CHECK(tokenizer.size() == 2256);
    CHECK(tokenizer.special("<|begin_of_text|>") == 2000);
    CHECK(tokenizer.is_special(2255));
    CHECK(!tokenizer.is_special(1999));
    CHECK(tokenizer.decode(tokenizer.encode("Round trips, 123 times…\n")) ==
          "Round trips, 123 times…\n");
}

TEST_CASE("text that spells a special token stays text unless the caller wants it") {
    JsonOptions options;
    options.added = ADDED;
    Tokenizer tokenizer = Tokenizer::from_json(tokenizer_json({}, options), "test");
    auto count = [&](std::string_view text, bool parse) {
        return tokenizer.encode(text, parse).size();
    };
    CHECK(count("<|eot_id|>", false) == 10);
    CHECK(tokenizer.encode("a<|eot_id|>b<|eot_id|>!", true) ==
          std::vector<Token>{'a', 256, 'b', 257});
    CHECK(tokenizer.encode("<|eo<|eom<|eot_id|", true).size() == 4 + 1 + 9);
    CHECK(tokenizer.encode("x<tool>", false) == std::vector<Token>{'x', 258});   // part of the text
    CHECK(tokenizer.special("<|eot_id|>") == 256);
    CHECK(tokenizer.special("<tool>") == -1);
    CHECK(tokenizer.special("eot_id") == -1);
    CHECK(tokenizer.is_special(259));
    CHECK(!tokenizer.is_special(258));
    CHECK(!tokenizer.is_special(1 << 30));
    CHECK(tokenizer.size() == 260);
    CHECK(tokenizer.bytes(259) == "<|eom");
    CHECK_THROWS_WITH_AS(tokenizer.bytes(260), doctest::Contains("token 260"), Error);
}

// The ids are those of tokenizers 0.23.3 for these files.
TEST_CASE("added tokens are names: they may spell what the vocabulary spells, and take in space") {
    const std::string merges = tokenizer_json({{" ", "a"}, {"b", "c"}});
    auto with = [&](const char* added) {
        return Tokenizer::from_json(replaced(merges, "\"added_tokens\": []",
                                             std::string("\"added_tokens\": ") + added), "test");
    };
    Tokenizer same = with(R"([{"id": 258, "content": " a"}, {"id": 257, "content": "bc"}])");
    CHECK(same.encode("x a abc") == std::vector<Token>{'x', 258, 258, 257});
    CHECK(same.bytes(256) == " a");
    CHECK(same.bytes(258) == " a");
    Tokenizer byte = with(R"([{"id": 233, "content": "é"}])");        // the entry of byte 0xe9
    CHECK(byte.encode("é") == std::vector<Token>{233});
    CHECK(byte.bytes(233) == "\xe9");
    CHECK(with(R"([{"id": 258, "content": ""}, {"id": 258, "content": "<y>"}])").size() == 259);
    CHECK(with(R"([{"id": 258, "content": "<y>"}, {"id": 258, "content": "<y>"}])").size() == 259);

    Tokenizer strips = with(R"([{"id": 258, "content": "<l>", "lstrip": true},
        {"id": 259, "content": "<r>", "rstrip": true}, {"id": 260, "content": " !"},
        {"id": 261, "content": "<s>", "special": true, "lstrip": true, "rstrip": true}])");
    CHECK(strips.encode("b \n\u3000<l> b") == std::vector<Token>{'b', 258, ' ', 'b'});
    CHECK(strips.encode("b <r> \t<l> <l>b") == std::vector<Token>{'b', ' ', 259, 258, 258, 'b'});
    CHECK(strips.encode("<r> !x") == std::vector<Token>{259, 260, 'x'});
    CHECK(strips.encode("b <s> b", true) == std::vector<Token>{'b', 261, 'b'});
    CHECK(with(R"([{"id": 258, "content": "\t", "lstrip": true, "rstrip": true}])")
              .encode("a\t\tb") ==
          std::vector<Token>{'a', 258, 'b'});  // nothing is left for the second
    CHECK(strips.encode("\xe3\x80<l>") == std::vector<Token>{0xe3, 0x80, 258});
}

TEST_CASE("what changes no id is accepted as the reference accepts it") {
    const std::string good = tokenizer_json({{"a", "b"}, {"b", "c"}});
    const std::vector<Token> want = Tokenizer::from_json(good, "f").encode("abc babc");
    const struct { const char *from, *to; } cases[] = {
        {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": []}"},
        {"\"normalizer\": null, ", ""},
        {"\"Isolated\", \"invert\": false", "\"Removed\", \"invert\": true"},
        {"\"ab\":256", "\"\":300, \"日本 x\":301, \"ab\":256"},
        {"\"byte_fallback\"", "\"dropout\": null, \"unk_token\": \"none\", \"byte_fallback\""},
        {"{\"normalizer\"", "\xef\xbb\xbf{\"normalizer\""}};
    for (const auto& c : cases) {
        std::string other = replaced(good, c.from, c.to);
        CAPTURE(c.to);
        REQUIRE(other != good);
        CHECK(Tokenizer::from_json(other, "f").encode("abc babc") == want);
    }
    // Of a merge that is listed twice the later rank holds: "bc" comes first now.
    std::string twice = replaced(good, "[\"b\",\"c\"]", "[\"b\",\"c\"],[\"a\",\"b\"]");
    CHECK(Tokenizer::from_json(twice, "f").encode("abc") == std::vector<Token>{'a', 257});
    CHECK(Tokenizer::from_json(good, "f").encode("abc") == std::vector<Token>{256, 'c'});
}

TEST_CASE("BOS is what the tokenizer puts in front of a text, once") {
    JsonOptions options;
    options.added = ADDED;
    const std::string plain = tokenizer_json({}, options);
    const std::string post = R"("post_processor": {"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, {"type": "TemplateProcessing",
        "special_tokens": {"<|eot_id|>": {"ids": [256]}},
        "single": [{"SpecialToken": {"id": "<|eot_id|>"}}, {"Sequence": {"id": "A"}}]}]}, )";
    const std::string with = replaced(plain, "\"decoder\"", post + "\"decoder\"");
    Scratch scratch;
    auto bos = [&](const std::string& tokenizer, const std::string& config) {
        write(scratch.path("tokenizer.json"), tokenizer);
        write(scratch.path("tokenizer_config.json"), config);
        return Tokenizer::open(scratch.folder.string()).bos();
    };
    CHECK(bos(plain, "{}") == -1);
    CHECK(bos(with, "{}") == 256);
    CHECK(bos(with, R"({"add_bos_token": null})") == 256);
    CHECK(bos(with, R"({"add_bos_token": false, "bos_token": "<|eot_id|>"})") == -1);
    CHECK(bos(plain, R"({"add_bos_token": true, "bos_token": {"content": "<|eom"}})") == 259);
    CHECK(bos(plain, R"({"add_bos_token": true, "bos_token": null})") == -1);
    CHECK_THROWS_WITH_AS(bos(plain, R"({"add_bos_token": true, "bos_token": "<none>"})"),
                         doctest::Contains("<none>"), Error);

    Tokenizer tokenizer = Tokenizer::from_json(with, "test");
    CHECK(tokenizer.encode_document("a") == std::vector<Token>{256, 'a'});
    CHECK(tokenizer.encode_document("") == std::vector<Token>{256});
    CHECK(tokenizer.encode_document("<|eot_id|>a", true) == std::vector<Token>{256, 'a'});
    CHECK(Tokenizer::from_json(plain, "test").encode_document("a") == std::vector<Token>{'a'});
    CHECK(Tokenizer::from_tiktoken(tiktoken_model({}), "test").bos() == 256);
}

TEST_CASE("a stream never prints half a character") {
    const std::string text = "aé中😊\U0010ffff\u0800z";
    for (size_t step = 1; step <= 5; step++) {
        Utf8Stream stream;
        std::string all;
        for (size_t i = 0; i < text.size(); i += step) {
            std::string out = stream.push(std::string_view(text).substr(i, step));
            CHECK(quote(out) == "\"" + out + "\"");  // quote() would mark a broken character
            all += out;
        }
        CHECK(all == text);
        CHECK(stream.finish().empty());
    }
    const struct { std::string bytes, at_once; } broken[] = {
        {"\xff", "\xff"}, {"\x80", "\x80"}, {"\xc0", "\xc0"}, {"\xe0\x80", "\xe0\x80"},
        {"\xed\xa0", "\xed\xa0"}, {"\xf4\x90", "\xf4\x90"}, {"\xf5", "\xf5"}, {"\xe4\xb8", ""},
        {"\xe4\xb8\xe4", "\xe4\xb8"}, {"\xf0\x9f\x98", ""}, {"\xf0\x8f", "\xf0\x8f"},
        {"\xe4x", "\xe4x"}};
    for (const auto& c : broken) {
        Utf8Stream stream;
        CAPTURE(quote(c.at_once));
        CHECK(stream.push(c.bytes) == c.at_once);
        CHECK(stream.finish() == c.bytes.substr(c.at_once.size()));
        CHECK(stream.finish().empty());
    }
}

TEST_CASE("a tokenizer.json that asks for something else is refused by name") {
    const std::string good = tokenizer_json({{"a", "b"}, {"ab", "c"}});
    const std::string one = R"("added_tokens": [{"id": 258, "content": "<x>"})";
    const std::string post = R"("post_processor": {"type": "TemplateProcessing",
        "special_tokens": {"a": {"ids": [97]}}, "single": [)";
    const struct { const char *from, *to, *message; } cases[] = {
        {"\"BPE\"", "\"Unigram\"", "model.type: expected \"BPE\", found \"Unigram\""},
        {"\"type\": \"BPE\",", "", "model.type: expected \"BPE\", found nothing"},
        {"\"vocab\"", "\"words\"", "model.vocab: expected an object, found nothing"},
        {"\"merges\"", "\"pairs\"", "model.merges: expected an array, found nothing"},
        {"\"byte_fallback\": false", "\"byte_fallback\": true",
         "byte_fallback: expected false, found true"},
        {"\"byte_fallback\"", "\"end_of_word_suffix\": \"</w>\", \"byte_fallback\"",
         "end_of_word_suffix"},
        {"\"byte_fallback\"", "\"continuing_subword_prefix\": \"##\", \"byte_fallback\"",
         "subword_prefix"},
        {"\"byte_fallback\"", "\"dropout\": 0.1, \"byte_fallback\"", "dropout: expected null"},
        {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}",
         "normalizer: expected null"},
        {"{1,3}", "", "pre_tokenizer.pretokenizers[0].pattern.Regex: expected"},
        {"\"Split\"", "\"Punctuation\"", "pretokenizers[0].type: expected \"Split\""},
        {"\"Split\"", "\"Digits\"", "individual_digits: expected true"},
        {"Isolated", "Removed", "behavior: expected \"Isolated\", found \"Removed\""},
        {"\"use_regex\": false", "\"use_regex\": true", "use_regex: expected false"},
        {"\"add_prefix_space\": false, ", "", "add_prefix_space: expected false"},
        {"\"decoder\"", "\"encoder\"", "decoder: expected an object"},
        {"\"ab\":256", "\"ab\":255", "\"ab\" has id 255, which another token has"},
        {"\"ab\":256", "\"ab\":2147483648", "model.vocab: expected an integer"},
        {"\"ab\":256", "\"ab\":-1", "model.vocab: expected an integer"},
        {"\"ab\":256", "\"ab\":\"256\"", "model.vocab: expected a number, found a string"},
        {"\"ab\":256", "\"a b\":256", "merges[0]: \"a\" and \"b\""},
        {"\"ab\":256", "\"axb\":256", "merges[0]: \"a\" and \"b\""},
        {"[\"a\",\"b\"]", "[\"a\",\"q\"]", "merges[0]: \"a\" and \"q\""},
        {"[\"a\",\"b\"]", "[\"a\"]", "merges[0]: expected \"left right\""},
        {"added_tokens\": []", "added_tokens\": [{\"id\": 400}]",
         "added_tokens[0].content: expected"},
        {"added_tokens\": []", "added_tokens\": 5", "added_tokens: expected an array"},
        {"\"added_tokens\": []", "ONE, {\"id\": 259, \"content\": \"<x>\"}]",
         "[1]: \"<x>\" has id 259, but it is there twice"},
        {"\"added_tokens\": []", "ONE, {\"id\": 258, \"content\": \"<x>\", \"rstrip\": true}]",
         "it is there twice, with other options"},
        {"\"added_tokens\": []", "ONE, {\"id\": 300, \"content\": \"<y>\"}]", "would give it 259"},
        {"\"added_tokens\": []", "ONE, {\"id\": 258, \"content\": \"<y>\"}]",
         "[1]: \"<y>\" has id 258"},
        {"\"added_tokens\": []", "ONE, {\"id\": 3, \"content\": \"<y>\"}]",
         "[1]: \"<y>\" has id 3"},
        {"\"added_tokens\": []", "ONE, {\"id\": 5, \"content\": \"ab\"}]", "[1]: \"ab\" has id 5"},
        {"\"added_tokens\": []", "ONE, {\"id\": 99999, \"content\": \"<y>\"}]",
         "expected an integer from 0"},
        {"\"added_tokens\": []", "ONE, {\"id\": 5, \"content\": \"y\", \"single_word\": true}]",
         "single_word: \"y\""},
        {"\"decoder\"", "\"post_processor\": {\"type\": \"BertProcessing\"}, \"decoder\"",
         "post_processor.type: expected"},
        {"\"decoder\"",
         "POST{\"Sequence\": {}}, {\"SpecialToken\": {\"id\": \"a\"}}]}, \"decoder\"",
         "0 tokens before a text and 1 behind it"}};
    CHECK_NOTHROW(Tokenizer::from_json(good, "f"));
    for (const auto& c : cases) {
        std::string bad =
            replaced(good, c.from, replaced(replaced(c.to, "ONE", one), "POST", post));
        CAPTURE(c.message);
        REQUIRE(bad != good);
        CHECK_THROWS_WITH_AS(Tokenizer::from_json(bad, "f"), doctest::Contains(c.message), Error);
    }
    for (size_t size = 0; size < good.size(); size += 97)
        CHECK_THROWS_AS(Tokenizer::from_json(good.substr(0, size), "f"), Error);
    CHECK_THROWS_WITH_AS(Tokenizer::from_json("[]", "f"),
                         doctest::Contains("f: expected an object"), Error);
}

TEST_CASE("a tokenizer.model that is not tiktoken's is refused with its line") {
    const std::string good = tiktoken_model({{"a", "b"}, {"ab", "c"}});
    const struct { const char *from, *to, *message; } cases[] = {
        {"YWI= 256\n", "YWI=256\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YW*= 256\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YWJ= 256\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YWI 256\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", " 256\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YWI= -256\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YWI= 25x\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YWI= 99999999999999999999\n", "f:257: expected a token in base64"},
        {"YWI= 256\n", "YWI= 2147483648\n", "f:257: rank 2147483648, expected one below 258"},
        {"YWI= 256\n", "YWI= 257\n", "f:258: rank 257 or its bytes have been given"},
        {"YWI= 256\n", "YQ== 256\n", "f:257: rank 256 or its bytes have been given"},
        {"Yw== 99\n", "eHl6 99\n", "no token for byte 0x63"}};
    CHECK_NOTHROW(Tokenizer::from_tiktoken(replaced(good, "\n", "\r\n") + "\n\n", "f"));
    for (const auto& c : cases) {
        std::string bad = replaced(good, c.from, c.to);
        CAPTURE(c.message);
        REQUIRE(bad != good);
        CHECK_THROWS_WITH_AS(Tokenizer::from_tiktoken(bad, "f"), doctest::Contains(c.message),
                             Error);
    }
    CHECK_THROWS_WITH_AS(Tokenizer::from_tiktoken("", "f"), doctest::Contains("no token for byte"),
                         Error);
    std::string long_token = base64(std::string(2000, 'x')) + " 0\n";
    CHECK_THROWS_WITH_AS(Tokenizer::from_tiktoken(long_token, "f"), doctest::Contains("2000 bytes"),
                         Error);
}

TEST_CASE("a folder's tokenizer.json is preferred, and a folder without tokenizer is named") {
    Scratch scratch;
    std::string folder = scratch.folder.string();
    CHECK_THROWS_WITH_AS(Tokenizer::open(folder), doctest::Contains(folder.c_str()), Error);
    write(scratch.path("tokenizer.model"), tiktoken_model({{"a", "b"}}));
    CHECK(Tokenizer::open(folder).size() == 257 + 256);
    write(scratch.path("tokenizer.json"), tokenizer_json({{"a", "b"}}));
    CHECK(Tokenizer::open(folder).size() == 257);
    write(scratch.path("tokenizer.json"), "");
    CHECK_THROWS_WITH_AS(Tokenizer::open(folder), doctest::Contains("tokenizer.json"), Error);
}

TEST_SUITE_END();
