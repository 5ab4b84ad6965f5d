// Weights bound by name: every tensor at its place; what is missing, extra or mis-shaped is named.
#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "base/bf16.h"
#include "random_checkpoint.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

struct Model {
    Scratch scratch;
    Config config;

    explicit Model(bool tied, const RandomCheckpoint& options = {}) {
        std::ofstream(scratch.path("config.json"))
            << R"({"model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
                   "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "head_dim": 6, "vocab_size": 40, "tie_word_embeddings": )"
            << (tied ? "true}" : "false}");
        config = Config::open(scratch.folder.string());
        write_random_checkpoint(config, options);
    }
    std::string file() const { return scratch.path("model.safetensors"); }

    // Writes the file again after a change to the list of its tensors.
    template <class Change>
    void rewrite(const Change& change) const {
        SafeTensors files = SafeTensors::open_file(file());
        std::vector<NamedTensor> tensors;
        for (const auto& [name, info] : files.tensors)
            tensors.push_back({name, files.take(name, info.shape, "")});
        change(tensors);
        write_safetensors(file(), tensors, {});
    }
    std::string error() const {
        try {
            Weights::open(config);
        } catch (const Error& e) {
            return e.what();
        }
        return "";
    }
};

NamedTensor& named(std::vector<NamedTensor>& tensors, const std::string& name) {
    auto at = std::find_if(tensors.begin(), tensors.end(), [&](auto& t) { return t.name == name; });
    REQUIRE(at != tensors.end());
    return *at;
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != text.npos;
}

}  // namespace

TEST_SUITE_BEGIN("model");

TEST_CASE("weights: every tensor is bound, tied or not, in one file or in shards") {
    for (bool tied : {true, false})
        for (int shards : {1, 4}) {
            Model model(tied, {.seed = 3, .dtype = DType::F16, .shards = shards});
            Weights w = Weights::open(model.config);
            CHECK(w.files.files.size() == size_t(shards));
            REQUIRE(w.layer.size() == 3);
            CHECK(w.layer[2].wq.shape == Shape{24, 16});
            CHECK(w.layer[2].wk.shape == Shape{12, 16});
            CHECK(w.layer[2].wo.shape == Shape{16, 24});
            CHECK(w.layer[2].w_down.shape == Shape{16, 24});
            CHECK(w.layer[0].wk.data != w.layer[0].wv.data);
            CHECK((w.classifier.data == w.embedding.data) == tied);
            size_t layer = 2 * 16 + 2 * 24 * 16 + 2 * 12 * 16 + 3 * 24 * 16;
            CHECK(w.parameters() == 3 * layer + 16 + size_t(tied ? 1 : 2) * 40 * 16);
            CHECK(w.bytes() == 2 * w.parameters());
        }
}

TEST_CASE("weights: a missing tensor is named, and what is there instead") {
    Model model(false);
    model.rewrite([](auto& t) { named(t, "model.layers.1.mlp.up_proj.weight").name += "_scale"; });
    CHECK(contains(model.error(), "the tensor model.layers.1.mlp.up_proj.weight is missing"));
    CHECK(contains(model.error(), "found: model.layers.1.mlp.up_proj.weight_scale"));
}

TEST_CASE("weights: an extra tensor is named; the rotary frequencies of old checkpoints are not") {
    Model model(true);
    static const float zeros[3] = {};
    NamedTensor extra{"model.layers.0.self_attn.rotary_emb.inv_freq", {zeros, DType::F32, {3}}};
    model.rewrite([&](auto& t) { t.push_back(extra); });
    CHECK(model.error() == "");
    extra.name = "model.layers.3.input_layernorm.weight";
    model.rewrite([&](auto& t) { t.push_back(extra); });
    CHECK(contains(model.error(),
                   "model.layers.3.input_layernorm.weight has no place in a Llama of 3"));
    extra.name = "model.layers.0.self_attn.q_proj.bias";
    model.rewrite([&](auto& t) { t.push_back(extra); });
    CHECK(contains(model.error(), "q_proj.bias (and 1 more) has no place"));
}

TEST_CASE("weights: a tensor of another shape is named with both shapes and the config's reason") {
    Model model(true);
    model.rewrite([](auto& t) {
        named(t, "model.layers.1.self_attn.k_proj.weight").tensor.shape = {6, 32};
    });
    CHECK(contains(model.error(),
                   "model.safetensors: model.layers.1.self_attn.k_proj.weight is (6, 32), "
                   "expected (12, 16) (config.json says hidden_size 16, 2 kv heads of 6)"));
    model.config.D = 32;
    CHECK(contains(model.error(), "model.embed_tokens.weight is (40, 16), expected (40, 32)"));
}

TEST_CASE("weights: quantised weights are refused by name") {
    Model model(true, {.dtype = DType::F32});
    std::fstream file(model.file(), std::ios::in | std::ios::out | std::ios::binary);
    std::string text(std::istreambuf_iterator<char>(file), {});
    size_t at = text.find("\"F32\"", text.find("layers.1.self_attn.o_proj"));
    file.seekp(long(at)).write("\"I32\"", 5).flush();
    CHECK(contains(model.error(),
                   "layers.1.self_attn.o_proj.weight is I32, expected F32, F16 or BF16"));
}

TEST_CASE("weights: the classifier is the embedding only where both files agree") {
    Model untied(false);
    untied.rewrite(
        [](auto& t) { std::erase_if(t, [](auto& n) { return n.name == "lm_head.weight"; }); });
    CHECK(contains(untied.error(),
                   "the tensor lm_head.weight is missing; config.json would have to say "
                   "\"tie_word_embeddings\": true"));
    Model both(false);
    both.config.tied_embeddings = true;
    CHECK(contains(both.error(), "lm_head.weight differs from model.embed_tokens.weight"));
    both.rewrite([](auto& t) {
        named(t, "lm_head.weight").tensor = named(t, "model.embed_tokens.weight").tensor;
    });
    CHECK(both.error() == "");
    Weights w = Weights::open(both.config);
    CHECK(w.classifier.data == w.embedding.data);
}

TEST_CASE("weights: a lost or cut shard is named") {
    Model model(false, {.shards = 3});
    std::string shard = "model-00002-of-00003.safetensors";
    std::filesystem::resize_file(model.scratch.path(shard),
                                 std::filesystem::file_size(model.scratch.path(shard)) - 1);
    CHECK(contains(model.error(), shard + ": the tensors take"));
    CHECK(contains(model.error(), "it is cut off (is the download complete?)"));
    std::filesystem::remove(model.scratch.path(shard));
    CHECK(contains(model.error(), "the shard " + shard + " that model.safetensors.index.json"));
}

TEST_CASE("weights: the fingerprint tells models apart, and not what does not change them") {
    Model a(true, {.seed = 1}), sharded(true, {.seed = 1, .shards = 2}), b(true, {.seed = 2});
    uint64_t print = Weights::open(a.config).fingerprint(a.config);
    CHECK(print == Weights::open(sharded.config).fingerprint(sharded.config));
    CHECK(print != Weights::open(b.config).fingerprint(b.config));
    Weights w = Weights::open(a.config);
    Config other = a.config;
    other.context = 77, other.eos = {1};
    CHECK(print == w.fingerprint(other));
    other.rope_theta = 11;
    CHECK(print != w.fingerprint(other));
    w.layer[1].wk.shape = {16, 12};
    CHECK(print != w.fingerprint(a.config));
}

TEST_CASE("random checkpoints: weights have the spread asked for, norms lie around 1") {
    for (double std : {0.0, 0.02}) {
        Model model(true, {.dtype = DType::F32, .std = std});
        Weights w = Weights::open(model.config);
        auto moments = [](const Tensor& t) {
            const unsigned char* bytes = static_cast<const unsigned char*>(t.data);
            double sum = 0, squares = 0, n = double(t.count());
            for (size_t i = 0; i < t.count(); i++) {
                float x;
                std::memcpy(&x, bytes + 4 * i, 4);
                sum += x, squares += double(x) * x;
            }
            return std::pair(sum / n, std::sqrt(squares / n - sum / n * sum / n));
        };
        double want = std > 0 ? std : 1 / std::sqrt(16.0);
        auto [mean, spread] = moments(w.embedding);
        CHECK(std::fabs(mean) <= want * 4 / std::sqrt(640.0));
        CHECK(spread == doctest::Approx(want).epsilon(0.1));
        CHECK(moments(w.norm).first == doctest::Approx(1).epsilon(0.1));
    }
}

TEST_SUITE_END();
