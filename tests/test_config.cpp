// config.json and generation_config.json: spellings, defaults, and what is refused by name.
#include "model/config.h"

#include <fstream>
#include <numbers>

#include "base/file.h"
#include "base/json.h"
#include "model/sampling.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

const char* const LLAMA3 = R"("rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"})";

// A small config, in which a member is replaced, or added where there is none of this name.
struct Folder {
    Scratch scratch;

    static std::string with(const std::string& member) {
        std::string text = R"("model_type": "llama", "hidden_size": 64, "intermediate_size": 96)"
            R"(, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 300)";
        if (member.empty()) return "{" + text + "}";
        std::string key = member.substr(0, member.find(':'));
        size_t at = text.find(key + ":");
        if (at == text.npos) return "{" + text + ", " + member + "}";
        size_t end = std::min(text.find(',', at), text.size());
        return "{" + text.replace(at, end - at, member) + "}";
    }
    Config open(const std::string& config, const std::string& generation = "") const {
        std::ofstream(scratch.path("config.json")) << config;
        std::filesystem::remove(scratch.path("generation_config.json"));
        if (!generation.empty())
            std::ofstream(scratch.path("generation_config.json")) << generation;
        return Config::open(scratch.folder.string());
    }
};

// transformers' rule, worked out anew from wavelengths: three bands, the middle one blended
// linearly in the number of turns within the original context.
double stretched(double theta, const RopeScaling& s) {
    double wavelength = 2 * std::numbers::pi / theta, context = s.original_context;
    double longest = context / s.low_freq_factor, shortest = context / s.high_freq_factor;
    if (wavelength < shortest) return theta;
    if (wavelength > longest) return theta / s.factor;
    double smooth =
        (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return (1 - smooth) * theta / s.factor + smooth * theta;
}

}  // namespace

TEST_SUITE_BEGIN("model");

TEST_CASE("config: what is absent is what transformers' LlamaConfig takes for it") {
    Folder folder;
    Config c = folder.open(folder.with(""));
    CHECK(c.L == 2);
    CHECK(c.D == 64);
    CHECK(c.F == 96);
    CHECK(c.V == 300);
    CHECK(c.H == 8);
    CHECK(c.G == 8);
    CHECK(c.d == 8);
    CHECK(c.context == 2048);
    CHECK(c.norm_eps == 1e-6f);
    CHECK(c.rope_theta == 10000);
    CHECK(c.rope_scaling.factor == 1);
    CHECK_FALSE(c.tied_embeddings);
    CHECK(c.bos == -1);
    CHECK(c.eos.empty());
    CHECK(Sampling::open(c.folder).takes_likeliest());
    Config nulls = folder.open(folder.with(R"("head_dim": null, "num_key_value_heads": null,
        "rope_scaling": null, "eos_token_id": null, "quantization_config": null,
        "sliding_window": null)"));
    CHECK(nulls.G == 8);
    CHECK(nulls.d == 8);
}

TEST_CASE("config: both spellings of the rotary embedding mean the same") {
    Folder folder;
    std::string inner = R"("factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 8192})";
    std::string theta = R"("rope_theta": 5e5, )";
    std::string newest = R"("rope_parameters": {"rope_theta": 5e5, "rope_type":"llama3", )" + inner;
    std::string older = theta + R"("rope_scaling": {"type": "llama3", )" + inner;
    for (const std::string& members : {
             older, newest, older + ", " + newest, R"("dtype": "bfloat16", )" + newest,
             theta + R"("rope_scaling": {"rope_type": "llama3", )" + inner,
             theta + R"("rope_scaling": {"type": "llama3", "rope_type": "llama3", )" + inner}) {
        CAPTURE(members);
        Config c = folder.open(folder.with(members));
        CHECK(c.rope_theta == 500000);
        CHECK(c.rope_scaling.factor == 8);
        CHECK(c.rope_scaling.low_freq_factor == 1);
        CHECK(c.rope_scaling.high_freq_factor == 4);
        CHECK(c.rope_scaling.original_context == 8192);
    }
    Config c = folder.open(
        folder.with(R"("rope_parameters": {"rope_theta": 7.0, "rope_type": "default"})"));
    CHECK(c.rope_theta == 7);
    CHECK(c.rope_scaling.factor == 1);
}

TEST_CASE("config: end ids of both files are merged, sampling comes from generation_config.json") {
    Folder folder;
    Config c =
        folder.open(folder.with(R"("bos_token_id": 256, "eos_token_id": 257)"),
                    R"({"bos_token_id": 9, "eos_token_id": [258, 257, 259], "do_sample": true,
                               "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.05})");
    CHECK(c.bos == 256);
    CHECK(c.eos == std::vector<Token>{257, 258, 259});
    Sampling how = Sampling::open(c.folder);
    CHECK_FALSE(how.takes_likeliest());
    CHECK(how.temperature == 0.6);
    CHECK(how.top_k == 40);
    CHECK(how.top_p == 0.9);
    CHECK(how.min_p == 0.05);
    CHECK(how.ignored == "");
    c = folder.open(folder.with(R"("eos_token_id": [1, 2])"),
                    R"({"bos_token_id": 9, "temperature": 0})");
    CHECK(c.bos == 9);
    CHECK(c.eos == std::vector<Token>{1, 2});
    CHECK(Sampling::open(c.folder).takes_likeliest());
}

TEST_CASE("config: sampling that makes no sense is refused by who samples, and by nobody else") {
    Folder folder;
    for (const char* bad : {"\"temperature\": -1", "\"top_p\": 1.5", "\"top_k\": -2",
                            "\"min_p\": 2", "\"do_sample\": 1"}) {
        CAPTURE(bad);
        Config c = folder.open(folder.with(""), format("{%s}", bad));
        CHECK_THROWS_WITH_AS(Sampling::open(c.folder),
                             doctest::Contains("generation_config.json: "), Error);
    }
    Config c = folder.open(folder.with(""), R"({"top_k": -1})");
    CHECK(Sampling::open(c.folder).top_k == 0);
}

TEST_CASE("config: what generation_config.json asks for and nobody does is named") {
    const struct { const char *file, *ignored; } cases[] = {
        {R"({"repetition_penalty": 1.3, "num_beams": 1, "suppress_tokens": []})",
         "repetition_penalty 1.3"},
        {R"({"repetition_penalty": 1.0, "no_repeat_ngram_size": 3, "bad_words_ids": [[5]]})",
         "no_repeat_ngram_size 3, bad_words_ids"},
        {R"({"repetition_penalty": null, "forced_bos_token_id": 7, "max_length": 20})",
         "forced_bos_token_id"},
    };
    Folder folder;
    for (const auto& c : cases) {
        CAPTURE(c.file);
        CHECK(Sampling::open(folder.open(folder.with(""), c.file).folder).ignored == c.ignored);
    }
}

TEST_CASE("config: what this runtime would compute wrongly is refused by name") {
    const struct { const char* member; const char* message; } cases[] = {
        {R"("model_type": "mistral")", "model_type is \"mistral\", expected \"llama\""},
        {R"("model_type": 3)", "model_type: expected a string"},
        {R"("model_type": null)", "neither model_type nor architectures"},
        {R"("architectures": ["LlamaForSequenceClassification"])",
         "architectures: expected \"Llama"},
        {R"("attention_bias": true)", "attention_bias is true"},
        {R"("mlp_bias": true)", "mlp_bias is true"},
        {R"("attention_bias": 1)", "attention_bias: expected true or false"},
        {R"("hidden_act": "gelu")", "hidden_act is \"gelu\", expected \"silu\""},
        {R"("quantization_config": {"quant_method": "gptq"})", "the weights are quantised (gptq)"},
        {R"("sliding_window": 4096)", "sliding_window is set"},
        {R"("layer_types": ["full_attention", "sliding_attention"])", "has \"sliding_attention\""},
        {R"("partial_rotary_factor": 0.5)", "only a rotation of the whole head"},
        {R"("rope_scaling": {"type": "linear", "factor": 2.0})",
         "is \"linear\", expected \"llama3\""},
        {R"("rope_scaling": {"rope_type": "yarn", "factor": 4.0})",
         "rope_scaling: rope_type is \"yarn\""},
        {R"("rope_scaling": {"factor": 4.0})", "rope_scaling: rope_type is missing"},
        {R"("rope_scaling": {"rope_type": "llama3", "factor": 4.0})", "low_freq_factor is missing"},
        {R"("rope_scaling": {"rope_type": "llama3"})", "rope_scaling: factor is missing"},
        {R"("rope_scaling": {"rope_type": "llama3", "type": "linear"})", "disagree"},
        {R"("rope_scaling": {"rope_type": "llama3", "beta_fast": 32})",
         "beta_fast is not supported"},
        {R"("rope_scaling": {"rope_type": "llama3", "factor": 0.5})", "expected a number from 1"},
        {R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
             "high_freq_factor": 4, "original_max_position_embeddings": 8192})",
         "is not below"},
        {R"("rope_scaling": "llama3")", "rope_scaling: expected an object, found a string"},
        {R"("rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0})", "says something else"},
    };
    Folder folder;
    for (const auto& c : cases) {
        CAPTURE(c.member);
        CHECK_THROWS_WITH_AS(folder.open(folder.with(c.member)), doctest::Contains(c.message),
                             Error);
    }
}

TEST_CASE("config: impossible numbers are refused with their name") {
    const struct { const char* member; const char* message; } cases[] = {
        {R"("hidden_size": 0)", "config.json: hidden_size: expected an integer from 1 to"},
        {R"("hidden_size": -64)", "hidden_size: expected an integer"},
        {R"("hidden_size": 64.5)", "hidden_size: expected an integer"},
        {R"("hidden_size": "64")", "hidden_size: expected a number, found a string"},
        {R"("hidden_size": null)", "hidden_size is missing"},
        {R"("hidden_size": 100000000000000000000)", "hidden_size: expected an integer"},
        {R"("hidden_size": 4294967360)", "hidden_size: expected an integer"},
        {R"("hidden_size": 66)", "hidden_size 66 is no multiple of num_attention_heads 8"},
        {R"("hidden_size": 56)", "heads of width 7 cannot be rotated"},
        {R"("hidden_size": 1048576)", "heads of width 131072"},
        {R"("intermediate_size": 0)", "intermediate_size: expected"},
        {R"("num_hidden_layers": 1000000)", "num_hidden_layers: expected"},
        {R"("num_attention_heads": 0)", "num_attention_heads: expected"},
        {R"("vocab_size": 2147483648)", "vocab_size: expected"},
        {R"("num_key_value_heads": 3)", "8 attention heads cannot be shared by 3"},
        {R"("num_key_value_heads": 16)", "num_key_value_heads: expected an integer from 1 to 8"},
        {R"("head_dim": 7)", "heads of width 7"},
        {R"("head_dim": 0)", "head_dim: expected"},
        {R"("max_position_embeddings": 0)", "max_position_embeddings: expected"},
        {R"("rms_norm_eps": 0)", "rms_norm_eps: expected"},
        {R"("rms_norm_eps": 2)", "rms_norm_eps: expected"},
        {R"("rope_theta": 0)", "rope_theta: expected"},
        {R"("rope_theta": 1e999)", "rope_theta: 1e999 does not fit"},
        {R"("tie_word_embeddings": "yes")", "tie_word_embeddings: expected true or false"},
        {R"("bos_token_id": 300)", "bos_token_id: expected an integer from 0 to 299"},
        {R"("eos_token_id": -1)", "eos_token_id: expected an integer from 0"},
        {R"("eos_token_id": [1, "2"])", "eos_token_id: expected a number"},
        {R"("vocab_size": 300, "vocab_size": 301)", "two members named \"vocab_size\""},
    };
    Folder folder;
    for (const auto& c : cases) {
        CAPTURE(c.member);
        CHECK_THROWS_WITH_AS(folder.open(folder.with(c.member)), doctest::Contains(c.message),
                             Error);
    }
    for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "vocab_size"})
        CHECK_THROWS_WITH_AS(folder.open(folder.with(format("\"%s\": null", key))),
                             doctest::Contains(key), Error);
    CHECK_THROWS_WITH_AS(folder.open(folder.with(""), R"({"eos_token_id": 300})"),
                         doctest::Contains("generation_config.json: "), Error);
}

TEST_CASE("config: files that are no config are refused") {
    Folder folder;
    const std::string deep(1'000'000, '[');
    for (const std::string& text :
         {std::string(), std::string("[]"), std::string("{"), std::string("{}"),
          std::string("null"), std::string("\xff\xfe"), deep})
        CHECK_THROWS_WITH_AS(folder.open(text), doctest::Contains("config.json"), Error);
    CHECK_THROWS_WITH_AS(folder.open(folder.with(""), "7"), doctest::Contains("generation_config"),
                         Error);
    CHECK_THROWS_WITH_AS(Config::open("/no/such"), doctest::Contains("no such folder"), Error);
    Scratch empty;
    CHECK_THROWS_WITH_AS(Config::open(empty.folder.string()), doctest::Contains("no config.json"),
                         Error);
}

TEST_CASE("rope frequencies fall from 1 to nearly 1 / theta, and llama3 slows the low ones down") {
    Folder folder;
    for (const std::string& scaling :
         {std::string(R"("rope_scaling": null)"), std::string(LLAMA3)}) {
        Config c =
            folder.open(folder.with("\"rope_theta\": 500000.0, \"head_dim\": 128, " + scaling));
        std::vector<double> frequencies = rope_frequencies(c);
        REQUIRE(frequencies.size() == 64);
        std::vector<double> want;
        double theta = 1, ratio = std::exp(-std::log(500000.0) / 64);
        for (int j = 0; j < 64; j++, theta *= ratio)
            want.push_back(c.rope_scaling.factor == 1 ? theta : stretched(theta, c.rope_scaling));
        for (int j = 0; j < 64; j++)
            CHECK(frequencies[size_t(j)] == doctest::Approx(want[size_t(j)]).epsilon(1e-12));
        CHECK(frequencies[0] == 1);
    }
}

TEST_CASE("config: the published configs of Llama 3, 3.1 and 3.2 open") {
    std::string root = shared("data/llama3/configs");
    if (root.empty()) return skip("needs ../shared/data/llama3/configs");
    int opened = 0;
    for (const auto& file : std::filesystem::recursive_directory_iterator(root)) {
        std::string path = file.path().string();
        if (!path.ends_with("config.json") || path.ends_with("_config.json")) continue;
        CAPTURE(path);
        std::string generation = (file.path().parent_path() / "generation_config.json").string();
        bool has_generation = file_exists(generation) && !path.ends_with(".config.json");
        Folder folder;
        Config c = folder.open(read_text(path), has_generation ? read_text(generation) : "");
        CHECK(c.H * c.d == c.D);
        CHECK(c.G == 8);
        CHECK(c.rope_theta == 500000);
        CHECK(c.bos == 128000);
        CHECK(c.eos.size() >= 1);
        CHECK(Sampling::open(c.folder).takes_likeliest() == !has_generation);
        opened++;
    }
    CHECK(opened == 8);
}

TEST_SUITE_END();
