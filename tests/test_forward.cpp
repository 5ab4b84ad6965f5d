// The forward pass against independent references, and what must hold whatever the numbers are.
#include <algorithm>

#include "base/file.h"
#include "commands/ids.h"
#include "forward/generate.h"
#include "forward/perplexity.h"
#include "backends.h"
#include "reference_llama.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

// Accumulated float32 rounding over a few layers; the reference is float64.
constexpr double TOL_LOGITS = 1e-9;

// (T, V) logits of ids, fed in pieces of `piece` tokens through passes of at most `batch`.
std::vector<float> logits_of(Model& model, const std::vector<Token>& ids, int piece,
                             int batch = 512, bool exact = true, DType cache_type = DType::F32) {
    KvCache cache(*model.backend, model.config, int(ids.size()), cache_type);
    Transformer transformer(model, int(ids.size()), batch);
    transformer.exact = exact;
    std::vector<float> logits(ids.size() * size_t(model.config.V), NaN);
    for (size_t at = 0; at < ids.size(); at += size_t(piece)) {
        size_t n = std::min(size_t(piece), ids.size() - at);
        transformer.forward(cache, {ids.data() + at, n},
                            logits.data() + at * size_t(model.config.V), int(n));
    }
    return logits;
}

std::vector<Token> random_ids(int n, int V, uint64_t seed) {
    Random random(seed);
    std::vector<Token> ids;
    for (int i = 0; i < n; i++) ids.push_back(Token(random.below(uint64_t(V))));
    return ids;
}

const struct {
    int piece, batch;
    const char* why;
} ways[] = {{1000, 512, "one batch"},
            {1000, 48, "several batches"},
            {37, 512, "pieces that end nowhere in particular"},
            {1, 512, "token by token"}};

const TinyModel tiny_models[] = {
    {.why = "grouped queries, tied"},
    {.why = "one kv head for all, head width not D / H", .D = 24, .H = 3, .G = 1, .d = 16},
    {.why = "a kv head for each query head, untied, bf16",
     .H = 4,
     .G = 4,
     .dtype = DType::BF16,
     .tied = false},
    {.why = "scaled rope, f16, odd widths",
     .D = 36,
     .F = 50,
     .V = 71,
     .d = 10,
     .dtype = DType::F16,
     .scaled_rope = true},
    {.why = "head width 128", .L = 1, .D = 40, .H = 2, .G = 1, .d = 128},
};

// Rows of the reference file: positions 3, 7, … 199 of a 200-token sequence (all 200 of
// stories260K).
void compare_with_file(const std::string& folder, const std::string& tokens,
                       const std::string& rows, int every, const Variant& variant) {
    Model model = open_model(folder, variant);
    size_t V = size_t(model.config.V);
    std::vector<Token> ids = parse_ids(read_text(tokens), tokens);
    MappedFile file(rows);
    size_t count = file.size / (V * sizeof(float));
    ids.resize(count * size_t(every));
    REQUIRE(count > 0);
    for (auto& way : ways) {
        if (variant.slow && &way != ways) continue;
        CAPTURE(std::string(way.why));
        std::vector<float> logits = logits_of(model, ids, way.piece, way.batch), got;
        for (size_t i = size_t(every) - 1; i < ids.size(); i += size_t(every))
            got.insert(got.end(), logits.begin() + ptrdiff_t(i * V),
                       logits.begin() + ptrdiff_t(i * V + V));
        std::vector<float> want(count * V, NaN);
        std::memcpy(want.data(), file.data, want.size() * sizeof(float));
        CHECK(nmse(got, want) <= TOL_LOGITS);
    }
}

}  // namespace

TEST_SUITE_BEGIN("forward");

TEST_CASE("logits agree with an independent implementation's, however the tokens are batched") {
    if (shared("models").empty()) return skip("needs ../shared/models");
    for (const Variant& variant : groups())
        for (const char* name :
             {"gqa-tied-bf16", "rope31-sharded-f16", "headdim128-f32", "parlour"}) {
            CAPTURE(variant.group);
            CAPTURE(std::string(name));
            std::string folder = shared("models") + "/" + name;
            compare_with_file(folder, folder + "/reference_tokens.txt",
                              folder + "/reference_logits.f32", 4, variant);
        }
}

TEST_CASE("logits of a trained model agree with the original C program's") {
    std::string folder = shared("data/stories260K");
    if (folder.empty()) return skip("needs ../shared/data");
    compare_with_file(folder, folder + "/ref_tokens.txt", folder + "/ref_logits_f32.bin", 1,
                      groups().front());
}

TEST_CASE("SmolLM2's logits agree with a Llama in double precision") {
    if (smollm2().empty()) return skip("needs SmolLM2-135M-Instruct: --smollm2=FOLDER");
    Model model = open_model(smollm2());
    // "The capital of France is", as a message.
    std::vector<Token> ids = {1, 4093, 198, 504, 3575, 282, 4649, 314, 2, 198};
    std::vector<float> got = logits_of(model, ids, 1000);
    ReferenceLlama reference(model.config, model.weights);
    Vec want;
    for (Token id : ids) {
        Vec row = reference.next(id);
        want.insert(want.end(), row.begin(), row.end());
    }
    CHECK(nmse(got, want) <= TOL_LOGITS);
}

TEST_CASE(
    "logits agree with a Llama in double precision, for every shape, dtype and way of feeding") {
    for (const TinyModel& tiny : tiny_models) {
        CAPTURE(std::string(tiny.why));
        Scratch scratch;
        write_tiny_model(tiny, scratch.folder.string());
        Model model = open_model(scratch.folder.string());
        std::vector<Token> ids = random_ids(90, tiny.V, 7);
        ReferenceLlama reference(model.config, model.weights);
        Vec want;
        for (Token id : ids)
            for (double z : reference.next(id)) want.push_back(z);
        for (auto way : ways) {
            CAPTURE(std::string(way.why));
            CHECK(nmse(logits_of(model, ids, way.piece, way.batch), want) <= TOL_LOGITS);
        }
    }
}

TEST_CASE("the number of threads does not change one bit") {
    Scratch scratch;
    write_tiny_model({.why = "", .D = 64, .F = 200, .V = 300, .dtype = DType::BF16},
                     scratch.folder.string());
    std::vector<Token> ids = random_ids(70, 300, 3);
    Variant any = groups().front();
    for (bool exact : {true, false}) {
        Model one = open_model(scratch.folder.string(), any, 1);
        std::vector<float> want = logits_of(one, ids, 41, 512, exact);
        for (int threads : {2, 3, 5}) {
            Model several = open_model(scratch.folder.string(), any, threads);
            std::vector<float> got = logits_of(several, ids, 41, 512, exact);
            CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
        }
    }
}

TEST_CASE("logits are given for the last tokens that are wanted, and only for them") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    std::vector<Token> ids = random_ids(40, 64, 5);
    std::vector<float> all = logits_of(model, ids, 1000, 16);
    for (int wanted : {0, 1, 7, 16, 17, 40}) {
        KvCache cache(*model.backend, model.config, 40, DType::F32);
        Transformer transformer(model, 40, 16);
        transformer.exact = true;
        std::vector<float> got(size_t(wanted) * 64 + 1, NaN);
        transformer.forward(cache, ids, got.data(), wanted);
        CHECK(std::isnan(got.back()));
        got.pop_back();
        std::vector<float> want(all.end() - wanted * 64, all.end());
        CHECK(nmse(got, want) <= TOL_F32);
        if (wanted == 0) continue;

        Buffer kept(*model.backend, got.size() * sizeof(float), "logits");
        cache.used = 0;
        transformer.forward_on_backend(cache, ids, kept.f32(), wanted);
        std::vector<float> same(got.size(), NaN);
        model.backend->download(same.data(), kept.data, kept.bytes);
        CHECK(nmse(same, want) <= TOL_F32);
    }
}

TEST_CASE("a token outside the vocabulary and a full context are errors") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    KvCache cache(*model.backend, model.config, 4, DType::F32);
    Transformer transformer(model, 4);
    std::vector<float> logits(64);
    for (Token bad : {-1, 64, 2147483647})
        CHECK_THROWS_WITH_AS(transformer.forward(cache, {&bad, 1}, logits.data(), 1),
                             doctest::Contains("vocabulary of 64"), Error);
    std::vector<Token> five(5, 1);
    CHECK_THROWS_WITH_AS(transformer.forward(cache, five, logits.data(), 1),
                         doctest::Contains("context is full"), Error);
}

TEST_CASE("a saved cache continues like the one it was saved from, to the last bit") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    std::vector<Token> ids = random_ids(20, 64, 9);
    for (DType type : {DType::F16, DType::BF16, DType::F32}) {
        KvCache cache(*model.backend, model.config, 32, type),
            other(*model.backend, model.config, 64, type);
        Transformer transformer(model, 32);
        std::vector<float> want(64, NaN), got(64, NaN);
        transformer.forward(cache, ids, want.data(), 1);
        std::vector<char> saved(cache.snapshot_bytes(cache.used));
        CHECK(saved.size() == 20 * cache.bytes_per_token());
        cache.save(saved.data());
        other.load(saved.data(), 20);
        Token next = 11;
        transformer.forward(cache, {&next, 1}, want.data(), 1);
        transformer.forward(other, {&next, 1}, got.data(), 1);
        CHECK(std::memcmp(got.data(), want.data(), 64 * sizeof(float)) == 0);
    }
}

TEST_CASE("the fast path stays within 1e-4 nats of the exact one on text") {
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Model model = open_model("models/parlour", variant);
        Tokenizer tokenizer = Tokenizer::open("models/parlour");
        std::vector<Token> ids = {model.config.bos};
        for (Token id : tokenizer.encode(read_text("models/parlour/MODEL.md"))) ids.push_back(id);
        Protocol protocol;
        protocol.context = int(std::min<size_t>(ids.size(), variant.slow ? 64 : 512));
        protocol.limit = 1;
        KvCache fast(*model.backend, model.config, protocol.context, DType::F16);
        KvCache exact(*model.backend, model.config, protocol.context, DType::F32);
        Transformer transformer(model, protocol.context);
        Runner tested{transformer, fast, false}, reference{transformer, exact, true};
        Measured measured = measure(tested, &reference, ids, protocol, nullptr);
        CHECK(measured.divergence.mean <= 1e-4);
        CHECK(measured.divergence.same_top >= (variant.slow ? 0.95 : 0.99));  // of 63, 3 may differ
    }
}

TEST_CASE("every backend gives the same logits and the same greedy text") {
    Tokenizer tokenizer = Tokenizer::open("models/parlour");
    std::vector<Token> prompt = tokenizer.encode("She looked out of the window, and the rain");
    Model reference = Model::open("models/parlour", {.name = "cpu", .isa = "portable"}, 2);
    std::vector<float> want = logits_of(reference, prompt, 100);
    prompt.insert(prompt.begin(), reference.config.bos);

    auto greedy_text = [&](Model& model, bool exact, int tokens) {
        KvCache cache(*model.backend, model.config, 64, exact ? DType::F32 : DType::F16);
        Transformer transformer(model, 64);
        transformer.exact = exact;
        Sampler sampler({.greedy = true}, 1);
        std::vector<Token> text;
        generate(transformer, cache, sampler, prompt, tokens, {},
                 [&](Token id) { return text.push_back(id), true; });
        return text;
    };
    std::vector<Token> text = greedy_text(reference, true, 12), beginning(text.begin(), text.begin() + 3);
    CHECK(text.size() == 12);
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Model model = open_model("models/parlour", variant);
        std::vector<Token> plain(prompt.begin() + 1, prompt.end());
        CHECK(nmse(logits_of(model, plain, 100), want) <= 1e-9);
        CHECK(nmse(logits_of(model, plain, 100, 512, false, DType::F16), want) <= 1e-5);
        for (bool exact : {true, false})
            CHECK(greedy_text(model, exact, variant.slow ? 3 : 12) == (variant.slow ? beginning : text));
    }
}

// A GPU captures steps, each for positions up to a bound (CudaBackend::reach).
TEST_CASE("tokens one by one, over the bounds of what was captured, are what they are together") {
    Scratch scratch;
    write_tiny_model({.why = "", .H = 2, .G = 1, .context = 1040},
                     scratch.folder.string());
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Model model = open_model(scratch.folder.string(), variant);
        size_t V = size_t(model.config.V);
        std::vector<Token> ids;
        for (int i = 0; i < 1040; i++) ids.push_back(Token((i * 31 + i / 7) % model.config.V));
        for (int near : {256, 1024}) {
            if (variant.slow && near > 256) continue;
            CAPTURE(near);
            Transformer transformer(model, 1040, 64);
            transformer.exact = true;
            std::span<const Token> all(ids.data(), size_t(near + 6));
            KvCache together(*model.backend, model.config, 1040, DType::F32);
            std::vector<float> want(12 * V, NaN), got(12 * V, NaN);
            transformer.forward(together, all, want.data(), 12);
            KvCache cache(*model.backend, model.config, 1040, DType::F32);
            transformer.forward(cache, all.first(size_t(near - 6)), nullptr, 0);
            for (size_t i = 0; i < 12; i++)
                transformer.forward(cache, all.subspan(size_t(near - 6) + i, 1), &got[i * V], 1);
            CHECK(nmse(got, want) <= TOL_F32);
        }
    }
}

TEST_SUITE_END();
