// What most verbs begin with: the model opened as the options say, its cache, and the pass.
#pragma once
#include <memory>
#include <optional>

#include "commands/plan.h"
#include "forward/sampler.h"

namespace stief {

struct Session {
    Model model;
    int context = 0;                           // positions
    DType dtype = DType::F16;                  // of the cache
    std::optional<Bases> bases;                // of --bases, or of --cache q8 or q4
    std::unique_ptr<Transformer> transformer;
    std::unique_ptr<KvCache> cache, reference;     // reference: of verbs that compare with a full one
    std::unique_ptr<Watch> watch;              // of --risk; null: off

    // default_context: what --context means where it is not given; never more than the model's.
    explicit Session(const Args& args, int default_context = 8192);

    // Identifies what gives the cache's rows their meaning: the model, and any bases.
    uint64_t meaning_of_rows() const;
    uint64_t meaning_of_model() const { return model.weights.fingerprint(model.config); }

    bool exact() const { return watched() && watch->options.exact; }
    bool watched() const { return watch && watch->lost.empty(); }
    // Transformer::forward without logits, and generate(), with or without a watch.
    void feed(std::span<const Token> ids);
    Generated generate(Sampler& sampler, std::span<const Token> prompt, int limit,
                       std::span<const Token> ends, const std::function<bool(Token)>& sink);
    // The cache holds these now: it was taken back, emptied or loaded.
    void hold(std::span<const Token> ids);
};

// --risk, --audit, --cold; nothing where --risk is off. UsageError where they do not go together. Of a
// verb without --risk, --audit is the verb's own affair: no draft's length.
std::optional<WatchOptions> watch_options(const Args& args);
// What the watch has found so far, one line; "" where there is none.
std::string watch_line(const Watch* watch);
DType parse_cache_dtype(const std::string& name);
// --ages: "64:8,256:4", tokens younger than 64 in 8 bits, then up to 256 in 4.
struct AgeBits {
    int age;
    double bits;
};
std::vector<AgeBits> ages_of(const Args& args);

// --bases FILE, or --cache q8 or q4: a cache that loses something.
bool compresses(const Args& args);
// What --cache, --bases, --window and --ages ask for. bases: none for the plain cache.
struct CacheChoice {
    DType dtype = DType::F16;
    std::optional<Bases> bases;
};
CacheChoice cache_choice(const Args& args, const Config& config, const Weights& weights);
std::pair<int, int> window_of(const Args& args);       // of --window; UsageError
BackendOptions backend_options(const Args& args);
// generation_config.json's defaults with the options over them; the seed is drawn unless given;
// only ids that have a token are drawn. What the file asks for and nobody does is said on stderr.
Sampler sampler_of(const Args& args, const Config& config, const Tokenizer& tokenizer);
uint64_t draw_seed();
// "seed 7" where it was drawn and is used, so that a run can be repeated; "" elsewhere.
std::string drawn_seed(const Args& args, const Sampler& sampler);
// Every id that ends a text: those that the config lists, and those that are made for it.
std::vector<Token> ends_of(const Config& config, const Tokenizer& tokenizer);

// Writes to stdout; a full disk is an Error.
void print(const std::string& text);
// A line on stderr.
void status(const Args& args, const std::string& text);

int chat(const Args& args);
int generate_text(const Args& args);
int perplexity(const Args& args);
int risk(const Args& args);
int needle(const Args& args);
int calibrate_bases(const Args& args);
int bench(const Args& args);
int inspect(const Args& args);
int inspect_bases(const Args& args);
int tokenize(const Args& args);
int logits(const Args& args);

}  // namespace stief
