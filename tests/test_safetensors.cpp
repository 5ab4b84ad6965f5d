// safetensors: every rule of the format, broken once; shards; what is written is read back.
#include "formats/safetensors.h"

#include <cstring>
#include <fstream>

#include "base/json.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// A file of this header and so many bytes of data, each byte its own position.
std::string file_of(const std::string& header, size_t data_bytes) {
    std::string text;
    for (int i = 0; i < 8; i++) text += char(header.size() >> 8 * i & 0xff);
    text += header;
    for (size_t i = 0; i < data_bytes; i++) text += char(i);
    return text;
}

std::string entry(const char* name, const char* dtype, const char* shape, const char* offsets) {
    return format("\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":%s}", name, dtype, shape,
                  offsets);
}

SafeTensors parse(const std::string& bytes) {
    std::vector<char> exact(bytes.begin(), bytes.end());   // the sanitizer sees where it ends
    return SafeTensors::parse({exact.data(), exact.size()}, "f");
}

void put(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}

// A folder of two shards, a and b, and their index.
struct Sharded {
    Scratch scratch;
    std::string index = R"({"metadata":{"total_size":12},"weight_map":{"x":"a","y":"a","z":"b"}})";

    Sharded() {
        put(scratch.path("a"), file_of("{" + entry("x", "F32", "[1]", "[0,4]") + "," +
                                           entry("y", "F32", "[1]", "[4,8]") + "}", 8));
        put(scratch.path("b"), file_of("{" + entry("z", "BF16", "[2]", "[0,4]") + "}", 4));
        put_index(index);
    }
    void put_index(const std::string& text) {
        put(scratch.path("model.safetensors.index.json"), text);
    }
    SafeTensors open() const { return SafeTensors::open_folder(scratch.folder.string()); }
};

}  // namespace

TEST_SUITE_BEGIN("formats");

TEST_CASE("safetensors: tensors are found where their offsets say, in any order of the header") {
    SafeTensors st = parse(file_of(
        " {" + entry("b", "F32", "[2,1]", "[6,14]") + ",\"__metadata__\":" + R"({"k":"v"},)" +
            entry("a", "I16", "[3]", "[0,6]") + "," + entry("s", "U8", "[]", "[14,15]") + "," +
            entry("e", "F16", "[0,7]", "[6,6]") + "} \n",
        15));
    REQUIRE(st.tensors.size() == 4);
    CHECK(st.metadata == std::map<std::string, std::string>{{"k", "v"}});
    CHECK(st.tensors["b"].shape == Shape{2, 1});
    CHECK(st.tensors["b"].bytes == 8);
    CHECK(st.tensors["b"].offset == st.tensors["a"].offset + 6);
    CHECK(st.tensors["s"].shape.empty());
    CHECK(st.tensors["e"].bytes == 0);
    CHECK(parse(file_of("{}", 0)).tensors.empty());
    CHECK(parse(file_of("{\"__metadata__\": null}", 0)).metadata.empty());
}

TEST_CASE("safetensors: a file that breaks a rule of the format is refused with the reason") {
    auto one = [](const char* dtype, const char* shape, const char* offsets) {
        return "{" + entry("t", dtype, shape, offsets) + "}";
    };
    std::string deep(200'000, '[');
    const struct { std::string header; size_t bytes; const char* message; } cases[] = {
        {one("F32", "[2,2]", "[0,16]"), 15, "the tensors take 16 bytes, the file has 15"},
        {one("F32", "[2,2]", "[0,16]"), 17, "something else is at its end"},
        {"{}", 1, "something else is at its end"},
        {one("F32", "[2,2]", "[0,12]"), 12, "do not span the 16 bytes of (2, 2) of F32"},
        {one("F32", "[2,2]", "[16,0]"), 16, "do not span"},
        {one("F32", "[2,2]", "[4,20]"), 20, "there is a gap"},
        {one("F32", "[1]", "[18446744073709551612,18446744073709551615]"), 4, "do not span"},
        {one("F32", "[1]", "[18446744073709551611,18446744073709551615]"), 4, "there is a gap"},
        {one("F32", "[2]", "[0,8,16]"), 8, "data_offsets has 3 numbers"},
        {one("F32", "[2]", "[0,-8]"), 8, "found -8"},
        {one("F32", "[2]", "[0,8.0]"), 8, "found 8.0"},
        {one("F32", "[2]", "[0,\"8\"]"), 8, "found a string"},
        {one("F32", "[2]", "{}"), 8, "\"data_offsets\" is an object, expected an array"},
        {one("F32", "[-2]", "[0,8]"), 8, "expected an integer from 0 to 2^64-1, found -2"},
        {one("F32", "[18446744073709551616]", "[0,8]"), 8, "found 18446744073709551616"},
        {one("F32", "[2,18446744073709551614]", "[0,8]"), 8, "overflows"},
        {one("F32", "[9223372036854775807]", "[0,8]"), 8, "overflows"},
        {one("F32", "[4294967296,4294967296]", "[0,0]"), 0, "overflows"},
        {one("F32", "2", "[0,8]"), 8, "\"shape\" is a number, expected an array"},
        {one("F4", "[1,3]", "[0,2]"), 2, "no whole number of bytes"},
        {one("F6_E2M3", "[3]", "[0,2]"), 2, "no whole number of bytes"},
        {one("Q4_K", "[2]", "[0,8]"), 8, "unknown dtype \"Q4_K\""},
        {one("f32", "[2]", "[0,8]"), 8, "unknown dtype \"f32\""},
        {"{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[4,12]") + "}",
         12, "b begins at byte 4 of the data, the one before it ends at 8: they overlap"},
        {"{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[0,8]") + "}", 8,
         "they overlap"},
        {"{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("a", "F32", "[2]", "[8,16]") + "}",
         16, "two members named \"a\""},
        {"{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "t: no \"dtype\""},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "t: no \"shape\""},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "t: no \"data_offsets\""},
        {"{\"t\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "expected a string"},
        {"{\"t\":[]}", 0, "t: expected an object, found an array"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__: a: expected a string, found a number"},
        {"{\"__metadata__\":\"x\"}", 0, "__metadata__: expected an object, found a string"},
        {"[]", 0, "header: expected an object, found an array"},
        {"", 0, "expected a value, found the end"},
        {"{", 0, "f: header:1:2:"},
        {"\xff", 0, "is not UTF-8"},
        {deep, 0, "nested too deeply"},
        {std::string("{}\0\0", 4), 0, "byte 0x00"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.header.substr(0, 100));
        CHECK_THROWS_WITH_AS(parse(file_of(c.header, c.bytes)), doctest::Contains(c.message),
                             Error);
    }
}

TEST_CASE("safetensors: a header that claims more than the file has is refused, not allocated") {
    CHECK_THROWS_WITH_AS(parse(""), doctest::Contains("0 bytes are too few"), Error);
    CHECK_THROWS_WITH_AS(parse("1234567"), doctest::Contains("7 bytes are too few"), Error);
    std::string claims = file_of("{}", 0);
    claims[0] = 3;
    CHECK_THROWS_WITH_AS(parse(claims), doctest::Contains("it is cut off"), Error);
    claims[2] = 0x40;
    CHECK_THROWS_WITH_AS(parse(claims), doctest::Contains("it is cut off"), Error);
    claims[4] = 1;
    CHECK_THROWS_WITH_AS(parse(claims), doctest::Contains("is too large"), Error);
    CHECK_THROWS_WITH_AS(parse(std::string(16, '\xff')), doctest::Contains("is too large"), Error);
}

TEST_CASE("safetensors: every truncation of a file is refused") {
    std::string whole = file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "}", 8);
    CHECK_NOTHROW(parse(whole));
    for (size_t n = 0; n < whole.size(); n++) {
        CAPTURE(n);
        CHECK_THROWS_AS(parse(whole.substr(0, n)), Error);
    }
}

TEST_CASE("safetensors: the cases of the reference implementation end as they do there") {
    std::string folder = shared("data/safetensors-cases");
    if (folder.empty()) return skip("needs ../shared/data/safetensors-cases");
    int cases = 0;
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
        if (file.path().extension() != ".safetensors") continue;
        CAPTURE(file.path().string());
        cases++;
        if (file.path().filename().string().starts_with("ok_"))
            CHECK_NOTHROW(SafeTensors::open_file(file.path().string()));
        else
            CHECK_THROWS_AS(SafeTensors::open_file(file.path().string()), Error);
    }
    CHECK(cases >= 20);
}

TEST_CASE("safetensors: what is written is read back, and its data are aligned") {
    Scratch scratch;
    float floats[3] = {1, -2, 0.5};
    uint16_t halves[2] = {0x3f80, 0x4000};
    std::vector<NamedTensor> tensors = {{"z \"é\"", {floats, DType::F32, {3, 1}}},
                                        {"a", {halves, DType::BF16, {2}}},
                                        {"none", {nullptr, DType::F16, {0, 5}}}};
    std::string path = scratch.path("f");
    write_safetensors(path, tensors, {{"by", "stief"}, {"quote", "\"\n"}});
    SafeTensors st = SafeTensors::open_file(path);
    CHECK(st.metadata["quote"] == "\"\n");
    CHECK(st.tensors["z \"é\""].offset % 8 == 0);
    Tensor z = st.take("z \"é\"", {3, 1}, "");
    CHECK(z.dtype == DType::F32);
    CHECK(std::memcmp(z.data, floats, sizeof floats) == 0);
    CHECK(std::memcmp(st.take("a", {2}, "").data, halves, sizeof halves) == 0);
    CHECK(st.take("none", {0, 5}, "").bytes() == 0);
    CHECK_THROWS_WITH_AS(write_safetensors(path, {tensors[1], tensors[1]}, {}),
                         doctest::Contains("two tensors named a"), Error);
    CHECK_THROWS_AS(write_safetensors(path, {{"__metadata__", tensors[1].tensor}}, {}), Error);
    CHECK(SafeTensors::open_file(path).tensors.size() == 3);
}

TEST_CASE("safetensors: taking a tensor checks name, shape and element type") {
    Scratch scratch;
    std::string path = scratch.path("f");
    put(path, file_of("{" + entry("w", "F16", "[2,1]", "[0,4]") + "," +
                          entry("q", "I8", "[2]", "[4,6]") + "}", 6));
    SafeTensors st = SafeTensors::open_file(path);
    CHECK(st.take("w", {2, 1}, "").dtype == DType::F16);
    CHECK_THROWS_WITH_AS(st.take("w", {1, 2}, "config.json says 2"),
                         doctest::Contains("/f: w is (2, 1), expected (1, 2) (config.json says 2)"),
                         Error);
    CHECK_THROWS_WITH_AS(st.take("w", {2}, ""), doctest::Contains("is (2, 1), expected (2)"),
                         Error);
    CHECK_THROWS_WITH_AS(st.take("v", {2}, "hint"), doctest::Contains("/f: no tensor v (hint)"),
                         Error);
    CHECK_THROWS_WITH_AS(st.take("q", {2}, ""),
                         doctest::Contains("q is I8, expected F32, F16 or BF16"), Error);
}

TEST_CASE("safetensors: shards are read as one, and model.safetensors is preferred") {
    Sharded files;
    SafeTensors st = files.open();
    CHECK(st.files.size() == 2);
    CHECK(st.tensors.size() == 3);
    CHECK(st.take("z", {2}, "").dtype == DType::BF16);
    CHECK(static_cast<const unsigned char*>(st.take("y", {1}, "").data)[0] == 4);
    put(files.scratch.path("model.safetensors"), file_of("{}", 0));
    CHECK(files.open().tensors.empty());
}

TEST_CASE("safetensors: an index and its shards must agree") {
    const struct { const char* index; const char* message; } cases[] = {
        {R"({"weight_map":{"x":"a","y":"a","z":"c"}})",
         "the shard c that model.safetensors.index.json"},
        {R"({"weight_map":{"x":"a","z":"b"}})", "y is in this shard, but not according to"},
        {R"({"weight_map":{"x":"a","y":"b","z":"b"}})", "which has it in b"},
        {R"({"weight_map":{"x":"a","y":"a","z":"b","w":"b"}})", "/b: no tensor w, which"},
        {R"({"weight_map":{"x":"a","y":"a","z":"../b"}})",
         "z is in ../b, expected the name of a file"},
        {R"({"weight_map":{"x":"/etc/passwd"}})",
         "x is in /etc/passwd, expected the name of a file"},
        {R"({"weight_map":{"x":""}})", "x is in \"\", expected the name"},
        {R"({"weight_map":{"x":".."}})", "x is in .., expected the name"},
        {R"({"weight_map":{"x":"a\u0000"}})", "expected the name"},
        {R"({"weight_map":{"x":1}})", "weight_map: x: expected a string, found a number"},
        {R"({"weight_map":{}})", "no \"weight_map\""},
        {R"({"weight_map":[]})", "no \"weight_map\""},
        {"[]", "no \"weight_map\""},
        {"", "index.json:1:1: expected a value"},
        {R"({"weight_map":{"x":"a","x":"b"}})", "two members named \"x\""},
    };
    Sharded files;
    for (const auto& c : cases) {
        CAPTURE(c.index);
        files.put_index(c.index);
        CHECK_THROWS_WITH_AS(files.open(), doctest::Contains(c.message), Error);
    }
    put(files.scratch.path("b"), file_of("{" + entry("x", "U8", "[1]", "[0,1]") + "}", 1));
    files.put_index(files.index);
    CHECK_THROWS_WITH_AS(files.open(), doctest::Contains("x is in this shard, but not"), Error);
    put(files.scratch.path("b"), "");
    CHECK_THROWS_WITH_AS(files.open(), doctest::Contains("too few for a safetensors file"), Error);
}

TEST_CASE("safetensors: a folder without a checkpoint says what was looked for") {
    Scratch scratch;
    auto open = [&] { return SafeTensors::open_folder(scratch.folder.string()); };
    CHECK_THROWS_WITH_AS(open(), doctest::Contains("neither model.safetensors nor"), Error);
    put(scratch.path("pytorch_model.bin"), "x");
    CHECK_THROWS_WITH_AS(open(), doctest::Contains("pytorch_model.bin is not read"), Error);
    std::filesystem::create_directory(scratch.path("model.safetensors"));
    CHECK_THROWS_AS(open(), Error);
    CHECK_THROWS_WITH_AS(SafeTensors::open_folder(scratch.path("no")),
                         doctest::Contains("no such folder"), Error);
}

TEST_SUITE_END();
