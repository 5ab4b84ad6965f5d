#include "commands/session.h"

#include <unistd.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "base/descriptors.h"
#include "base/limits.h"
#include "formats/chat.h"

namespace stief {

DType parse_cache_dtype(const std::string& name) {
    for (DType type : {DType::F16, DType::BF16, DType::F32})
        if (name == name_of(type)) return type;
    fail("elements of a cache are f16, bf16 or f32, not '%s'", name.c_str());
}

std::pair<int, int> window_of(const Args& args) {
    if (args.window.size() != 2 || args.window[0] < 0 || args.window[1] < 0)
        throw UsageError("--window takes two numbers, SINKS,RECENT: the whole tokens of a cache");
    return {args.window[0], args.window[1]};
}

std::vector<AgeBits> ages_of(const Args& args) {
    std::vector<AgeBits> ages;
    const std::string& text = args.ages;
    for (size_t begin = 0; !text.empty() && begin <= text.size();) {
        size_t end = std::min(text.find(',', begin), text.size());
        AgeBits one{};
        int used = -1;
        std::string part = text.substr(begin, end - begin);
        std::sscanf(part.c_str(), "%9d:%5lf%n", &one.age, &one.bits, &used);
        if (used != int(part.size()) || one.age <= 0 || !(one.bits > 0 && one.bits <= 16))
            throw UsageError(format("--ages takes AGE:BITS,... with ages from 1 and bits above 0, at "
                                    "most 16, not '%s'", text.c_str()));
        if (!ages.empty() && one.age <= ages.back().age)
            throw UsageError(format("--ages: %d after %d, expected ages that grow", one.age,
                                    ages.back().age));
        ages.push_back(one);
        begin = end + 1;
    }
    if (ages.size() > MOST_AGES)
        throw UsageError(format("--ages takes at most %zu ages", MOST_AGES));
    return ages;
}

// Of a coordinate, where --cache is q8 or q4; 0: it is neither.
static int uniform_bits(const Args& args) {
    return args.cache == "q8" ? 8 : args.cache == "q4" ? 4 : 0;
}

bool compresses(const Args& args) {
    return !args.bases.empty() || uniform_bits(args) > 0;
}

CacheChoice cache_choice(const Args& args, const Config& config, const Weights& weights) {
    int bits = uniform_bits(args);
    CacheChoice choice;
    if (args.exact) choice.dtype = DType::F32;
    if (!bits && !args.cache.empty()) choice.dtype = parse_cache_dtype(args.cache);
    if (bits && !args.bases.empty())
        throw UsageError("--cache " + args.cache + " is without bases; leave --bases out");
    if (!bits && !args.ages.empty())
        throw UsageError("--ages is for --cache q8 or q4; bases have ages of their own");
    if (bits) {
        std::vector<int> ages, widths;
        for (const AgeBits& one : ages_of(args)) {
            ages.push_back(one.age), widths.push_back(int(one.bits));
            if (one.bits > 8 || one.bits != widths.back())
                throw UsageError(format("--ages: %g bits; --cache %s has 1 to 8 of them, whole "
                                        "numbers", one.bits, args.cache.c_str()));
        }
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
              "%zu; use %s",
              bases.recent, bases.ages[i], last,
              args.bases.empty() ? "another --window or --ages"
                                 : format("--window %d,%d or a shorter one", bases.sinks,
                                          bases.ages[0] - 1).c_str());
        last = size_t(bases.ages[i]);
    }
    return choice;
}

BackendOptions backend_options(const Args& args) {
    return {args.backend, args.isa};
}

std::optional<WatchOptions> watch_options(const Args& args) {
    bool asked = takes(args.verb, "--risk");
    if (args.risk == "off") {
        if (!asked) return std::nullopt;
        if (!args.cold.empty() || args.audit)
            throw UsageError("--audit and --cold belong to --risk audit or exact");
        return std::nullopt;
    }
    if (!compresses(args))
        throw UsageError(
            format("--risk %s belongs to a compressed cache: --bases FILE, --cache q8 or "
                   "q4; the full cache loses nothing",
                   args.risk.c_str()));
    WatchOptions how;
    how.exact = args.risk == "exact", how.block = args.audit;
    if (args.cold == "reread") how.cold = WatchOptions::Reread;
    else if (!args.cold.empty() && args.cold != "ram") how.cold = WatchOptions::File, how.file = args.cold;
    if (how.exact && how.cold == WatchOptions::Reread)
        throw UsageError("--risk exact verifies every token: --cold reread keeps nothing to do it "
                         "with; ram or a FILE");
    if (asked && how.exact && how.block > Watch::MOST)
        throw UsageError(format("--risk exact drafts at most %d tokens at once, not %d",
                                Watch::MOST, how.block));
    return how;
}

std::string watch_line(const Watch* watch) {
    if (!watch) return "";
    if (!watch->lost.empty()) return watch->lost;
    if (!watch->options.exact) return watch->log.line();
    const Drafting& d = watch->drafting;
    return format(
        "exact: %d tokens by %d verifications, %.1f each; %.1f%% of the guesses were right",
        d.given, d.verifications, d.verifications ? double(d.given) / d.verifications : 0.0,
        100 * d.agreement());
}

Session::Session(const Args& args, int default_context)
    : model(Model::open(args.model, backend_options(args), args.threads)) {
    Plan plan = plan_of(args, model.config, model.weights, *model.backend, default_context);
    std::string why = too_large(plan, room_of(*model.backend));
    if (!why.empty()) throw Error(why);
    context = plan.context, dtype = plan.dtype, bases = std::move(plan.bases);
    cache = std::make_unique<KvCache>(*model.backend, model.config, context, dtype,
                                      bases ? &*bases : nullptr, plan.batch);
    if (plan.reference)
        reference = std::make_unique<KvCache>(*model.backend, model.config, context, *plan.reference);
    transformer = std::make_unique<Transformer>(model, context, plan.batch);
    transformer->exact = args.exact;
    std::string slow;
    for (const CacheLayer& layer : cache->layer)
        if (slow.empty() && !args.exact) slow = model.backend->plain_attention(layer);
    if (!slow.empty()) status(args, "note: " + slow);
    if (int cores = usable_cores(); args.threads > cores)
        status(args, format("note: %d threads take turns on %d processors", args.threads, cores));
    if (plan.watch)
        watch = std::make_unique<Watch>(*transformer, *cache, *plan.watch,
                                        risk_levels(bases->metadata));
}

void Session::feed(std::span<const Token> ids) {
    if (watched()) watch->feed(ids);
    else transformer->forward(*cache, ids, nullptr, 0);
}

Generated Session::generate(Sampler& sampler, std::span<const Token> prompt, int limit,
                            std::span<const Token> ends, const std::function<bool(Token)>& sink) {
    return watched() ? watch->generate(sampler, prompt, limit, ends, sink)
                 : stief::generate(*transformer, *cache, sampler, prompt, limit, ends, sink);
}

void Session::hold(std::span<const Token> ids) {
    if (watched()) watch->hold(ids);
}

uint64_t Session::meaning_of_rows() const {
    uint64_t hash = model.weights.fingerprint(model.config);
    return bases ? bases->hash(hash) : hash;
}

uint64_t draw_seed() {
    return std::random_device{}();
}

std::string drawn_seed(const Args& args, const Sampler& sampler) {
    bool given = args.seed.given && !args.seed.drawn;
    if (given || sampler.sampling.takes_likeliest()) return "";
    return format("seed %llu", static_cast<unsigned long long>(sampler.seed));
}

Sampler sampler_of(const Args& args, const Config& config, const Tokenizer& tokenizer) {
    Sampling how = Sampling::open(config.folder);
    if (args.temperature) how.greedy = false, how.temperature = *args.temperature;
    if (args.top_k) how.top_k = std::max(0, *args.top_k);
    if (args.top_p) how.top_p = *args.top_p;
    if (args.min_p) how.min_p = *args.min_p;
    if (args.greedy && args.temperature.value_or(0) > 0)
        throw UsageError(format("--greedy is --temperature 0, and --temperature is %g: give one",
                                *args.temperature));
    if (args.greedy) how.greedy = true;
    if (!how.ignored.empty())
        status(args, "generation_config.json asks for what is not done here: " + how.ignored);
    bool given = args.seed.given && !args.seed.drawn;
    Sampler sampler(how, given ? args.seed.value : draw_seed());
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
    write_all(STDOUT_FILENO, text, "standard output");
}

void status(const Args& args, const std::string& text) {
    if (!args.quiet) write_stderr(text + "\n");
}

}  // namespace stief
