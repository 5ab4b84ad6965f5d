// Sampling, generation and perplexity: properties, and the shipped model's reference values.
#include <algorithm>
#include <numeric>

#include "base/file.h"
#include "formats/chat.h"
#include "forward/generate.h"
#include "forward/perplexity.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

Model open_model(const std::string& folder) {
    return Model::open(folder, BackendOptions{"cpu", "auto"}, 2);
}

std::vector<double> frequencies(const Sampling& how, const std::vector<float>& logits, int draws) {
    Sampler sampler(how, 1);
    std::vector<double> share(logits.size(), 0.0);
    for (int i = 0; i < draws; i++) {
        std::vector<float> scratch = logits;
        share[size_t(sampler.pick(scratch))] += 1.0 / draws;
    }
    return share;
}

std::vector<Token> greedy(Model& model, const std::vector<Token>& prompt, int n) {
    KvCache cache(*model.backend, model.config, 256, DType::F16);
    Transformer transformer(model, 256);
    Sampler sampler(Sampling{}, 0);
    std::vector<Token> ids;
    generate(transformer, cache, sampler, prompt, n, model.config.eos, [&](Token id) {
        ids.push_back(id);
        return true;
    });
    return ids;
}

}  // namespace

TEST_SUITE_BEGIN("forward");

TEST_CASE("a sampler draws each token as often as its probability says") {
    std::vector<float> logits = {1.0f, 0.0f, 2.0f, -1.0f, 0.5f};
    for (double temperature : {0.5, 1.0, 2.0}) {
        Sampling how;
        how.greedy = false, how.temperature = temperature;
        double sum = 0;
        std::vector<double> want;
        for (float z : logits)
            want.push_back(std::exp(double(z) / temperature)), sum += want.back();
        for (double& p : want) p /= sum;
        // 100,000 draws: a share's deviation is at most 0.0016, five of them 0.008, over five
        // tokens.
        CHECK(nmse(frequencies(how, logits, 100000), want) <= 1e-3);
    }
}

TEST_CASE("a temperature of 0 is the most likely token, whatever else is said of sampling") {
    std::vector<float> logits = {1.0f, 0.0f, 2.0f, -1.0f, 2.0f};
    for (bool greedy : {false, true})
        CHECK(frequencies(Sampling{greedy, 0, 0, 1, 0}, logits, 16) ==
              std::vector<double>{0, 0, 1, 0, 0});
}

TEST_CASE("each filter leaves exactly the tokens that its definition names") {
    std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.3f), std::log(0.2f)};
    const struct {
        Sampling how;
        std::vector<Token> left;
        const char* why;
    } cases[] = {
        {{false, 1, 2, 1, 0}, {1, 2}, "top-k 2"},
        {{false, 1, 0, 0.4, 0}, {1}, "top-p met by the first alone"},
        {{false, 1, 0, 0.69, 0}, {1, 2}, "top-p met by two"},
        {{false, 1, 0, 0.71, 0}, {1, 2, 3}, "top-p just not met by two"},
        {{false, 1, 0, 1, 0.6}, {1, 2}, "min-p: 0.6 of 0.4 is 0.24"},
        {{false, 1, 1, 0, 0}, {1}, "top-p 0 keeps one"},
        {{false, 1, 9, 1, 0}, {0, 1, 2, 3}, "top-k beyond the vocabulary"},
        {{true, 1, 0, 1, 0}, {1}, "greedy"},
        {{false, 0, 0, 1, 0}, {1}, "temperature 0"},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.why));
        std::vector<double> share = frequencies(c.how, logits, 4000);
        for (Token id = 0; id < 4; id++) {
            bool wanted = std::count(c.left.begin(), c.left.end(), id) > 0;
            CHECK((share[size_t(id)] > 0) == wanted);
        }
    }
}

TEST_CASE("NaN in the logits is an error, not a token") {
    Sampler sampler(Sampling{}, 0);
    std::vector<float> logits = {0.0f, NaN, 1.0f};
    CHECK_THROWS_WITH_AS(sampler.pick(logits), doctest::Contains("NaN"), Error);
}

TEST_CASE("windows score every token as their protocol says") {
    auto count = [](const Protocol& p, size_t tokens) {
        size_t sum = 0;
        for (const Window& w : windows(p, tokens)) {
            CHECK(w.begin < w.first_scored);
            CHECK(w.end - w.begin <= size_t(p.context));
            sum += w.end - w.first_scored;
        }
        return sum;
    };
    CHECK(count({Protocol::Chunks, 512, 0, 40}, 1 << 20) == 40 * 511);
    CHECK(count({Protocol::LlamaCpp, 512, 0, 40}, 1 << 20) == 40 * 255);
    CHECK(count({Protocol::Strided, 512, 256, 40}, 1 << 20) == 511 + 39 * 256);
    CHECK(count({Protocol::Chunks, 512, 0, 0}, 100) == 99);        // one short window
    CHECK(count({Protocol::Chunks, 512, 0, 0}, 1100) == 2 * 511);  // the tail is left out
    for (size_t tokens : {2, 511, 512, 513, 1000, 5000})           // strided: each token once
        CHECK(count({Protocol::Strided, 512, 100, 0}, tokens) == tokens - 1);
}

TEST_CASE("the share of positions read compressed is counted over every scored prediction") {
    const Protocol protocols[] = {{Protocol::Chunks, 12, 0, 0},
                                  {Protocol::LlamaCpp, 12, 0, 0},
                                  {Protocol::Strided, 12, 5, 0}};
    for (const Protocol& protocol : protocols)
        for (auto [sinks, recent] : {std::pair{0, 0}, {2, 3}, {0, 11}, {5, 5}, {11, 0}, {4, 64}}) {
            std::vector<Window> all = windows(protocol, 40);
            double outside = 0, read = 0;
            for (const Window& w : all)
                for (size_t i = w.first_scored; i < w.end; i++)       // predicted from i − 1
                    for (int s = 0, p = int(i - 1 - w.begin); s <= p; s++, read++)
                        outside += s >= sinks && p - s >= recent;
            CHECK(std::fabs(share_outside(all, sinks, recent) - outside / read) <= 1e-12);
        }
}

TEST_CASE("windows inside the whole window measure nothing, and are refused") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    std::vector<Token> ids;
    Random random(5);
    for (int i = 0; i < 100; i++) ids.push_back(Token(random.below(64)));
    Transformer transformer(model, 40);
    Bases bases = Bases::identity(model.config, 4);
    bases.sinks = 4, bases.recent = 16;
    KvCache cut(*model.backend, model.config, 40, DType::F16, &bases, 40);
    KvCache full(*model.backend, model.config, 40, DType::F16);
    Runner tested{transformer, cut, true}, plain{transformer, full, true};
    for (int context : {4, 20, 21})
        CHECK_THROWS_WITH_AS(measure(tested, &plain, ids, {Protocol::Chunks, context, 0, 0}, {}),
                             doctest::Contains("windows of more than 21 tokens"), Error);
    std::vector<Token> few(ids.begin(), ids.begin() + 21);  // a short text is a short window
    CHECK_THROWS_AS(measure(tested, &plain, few, {Protocol::Chunks, 40, 0, 0}, {}), Error);
    Measured least = measure(tested, &plain, ids, {Protocol::Chunks, 22, 0, 0}, {});
    CHECK(std::fabs(least.compressed_share - 1.0 / (21 * 22 / 2)) <= 1e-12);
    CHECK(measure(plain, nullptr, ids, {Protocol::Chunks, 4, 0, 0}, {}).compressed_share == 0);
}

TEST_CASE("the perplexity of a model that knows nothing is the size of its vocabulary") {
    Scratch scratch;
    write_tiny_model({.why = "", .V = 77, .deviation = 0}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    std::vector<Token> ids(200, 5);
    for (const char* name : {"chunks", "llama.cpp", "strided"}) {
        Protocol protocol{Protocol::parse(name), 32, 16, 0};
        KvCache cache(*model.backend, model.config, 32, DType::F16);
        Transformer transformer(model, 32);
        Runner runner{transformer, cache, false};
        Measured measured = measure(runner, nullptr, ids, protocol, nullptr);
        CHECK(std::fabs(measured.loss.perplexity - 77) <= 1e-9);
        CHECK(measured.loss.standard_error <= 1e-9);
    }
}

TEST_CASE("a cache does not diverge from itself, and a coarser one does") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    std::vector<Token> ids;
    Random random(4);
    for (int i = 0; i < 300; i++) ids.push_back(Token(random.below(64)));
    Protocol protocol{Protocol::Chunks, 64, 0, 0};
    Transformer transformer(model, 64);
    KvCache a(*model.backend, model.config, 64, DType::F32),
        b(*model.backend, model.config, 64, DType::F32);
    KvCache coarse(*model.backend, model.config, 64, DType::BF16);
    Runner one{transformer, a, true}, same{transformer, b, true}, other{transformer, coarse, true};
    Measured equal = measure(one, &same, ids, protocol, nullptr);
    CHECK(equal.divergence.max <= 1e-12);
    CHECK(equal.divergence.same_top == 1);
    CHECK(equal.loss.perplexity == equal.reference.perplexity);
    Measured differs = measure(other, &one, ids, protocol, nullptr);
    CHECK(differs.divergence.mean > 0);
    CHECK(differs.divergence.mean <= differs.divergence.p99);
    CHECK(differs.divergence.p99 <= differs.divergence.max);
}

TEST_CASE("the shipped model continues a text as the reference does, token for token") {
    Model model = open_model("models/parlour");
    Tokenizer tokenizer = Tokenizer::open("models/parlour");
    std::vector<Token> prompt = {model.config.bos};
    for (Token id :
         tokenizer.encode("It was a dark and stormy night; the rain fell in torrents, and the "
                          "wind"))
        prompt.push_back(id);
    std::vector<Token> want = {115,  447,  295, 262, 1334, 46,  445,  1268, 315, 295,
                               262,  1268, 831, 547, 44,   281, 262,  1268, 315, 295,
                               262,  1268, 831, 547, 46,   445, 1268, 315,  295, 262,
                               1268, 831,  547, 44,  281,  262, 1268, 315,  295, 262};
    CHECK(greedy(model, prompt, int(want.size())) == want);
}

TEST_CASE("the shipped model answers as the reference does and stops at its end of turn") {
    Model model = open_model("models/parlour");
    Tokenizer tokenizer = Tokenizer::open("models/parlour");
    ChatTemplate chat(tokenizer, chat_form("models/parlour", tokenizer, "", ""));
    std::vector<Token> prompt = chat.opening("You are a kind old sailor.");
    auto add = [&](const std::vector<Token>& ids) {
        prompt.insert(prompt.end(), ids.begin(), ids.end());
    };
    add(chat.message("user", "Good evening! Shall we go out?"));
    add(chat.answer_header());
    CHECK(tokenizer.decode(greedy(model, prompt, 50)) == "Yes, I shall go to the station.");
}

TEST_CASE("ids without a token are never drawn, however likely") {
    for (bool greedy : {false, true}) {
        Sampling how;
        how.greedy = greedy;
        Sampler sampler(how, 1);
        sampler.drawable = {true, false, true, true, false};
        std::vector<int> drawn(5);
        for (int i = 0; i < 2000; i++) {
            std::vector<float> logits = {1.0f, 9.0f, 2.0f, 1.5f, 30.0f};
            drawn[size_t(sampler.pick(logits))]++;
        }
        CHECK(drawn[1] + drawn[4] == 0);
        CHECK((greedy ? drawn[2] == 2000 : drawn[0] > 0 && drawn[2] > 0 && drawn[3] > 0));
    }
}

TEST_CASE("the likeliest token of a pass is the likeliest one that may be drawn") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    std::vector<Token> prompt = {3, 4, 5}, all = greedy(model, prompt, 1), made;
    KvCache cache(*model.backend, model.config, 64, DType::F16);
    Transformer transformer(model, 64);
    Sampler sampler(Sampling{}, 0);
    sampler.drawable.assign(size_t(model.config.V), true);
    sampler.drawable[size_t(all[0])] = false;
    generate(transformer, cache, sampler, prompt, 30, {}, [&](Token id) {
        made.push_back(id);
        return true;
    });
    CHECK(made.size() == 30);
    CHECK(std::count(made.begin(), made.end(), all[0]) == 0);
}

TEST_CASE("generation stops at the context's end and leaves what it gave in the cache") {
    Scratch scratch;
    write_tiny_model({.why = "", .context = 64}, scratch.folder.string());
    Model model = open_model(scratch.folder.string());
    KvCache cache(*model.backend, model.config, 20, DType::F32);
    Transformer transformer(model, 20);
    Sampler sampler(Sampling{}, 0);
    std::vector<Token> prompt(5, 3);
    int given = 0;
    Generated done = generate(transformer, cache, sampler, prompt, 1000, {}, [&](Token) {
        given++;
        return true;
    });
    CHECK(done.why == Stop::Full);
    CHECK(given == 15);
    CHECK(cache.used == 20);
    int drawn = 0;    // no token is drawn that nobody is given
    TextSteps steps{[] {}, [&] { return Token(++drawn); }, [](Token) {}, {}};
    CHECK(generate_with(steps, 4, 0, 1000, {}, [](Token) { return true; }).why == Stop::Full);
    CHECK(drawn == 4);
}

TEST_CASE("perplexity agrees with an independent implementation's to four digits") {
    std::string text = shared("data/text/novels-heldout.txt");
    if (text.empty()) return skip("needs ../shared/data/text");
    Model model = open_model("models/parlour");
    Tokenizer tokenizer = Tokenizer::open("models/parlour");
    std::vector<Token> ids = tokenizer.encode_document(read_text(text).substr(0, 100000));
    Token bos = tokenizer.bos();
    // The values are for the first 40 windows, which lie well within 100,000 bytes.
    const struct {
        Protocol protocol;
        double perplexity, standard_error;
    } cases[] = {{{Protocol::Chunks, 512, 0, 40}, 34.90403170668554, 0.6226500197691555},
                 {{Protocol::LlamaCpp, 512, 0, 40, bos}, 33.1173461530996, 0.8293776309900638},
                 {{Protocol::Strided, 512, 256, 40}, 33.6604518589273, 0.8353397153444406}};
    KvCache cache(*model.backend, model.config, 512, DType::F32);
    Transformer transformer(model, 512);
    Runner runner{transformer, cache, true};
    for (const auto& c : cases) {
        Measured measured = measure(runner, nullptr, ids, c.protocol, nullptr);
        CHECK(std::fabs(measured.loss.perplexity / c.perplexity - 1) <= 5e-5);
        CHECK(std::fabs(measured.loss.standard_error / c.standard_error - 1) <= 1e-3);
    }
}

TEST_SUITE_END();
