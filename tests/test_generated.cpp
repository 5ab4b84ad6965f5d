// What generate() writes on every backend: where it ends, and what it says of numbers that are none.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>

#include "base/file.h"
#include "formats/safetensors.h"
#include "forward/finite.h"
#include "forward/generate.h"
#include "backends.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("forward");

TEST_CASE("greedy text ends where it is asked to, and nothing behind it stays in the cache") {
    Scratch scratch;
    write_tiny_model({.why = "no token follows itself", .tied = false, .deviation = 0.6},
                     scratch.folder.string());
    const std::vector<Token> prompt = {3, 8, 21};
    constexpr int ALL = 12;
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Model model = open_model(scratch.folder.string(), variant);
        size_t V = size_t(model.config.V);
        Transformer transformer(model, 64);
        // ids one by one behind the prompt, and the logits that follow the last.
        auto logits_behind = [&](KvCache& cache, const std::vector<Token>& ids) {
            std::vector<float> logits(V, NaN);
            for (Token id : ids) transformer.forward(cache, {&id, 1}, logits.data(), 1);
            return logits;
        };
        KvCache plain(*model.backend, model.config, 64, DType::F16);
        std::vector<float> logits(V, NaN);
        transformer.forward(plain, prompt, logits.data(), 1);
        std::vector<Token> text;
        while (int(text.size()) < ALL) {
            text.push_back(Token(std::max_element(logits.begin(), logits.end()) - logits.begin()));
            logits = logits_behind(plain, {text.back()});
        }
        int end = ALL - 1;   // the last token that has not come before
        while (std::count(text.begin(), text.begin() + end, text[size_t(end)])) end--;
        REQUIRE(end > 0);
        const struct { int limit, stop, capacity, tokens; bool ends; Stop why; } cases[] = {
            {0, 99, 64, 0, false, Stop::Limit},   {1, 99, 64, 1, false, Stop::Limit},
            {5, 99, 64, 5, false, Stop::Limit},   {ALL, 4, 64, 4, false, Stop::Asked},
            {ALL, 99, 8, 5, false, Stop::Full},   {ALL, 99, 3, 0, false, Stop::Full},
            {ALL, 99, 64, end, true, Stop::EndOfText},
        };
        for (const auto& c : cases) {
            CAPTURE(c.limit);
            CAPTURE(int(c.why));
            KvCache cache(*model.backend, model.config, c.capacity, DType::F16);
            Sampler sampler({.greedy = true}, 1);
            std::vector<Token> got, ends;
            if (c.ends) ends = {text[size_t(end)]};
            Generated made = generate(transformer, cache, sampler, prompt, c.limit, ends,
                                      [&](Token id) {
                                          got.push_back(id);
                                          return int(got.size()) < c.stop;
                                      });
            CHECK(made.why == c.why);
            CHECK(got == std::vector<Token>(text.begin(), text.begin() + c.tokens));
            REQUIRE(cache.used == int(prompt.size()) + c.tokens);
            if (cache.used == c.capacity) continue;
            KvCache again(*model.backend, model.config, 64, DType::F16);
            transformer.forward(again, prompt, logits.data(), 1);
            logits_behind(again, got);
            CHECK(same_bits(logits_behind(cache, {7}), logits_behind(again, {7})));
        }
    }
}

// Multiplies a tensor of a float32 checkpoint in its file.
static void scale(const std::string& folder, const std::string& tensor, float factor) {
    std::string path = folder + "/model.safetensors";
    TensorInfo info = SafeTensors::open_file(path).tensors.at(tensor);
    std::string bytes = read_text(path);
    for (size_t at = info.offset; at < info.offset + info.bytes; at += sizeof(float)) {
        float x;
        std::memcpy(&x, &bytes[at], sizeof x);
        x *= factor;
        std::memcpy(&bytes[at], &x, sizeof x);
    }
    std::ofstream(path, std::ios::binary) << bytes;
}

TEST_CASE("values too large for an f16 cache are told from damaged weights, on every backend") {
    const float infinity = std::numeric_limits<float>::infinity();
    const struct { const char* tensor; float factor; DType cache; const char* message; } cases[] = {
        {"model.layers.1.self_attn.v_proj.weight", 1e7f, DType::F16, "layer 1 are too large"},
        {"model.layers.0.self_attn.k_proj.weight", 1e7f, DType::F16, "layer 0 are too large"},
        {"model.layers.1.self_attn.v_proj.weight", 1e7f, DType::BF16, ""},
        {"model.layers.1.self_attn.v_proj.weight", infinity, DType::F16, "weights are damaged"},
        {"model.layers.0.mlp.down_proj.weight", NaN, DType::F16, "weights are damaged"},
        {"model.layers.0.mlp.down_proj.weight", 1, DType::F16, ""},
    };
    for (const Variant& variant : groups())
        for (const auto& c : cases) {
            CAPTURE(c.tensor);
            CAPTURE(c.factor);
            Scratch scratch;
            write_tiny_model({.why = "overflow"}, scratch.folder.string());
            scale(scratch.folder.string(), c.tensor, c.factor);
            Model model = open_model(scratch.folder.string(), variant);
            CAPTURE(variant.group);
            Transformer transformer(model, 16);
            std::vector<Token> ids = {1, 2, 3};
            for (bool greedy : {true, false}) {
                KvCache cache(*model.backend, model.config, 16, c.cache);
                Sampler sampler({.greedy = greedy}, 1);
                std::string said;
                try {
                    generate(transformer, cache, sampler, ids, 4, {}, [](Token) { return true; });
                    expect_rows_that_fit(model, cache);
                } catch (const Error& error) {
                    said = error.what();
                }
                CAPTURE(said);
                CHECK((*c.message ? said.find(c.message) != said.npos : said.empty()));
            }
        }
}

TEST_SUITE_END();
