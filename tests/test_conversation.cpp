// A saved conversation: what was saved comes back, and nothing that is not what was saved does.
#include <cstring>
#include <fstream>

#include "base/random.h"
#include "commands/conversation.h"
#include "testing.h"

namespace stief::testing {

namespace {

constexpr uint64_t MODEL = 0x123456789abcdef0u;
constexpr int VOCABULARY = 1000;

// A cache of 2 layers, 2 heads of 8, and a conversation of 5 positions whose rows are random.
struct Saved {
    Threads threads{1};
    std::unique_ptr<Backend> backend = make_backend({}, threads);
    Config config;
    Conversation talk;
    Scratch scratch;
    std::string path = scratch.path("talk.stief");

    Saved() {
        config.L = 2, config.H = 4, config.G = 2, config.d = 8;
        talk.ids = {900, 1, 2, 3, 999};
        talk.messages = {{"system", ""}, {"user", "Hello."}, {"assistant", "D\xc3\xbc\n\\ \xff"}};
        KvCache cache = filled(1);
        save_conversation(path, talk, cache, MODEL);
    }

    KvCache cache(int capacity = 9, DType dtype = DType::F16) {
        return KvCache(*backend, config, capacity, dtype);
    }
    KvCache filled(uint64_t seed) {
        KvCache one = cache();
        Random random(seed);
        std::vector<char> rows(one.snapshot_bytes(5));
        for (char& byte : rows) byte = char(random.below(256));
        one.load(rows.data(), 5);
        return one;
    }
};

std::vector<char> rows_of(const KvCache& cache) {
    std::vector<char> rows(cache.snapshot_bytes(cache.used));
    cache.save(rows.data());
    return rows;
}

std::string bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void put_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("a conversation comes back as it was saved, into a cache of any size that holds it") {
    Saved saved;
    for (int capacity : {5, 9, 40}) {
        KvCache cache = saved.cache(capacity);
        Conversation talk = load_conversation(saved.path, cache, MODEL, VOCABULARY, "llama3");
        CHECK(talk.ids == saved.talk.ids);
        REQUIRE(talk.messages.size() == saved.talk.messages.size());
        for (size_t i = 0; i < talk.messages.size(); i++) {
            CHECK(talk.messages[i].role == saved.talk.messages[i].role);
            CHECK(talk.messages[i].text == saved.talk.messages[i].text);
        }
        CHECK(cache.used == 5);
        CHECK(rows_of(cache) == rows_of(saved.filled(1)));
    }
}

TEST_CASE("a conversation behind a window comes back where its rings never come round, and from there") {
    Saved saved;
    Bases bases = Bases::identity(saved.config, 4);
    bases.sinks = 1, bases.recent = 2;
    auto cache = [&](int capacity) {
        return KvCache(*saved.backend, saved.config, capacity, DType::F16, &bases, 4);
    };
    for (auto [from, to] : {std::pair{6, 40}, {40, 6}}) {
        KvCache one = cache(from), other = cache(to);
        CHECK((one.layer[0].k[0].store[0].ring > 0) == (from > 6));
        std::vector<char> rows(one.snapshot_bytes(5));
        for (size_t i = 0; i < rows.size(); i++) rows[i] = char(i * 7);
        one.load(rows.data(), 5);
        save_conversation(saved.path, saved.talk, one, MODEL);
        load_conversation(saved.path, other, MODEL, VOCABULARY, "llama3");
        CHECK(rows_of(other) == rows);
        bases.recent = 3;
        KvCache wider = cache(to);
        CHECK_THROWS_WITH_AS(load_conversation(saved.path, wider, MODEL, VOCABULARY, "llama3"),
                             doctest::Contains("another window"), Error);
        bases.recent = 2;
    }
}

TEST_CASE("a saved conversation with any byte changed, missing or added is refused") {
    Saved saved;
    const std::string good = bytes_of(saved.path);
    KvCache cache = saved.filled(2);
    const std::vector<char> before = rows_of(cache);
    auto refused = [&](const std::string& bytes) {
        put_bytes(saved.path, bytes);
        try {
            load_conversation(saved.path, cache, MODEL, VOCABULARY, "llama3");
        } catch (const Error& error) {
            return std::string(error.what()).find('\n') == std::string::npos;
        }
        return false;
    };
    size_t accepted = 0;
    for (size_t i = 0; i < good.size(); i++)
        for (unsigned char flip : {1, 0x80, 0xff}) {
            std::string bad = good;
            bad[i] = char(bad[i] ^ flip);
            accepted += !refused(bad);
        }
    for (size_t length = 0; length < good.size(); length++)
        accepted += !refused(good.substr(0, length));
    for (const char* more : {"x", "12345678", "123456789abcdef"}) accepted += !refused(good + more);
    for (size_t field = 8; field < 56; field += 4)        // sizes that nobody has
        for (const char* huge : {"\xff\xff\xff\xff", "\xff\xff\xff\x7f"})
            accepted += !refused(std::string(good).replace(field, 4, huge, 4));
    CHECK(accepted == 0);
    CHECK(cache.used == 5);
    CHECK(rows_of(cache) == before);
    put_bytes(saved.path, good);
    CHECK_NOTHROW(load_conversation(saved.path, cache, MODEL, VOCABULARY, "llama3"));
}

TEST_CASE("a conversation of another model, cache or vocabulary is refused by name") {
    Saved saved;
    KvCache cache = saved.cache(), small = saved.cache(4), other = saved.cache(9, DType::BF16);
    saved.config.G = 4;
    KvCache more_heads = saved.cache();
    using doctest::Contains;
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, cache, MODEL + 1, VOCABULARY, "llama3"),
                         Contains("another model"), Error);
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, other, MODEL, VOCABULARY, "llama3"),
                         Contains("--cache f16"), Error);
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, small, MODEL, VOCABULARY, "llama3"),
                         Contains("--context 5"), Error);
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, more_heads, MODEL, VOCABULARY, "llama3"),
                         Contains("another cache"), Error);
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, cache, MODEL, 999, "llama3"),
                         Contains("token 999"), Error);
    CHECK_THROWS_AS(
        load_conversation(saved.scratch.path("none"), cache, MODEL, VOCABULARY, "llama3"), Error);
    put_bytes(saved.path, "What is this?");
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, cache, MODEL, VOCABULARY, "llama3"),
                         Contains("no saved conversation"), Error);
}

TEST_CASE("a conversation is in its form and of its version") {
    Saved saved;
    KvCache cache = saved.filled(2);
    saved.talk.form = "chatml";
    save_conversation(saved.path, saved.talk, cache, MODEL);
    CHECK(load_conversation(saved.path, cache, MODEL, VOCABULARY, "chatml").form == "chatml");
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, cache, MODEL, VOCABULARY, "llama3"),
                         doctest::Contains("--template chatml"), Error);

    std::string bytes = bytes_of(saved.path);
    bytes[8] = 1;                                          // a version of the past
    put_bytes(saved.path, bytes);
    CHECK_THROWS_WITH_AS(load_conversation(saved.path, cache, MODEL, VOCABULARY, "chatml"),
                         doctest::Contains("is of version 1, this program reads version 4"), Error);
}

TEST_CASE("saving replaces a conversation, and no other file") {
    Saved saved;
    KvCache cache = saved.filled(3);
    CHECK_NOTHROW(save_conversation(saved.path, saved.talk, cache, MODEL));
    std::string other = saved.scratch.path("model.safetensors");
    put_bytes(other, "precious weights");
    CHECK_THROWS_WITH_AS(save_conversation(other, saved.talk, cache, MODEL),
                         doctest::Contains("is no conversation"), Error);
    CHECK(bytes_of(other) == "precious weights");
    std::string nowhere = saved.scratch.path("no/such/folder");
    CHECK_THROWS_AS(save_conversation(nowhere, saved.talk, cache, MODEL), Error);
}

TEST_SUITE_END();

}  // namespace stief::testing
