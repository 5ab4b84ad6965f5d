// What a session is said to take is what it takes.
#include "commands/session.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

Args args_of(std::vector<std::string> more) {
    std::vector<std::string> words = {more[0], "models/parlour"};
    words.insert(words.end(), more.begin() + 1, more.end());
    return parse_args(words);
}

// The host's backend, told that it is a device with memory of its own.
struct OnADevice {
    Threads threads{1};
    std::unique_ptr<Backend> backend = make_backend({"cpu", "auto"}, threads);
    Config config = Config::open("models/parlour");
    Weights weights = Weights::open(config);

    explicit OnADevice(bool device) { backend->copies_weights = backend->cold_apart = device; }
    Plan plan(std::vector<std::string> words) {
        return plan_of(args_of(std::move(words)), config, weights, *backend);
    }
};

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("a session takes the cache that its plan says, and inspect plans the same") {
    const std::vector<std::vector<std::string>> cases = {
        {"generate"}, {"generate", "--exact", "--context", "300"},
        {"generate", "--cache", "q4", "--context", "700"},
        {"generate", "--cache", "q4", "--context", "700", "--risk", "audit", "--audit", "5"}};
    for (std::vector<std::string> words : cases) {
        CAPTURE(words.back());
        OnADevice host(false);
        Args args = args_of(words);
        args.backend = "cpu", args.quiet = true;
        Session session(args);
        Plan plan = host.plan(words);
        Plan::Bytes bytes = plan.bytes(plan.context);
        CHECK(plan.context == session.context);
        CHECK(bytes.cache == session.cache->bytes());
        CHECK(bytes.whole == (session.watch ? session.watch->whole_bytes() : 0));
        size_t sum = 0;
        for (int l = 0; l < host.config.L; l++) sum += plan.bytes_per_token(size_t(l));
        CHECK(sum == session.cache->bytes_per_token());
        if (args.exact || args.risk != "off") continue;
        words[0] = "inspect";
        Plan said = host.plan(words);
        CHECK(said.bytes(said.context).cache == bytes.cache);
        CHECK(said.bytes(said.context).activations == bytes.activations);
    }
}

TEST_CASE("a device's passes are longer, and inspect counts their rings and activations") {
    OnADevice host(false), device(true);
    const std::vector<std::string> words = {"inspect", "--cache", "q4", "--ages", "200:8"};
    Plan near = host.plan(words), far = device.plan(words);
    CHECK(near.batch == 512);
    CHECK(far.batch == 2048);
    CHECK(far.bytes(2048).cache > near.bytes(2048).cache);
    CHECK(far.bytes(2048).activations > near.bytes(2048).activations);
}

TEST_CASE("a verb that compares counts both caches") {
    OnADevice host(false);
    Plan one = host.plan({"perplexity", "x.txt", "--context", "300"});
    CHECK(!one.reference);
    for (std::string verb : {"perplexity", "risk"}) {
        Plan both = host.plan({verb, "x.txt", "--context", "300", "--cache", "q4"});
        Plan::Bytes all = both.bytes(300);
        CHECK(all.reference == both.whole_bytes(300));
        size_t needs = all.cache + all.activations + all.reference;
        CHECK(too_large(both, {needs, {}}).empty());
        CHECK(too_large(both, {needs - 1, {}})
                  .find("the cache, the one it is compared with and the activations of 300 positions") == 0);
    }
    Plan exact = host.plan({"perplexity", "x.txt", "--context", "300", "--compare", "exact"});
    CHECK(exact.bytes(300).reference == KvCache::bytes_for(host.config, 300, DType::F32));
}

TEST_CASE("whole rows beside a device are the host's memory, and a plan is refused where they lie") {
    OnADevice device(true);
    Plan plan = device.plan({"generate", "--cache", "q4", "--risk", "audit"});
    Plan::Bytes all = plan.bytes(plan.context);
    REQUIRE(all.whole > 0);
    size_t others = all.cache + all.activations + all.logits, brought = plan.brought_bytes(plan.context);
    CHECK(brought == all.whole / size_t(device.config.L));
    size_t own = others + brought;
    CHECK(too_large(plan, {own, all.whole}).empty());
    CHECK(too_large(plan, {others + all.whole, {}}).empty());
    std::string both = too_large(plan, {others + all.whole - 1, {}});
    CHECK(both.find("its whole rows and the activations") != std::string::npos);
    std::string little = too_large(plan, {own - 1, all.whole});
    CHECK(little.find("the cache and the activations of 2048 positions need") == 0);
    CHECK(little.find("--context 20") != std::string::npos);
    std::string host = too_large(plan, {own, all.whole / 2});
    CHECK(host.find("the whole rows of 2048 positions need") == 0);
    CHECK(host.find("of host memory") != std::string::npos);
    CHECK(host.find("--context 10") != std::string::npos);
    CHECK(too_large(plan, {0, 0}).find("not even one position fits") != std::string::npos);

    Room room = room_of(*device.backend);
    CHECK(room.host.has_value());
    device.backend->cold_apart = false;
    CHECK(!room_of(*device.backend).host.has_value());
}

TEST_SUITE_END();
