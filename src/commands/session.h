// What most verbs begin with: the model opened as the options say, its cache, and the pass.
#pragma once
#include <memory>
#include <optional>

#include "commands/args.h"
#include "forward/sampler.h"
#include "forward/transformer.h"

namespace stief {

struct Session {
    Model model;
    int context = 0;                           // positions
    DType dtype = DType::F16;                  // of the cache
    std::optional<Bases> bases;                // of --bases, or of --cache q8 or q4
    std::unique_ptr<Transformer> transformer;
    std::unique_ptr<KvCache> cache;

    // default_context: what --context means where it is not given; never more than the model's.
    explicit Session(const Args& args, int default_context = 8192);

    // Identifies what gives the cache's rows their meaning: the model, and the bases where there are any.
    uint64_t meaning_of_rows() const;
};

DType parse_cache_dtype(const std::string& name);
// What --cache, --bases, --window and --ages ask for. bases: none for the plain cache.
struct CacheChoice {
    DType dtype = DType::F16;
    std::optional<Bases> bases;
};
CacheChoice cache_choice(const Args& args, const Config& config, const Weights& weights);
std::pair<int, int> window_of(const Args& args);       // of --window; UsageError
BackendOptions backend_options(const Args& args);
// generation_config.json's defaults with the options over them; the seed from the clock unless given.
Sampling sampling_of(const Args& args, const Config& config);
uint64_t seed_of(const Args& args);
// Both of them, drawing only ids that have a token.
Sampler sampler_of(const Args& args, const Config& config, const Tokenizer& tokenizer);
// Every id that ends a text: those that the config lists, and those that are made for it.
std::vector<Token> ends_of(const Config& config, const Tokenizer& tokenizer);

// Writes to stdout and flushes; a full disk or a closed pipe is an Error.
void print(const std::string& text);
// A line on stderr.
void status(const Args& args, const std::string& text);

int chat(const Args& args);
int generate_text(const Args& args);
int perplexity(const Args& args);
int calibrate_bases(const Args& args);
int bench(const Args& args);
int inspect(const Args& args);
int inspect_bases(const Args& args);
int tokenize(const Args& args);
int logits(const Args& args);

}  // namespace stief
