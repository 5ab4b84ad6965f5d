#include "commands/session.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <tuple>

#include "formats/chat.h"

namespace stief {

DType parse_cache_dtype(const std::string& name) {
    for (DType type : {DType::F16, DType::BF16, DType::F32})
        if (name == name_of(type)) return type;
    fail("elements of a cache are f16, bf16 or f32, not '%s'", name.c_str());
}

std::pair<int, int> window_of(const Args& args) {
    if (args.window.size() != 2 || args.window[0] < 0 || args.window[1] < 0)
        throw UsageError("--window takes two numbers, SINKS,RECENT: the exact tokens of a cache");
    return {args.window[0], args.window[1]};
}

// "64:8,256:4" → ages 64, 256 and bits 8, 4.
static void parse_ages(const std::string& text, std::vector<int>& ages, std::vector<int>& bits) {
    for (size_t begin = 0; !text.empty() && begin <= text.size();) {
        size_t end = std::min(text.find(',', begin), text.size());
        int age = 0, width = 0, used = -1;
        std::string one = text.substr(begin, end - begin);
        std::sscanf(one.c_str(), "%9d:%2d%n", &age, &width, &used);
        if (used != int(one.size()) || age <= 0 || width < 1 || width > 8)
            throw UsageError(format("--ages takes AGE:BITS,..., not '%s'", text.c_str()));
        ages.push_back(age), bits.push_back(width);
        begin = end + 1;
    }
    if (ages.size() > MOST_AGES)
        throw UsageError(format("--ages takes at most %zu ages", MOST_AGES));
}

CacheChoice cache_choice(const Args& args, const Config& config, const Weights& weights) {
    int bits = args.cache == "q8" ? 8 : args.cache == "q4" ? 4 : 0;
    CacheChoice choice;
    if (args.exact) choice.dtype = DType::F32;
    if (!bits && !args.cache.empty()) choice.dtype = parse_cache_dtype(args.cache);
    if (bits && !args.bases.empty())
        throw UsageError("--cache " + args.cache + " is without bases; leave --bases out");
    if (!bits && !args.ages.empty())
        throw UsageError("--ages is for --cache q8 or q4; bases have ages of their own");
    if (bits) {
        std::vector<int> ages, widths;
        parse_ages(args.ages, ages, widths);
        widths.push_back(bits);
        choice.bases = Bases::uniform(config, ages, widths);
    } else if (!args.bases.empty()) {
        choice.bases = Bases::open(args.bases, config, weights.fingerprint(config));
    }
    if (args.window.empty() && !choice.bases) return choice;
    if (!choice.bases) throw UsageError("--window is for --bases and for --cache q8 or q4");
    Bases& bases = *choice.bases;
    if (!args.window.empty()) std::tie(bases.sinks, bases.recent) = window_of(args);
    for (size_t i = 0, last = size_t(bases.recent); i < bases.ages.size(); i++) {
        check(size_t(bases.ages[i]) > last,
              "the ages of the cache begin after its %d recent whole tokens and grow: %d follows "
              "%zu; use another --window or --ages",
              bases.recent, bases.ages[i], last);
        last = size_t(bases.ages[i]);
    }
    return choice;
}

BackendOptions backend_options(const Args& args) {
    return {args.backend, args.isa};
}

// Said before any of it is taken, with what would fit.
static void require_memory(const Session& session, int batch) {
    const Config& config = session.model.config;
    const Bases* bases = session.bases ? &*session.bases : nullptr;
    auto needed = [&](int context) {
        return KvCache::bytes_for(config, context, session.dtype, bases, batch) +
               Transformer::arena_bytes_for(config, context, std::min(batch, context));
    };
    size_t available = session.model.backend->available();
    if (needed(session.context) <= available) return;
    int fits = 0, too_many = session.context;
    while (too_many - fits > 1) {
        int middle = fits + (too_many - fits) / 2;
        (needed(middle) <= available ? fits : too_many) = middle;
    }
    std::string advice = fits > 0 ? format("--context %d would fit", fits)
                                  : std::string("not even one position fits");
    fail("the cache and the activations of %d positions need %.2f GiB, %.2f GiB are available; %s",
         session.context, double(needed(session.context)) * 0x1p-30, double(available) * 0x1p-30,
         advice.c_str());
}

Session::Session(const Args& args, int default_context)
    : model(Model::open(args.model, backend_options(args), args.threads)) {
    int most = model.config.context;
    context = args.context ? args.context : std::min(most, default_context);
    check(context <= most,
          "--context %d is more than the model's %d positions (max_position_embeddings)", context,
          most);
    CacheChoice choice = cache_choice(args, model.config, model.weights);
    dtype = choice.dtype, bases = std::move(choice.bases);
    // Tokens of a pass: enough that reading the weights costs little beside the products.
    int batch = model.backend->copies_weights ? 2048 : 512;
    require_memory(*this, batch);
    cache = std::make_unique<KvCache>(*model.backend, model.config, context, dtype,
                                      bases ? &*bases : nullptr, batch);
    transformer = std::make_unique<Transformer>(model, context, batch);
    transformer->exact = args.exact;
}

uint64_t Session::meaning_of_rows() const {
    uint64_t hash = model.weights.fingerprint(model.config);
    return bases ? bases->hash(hash) : hash;
}

Sampling sampling_of(const Args& args, const Config& config) {
    Sampling how = config.sampling;
    if (args.temperature) how.greedy = *args.temperature == 0, how.temperature = *args.temperature;
    if (args.top_k) how.top_k = *args.top_k;
    if (args.top_p) how.top_p = *args.top_p;
    if (args.min_p) how.min_p = *args.min_p;
    if (args.greedy) how.greedy = true;
    return how;
}

uint64_t seed_of(const Args& args) {
    if (args.seed >= 0) return uint64_t(args.seed);
    return uint64_t(std::chrono::system_clock::now().time_since_epoch().count());
}

Sampler sampler_of(const Args& args, const Config& config, const Tokenizer& tokenizer) {
    Sampler sampler(sampling_of(args, config), seed_of(args));
    std::vector<bool> drawable(size_t(config.V));
    for (Token id = 0; id < config.V; id++) drawable[size_t(id)] = tokenizer.has(id);
    bool all = std::find(drawable.begin(), drawable.end(), false) == drawable.end();
    if (!all) sampler.drawable = std::move(drawable);
    return sampler;
}

std::vector<Token> ends_of(const Config& config, const Tokenizer& tokenizer) {
    std::vector<Token> ends = end_tokens(tokenizer);
    ends.insert(ends.end(), config.eos.begin(), config.eos.end());
    return ends;
}

void print(const std::string& text) {
    bool ok =
        std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && !std::fflush(stdout);
    if (!ok) fail("cannot write to standard output: %s", std::strerror(errno));
}

void status(const Args& args, const std::string& text) {
    if (!args.quiet) std::fprintf(stderr, "%s\n", text.c_str());
}

}  // namespace stief
