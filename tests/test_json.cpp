// The JSON reader against RFC 8259: what it must take, what it must refuse, and where it says so.
#include "base/json.h"

#include <chrono>

#include "base/utf8.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

Json parse(std::string_view text) {
    return Json::parse(text, "t");
}

std::string repeat(const std::string& piece, size_t times) {
    std::string text;
    for (size_t i = 0; i < times; i++) text += piece;
    return text;
}

}  // namespace

TEST_SUITE_BEGIN("base");

TEST_CASE("json: every kind of value is read, in the order of the file") {
    Json json =
        parse(" {\"b\": [1, -2.5e+3, true, false, null, \"x\"], \"a\": {}, \"\": []}\r\n\t");
    REQUIRE(json.kind == Json::Object);
    REQUIRE(json.members.size() == 3);
    CHECK(json.members[0].key == "b");
    CHECK(json.members[1].key == "a");
    CHECK(json.members[2].key == "");
    const Json* b = json.find("b");
    REQUIRE(b);
    REQUIRE(b->items.size() == 6);
    CHECK(b->items[0].integer("t", 0, 9) == 1);
    CHECK(b->items[1].number("t") == -2500);
    CHECK(b->items[2].flag("t"));
    CHECK_FALSE(b->items[3].flag("t"));
    CHECK(b->items[4].kind == Json::Null);
    CHECK(b->items[5].string("t") == "x");
    CHECK(json.find("c") == nullptr);
    CHECK(parse("{\"n\": null}").find("n") == nullptr);             // null is absence
    CHECK(parse("\xef\xbb\xbf{\"a\": 1}").find("a") != nullptr);    // a byte order mark
    CHECK(parse("5").find("c") == nullptr);
}

TEST_CASE("json: strings are decoded") {
    CHECK(parse(R"("\"\\\/\b\f\n\r\t")").text == "\"\\/\b\f\n\r\t");
    CHECK(parse(R"("\u0041\u00e9\u20AC\ud83d\ude00\u0000z")").text ==
          std::string("Aé€😀\0z", 1 + 2 + 3 + 4 + 2));
    CHECK(parse("\"é€😀\x7f\"").text == "é€😀\x7f");
}

TEST_CASE("json: numbers stay as they are written") {
    for (const char* number :
         {"18446744073709551615", "0", "-0", "0.10", "1E5", "1e-05", "-1.0e+0"})
        CHECK(parse(number).text == number);
}

TEST_CASE("json: what is not JSON is refused, with its place and the reason") {
    const struct { const char* text; const char* message; } cases[] = {
        {"", "t:1:1: expected a value, found the end of the text"},
        {" \n ", "t:2:2: expected a value, found the end"},
        {"{\"a\":1}x", "t:1:8: expected the end of the text, found 'x'"},
        {"{\n \"é\" 1}", "t:2:6: expected ':', found '1'"},
        {"{\"a\":1,}", "expected a name in quotes, found '}'"},
        {"{a:1}", "expected a name in quotes or '}', found 'a'"},
        {"{\"a\":1 \"b\":2}", "expected ',' or '}', found '\"'"},
        {"{\"a\":1,\"b\":2,\"a\":3}", "two members named \"a\""},
        {"{\"a\":1", "expected ',' or '}', found the end"},
        {"{", "expected a name in quotes or '}', found the end"},
        {"[1,]", "expected a value, found ']'"},
        {"[1 2]", "expected ',' or ']', found '2'"},
        {"[", "expected a value, found the end"},
        {"[1}", "expected ',' or ']', found '}'"},
        {"// c\n1", "expected a value, found '/'"},
        {"'a'", "expected a value, found '''"},
        {"nul", "expected a value, found 'n'"},
        {"True", "expected a value, found 'T'"},
        {"NaN", "expected a value, found 'N'"},
        {"-Infinity", "expected a value, found '-'"},
        {"01", "expected no digit after a leading 0"},
        {"-", "expected a value"},
        {"+1", "expected a value"},
        {".5", "expected a value"},
        {"1.", "expected a digit after '.'"},
        {"1e", "expected a digit of the exponent"},
        {"1e+-1", "expected a digit of the exponent, found '-'"},
        {"0x10", "expected the end of the text, found 'x'"},
        {"\"a", "expected a closing '\"'"},
        {"\"a\nb\"", "found byte 0x0a"},
        {"\"\\x41\"", "after a backslash, found 'x'"},
        {"\"\\", "after a backslash, found the end"},
        {"\"\\u12g4\"", "four hexadecimal digits after \\u, found 'g'"},
        {"\"\\u12", "four hexadecimal digits after \\u, found the end"},
        {"\"\\ud800\"", "half of a surrogate pair"},
        {"\"\\ud800\\n\"", "half of a surrogate pair"},
        {"\"\\ud800\\u0041\"", "half of a surrogate pair"},
        {"\"\\udc00\"", "half of a surrogate pair"},
        {"\"\xff\"", "t:1:2: byte 0xff is not UTF-8"},
        {"\"\xc0\x80\"", "byte 0xc0 is not UTF-8"},
        {"\"\xed\xa0\x80\"", "byte 0xed is not UTF-8"},
        {"\"\xf4\x90\x80\x80\"", "byte 0xf4 is not UTF-8"},
        {"\"\xe2\x82", "byte 0xe2 is not UTF-8"},
        {"\x01", "found byte 0x01"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.text);
        CHECK_THROWS_WITH_AS(parse(c.text), doctest::Contains(c.message), Error);
    }
    CHECK_THROWS_WITH_AS(parse(std::string_view("[1\0]", 4)), doctest::Contains("byte 0x00"),
                         Error);
    CHECK_THROWS_WITH_AS(parse(std::string_view("\"\0\"", 3)), doctest::Contains("byte 0x00"),
                         Error);
}

TEST_CASE("json: every beginning of a document is refused, never read beyond") {
    std::string text =
        R"({"a": [1.5e3, true, null, "\u00e9\ud83d\ude00"], "b": {"c": false}, "d": "é"})";
    CHECK_NOTHROW(parse(text));
    for (size_t n = 0; n < text.size(); n++) {
        std::vector<char> exact(text.begin(),
                                text.begin() + long(n));  // the sanitizer sees its end
        CAPTURE(n);
        CHECK_THROWS_AS(parse({exact.data(), n}), Error);
    }
}

TEST_CASE("json: depth is bounded, also for a million brackets") {
    CHECK_NOTHROW(parse(repeat("[", 64) + repeat("]", 64)));
    for (const char* open : {"[", "{\"a\":"}) {
        CHECK_THROWS_WITH_AS(parse(repeat(open, 65)), doctest::Contains("nested too deeply"),
                             Error);
        CHECK_THROWS_WITH_AS(parse(repeat(open, 1'000'000)), doctest::Contains("too deeply"),
                             Error);
    }
}

TEST_CASE("json: 100,000 members take no quadratic time, and one duplicate among them is found") {
    std::string text = "{";
    for (int i = 0; i < 100'000; i++) text += format("\"token %d\":%d,", i, i);
    auto start = std::chrono::steady_clock::now();
    CHECK(parse(text + "\"last\":0}").members.size() == 100'001);
    CHECK_THROWS_WITH_AS(parse(text + "\"token 77\":0}"),
                         doctest::Contains("two members named \"token 77\""), Error);
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    CHECK(seconds.count() < 5);   // quadratic: 10¹⁰ comparisons, minutes
}

TEST_CASE("json: a value of another kind is an error that names its place") {
    CHECK_THROWS_WITH_AS(parse("\"1\"").number("c: x"), "c: x: expected a number, found a string",
                         Error);
    CHECK_THROWS_WITH_AS(parse("null").flag("c: x"), "c: x: expected true or false, found null",
                         Error);
    CHECK_THROWS_WITH_AS(parse("[]").string("c: x"), "c: x: expected a string, found an array",
                         Error);
    CHECK_THROWS_WITH_AS(parse("{}").integer("c: x", 0, 1), doctest::Contains("found an object"),
                         Error);
    CHECK_THROWS_WITH_AS(parse("1e999").number("c: x"), "c: x: 1e999 does not fit a double", Error);
    for (const char* bad : {"1.0", "1e0", "-1", "11", "99999999999999999999999", "0.5"})
        CHECK_THROWS_WITH_AS(parse(bad).integer("c: x", 0, 10),
                             doctest::Contains("expected an integer from 0 to 10, found"), Error);
    CHECK(parse("-9223372036854775808").integer("", INT64_MIN, INT64_MAX) == INT64_MIN);
}

TEST_CASE("json: what quote() writes is read back, and invalid UTF-8 becomes U+FFFD") {
    std::string all;
    for (int c = 0; c < 128; c++) all += char(c);
    for (uint32_t c : {0x80u, 0x7ffu, 0x800u, 0xd7ffu, 0xe000u, 0xffffu, 0x10000u, 0x10ffffu})
        append_utf8(all, c);
    CHECK(parse(quote(all)).text == all);
    CHECK(quote("a\xff\xc3(") == "\"a\uFFFD\uFFFD(\"");
    CHECK(quote("\x1b[31m") == "\"\\u001b[31m\"");
    CHECK(printable("model.norm.weight") == "model.norm.weight");
    CHECK(printable("a\nb") == "\"a\\nb\"");
    CHECK(printable("") == "\"\"");
    CHECK(printable(repeat("é", 500)).size() < 200);
}

TEST_SUITE_END();
