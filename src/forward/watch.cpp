#include "forward/watch.h"

#include <algorithm>
#include <utility>

#include "base/signals.h"
#include "forward/finite.h"

namespace stief {

static size_t row_bytes(const Config& config) {
    return size_t(config.V) * sizeof(float);
}

static int tokens_of(const WatchOptions& how) {
    return how.block ? how.block : Watch::MOST;
}

int Watch::block() const {
    return tokens_of(options);
}

Watch::Watch(Transformer& pass, KvCache& compressed, const WatchOptions& how, RiskLevels usual)
    : transformer(pass), cache(compressed), options(how) {
    check(!options.exact || options.cold != WatchOptions::Reread,
          "whole rows that are not kept cannot verify every token");
    log.levels = std::move(usual);
    options.exact ? make_verified(true) : make_logits();
    if (options.cold != WatchOptions::Reread) make_whole();
}

// Blocks may be longer than they were in the call before.
void Watch::make_room(Buffer& buffer, size_t bytes, const char* what) {
    if (bytes > buffer.bytes) buffer = Buffer(), buffer = Buffer(*transformer.model.backend, bytes, what);
}

void Watch::make_verified(bool greedy) {
    options.block = std::min(options.block, MOST);
    size_t n = size_t(block() + 1);
    found.resize(n);
    if (!greedy) rows.resize(n * size_t(transformer.model.config.V));
    make_room(full, n * row_bytes(transformer.model.config), "a draft's logits");
    make_room(likeliest, n * sizeof(Token), "a draft's tokens");
}

void Watch::make_logits() {
    size_t bytes = size_t(block()) * row_bytes(transformer.model.config);
    make_room(drafted, bytes, "a block's logits");
    make_room(full, bytes, "a block's logits over whole rows");
}

void Watch::make_whole() {
    int capacity = options.cold == WatchOptions::Reread ? int(ids.size()) : cache.capacity;
    whole = std::make_unique<KvCache>(*transformer.model.backend, transformer.model.config, capacity,
                                      cache.dtype, nullptr, transformer.batch, &options.file);
}

bool Watch::lose_rows() {
    if (lost.empty() && whole && mapping_is_lost(whole->rows.data))
        lost = options.file + ": the whole rows of --risk are lost: its disk is full or has failed";
    return !lost.empty();
}

void Watch::expect_rows() {
    if (lose_rows()) throw Error(lost + "; what follows is without --risk exact");
}

size_t Watch::whole_bytes() const {
    return whole ? whole->bytes() : 0;
}

size_t Watch::logits_bytes_for(const Config& config, const WatchOptions& how) {
    return (2 * size_t(tokens_of(how)) + 1) * row_bytes(config);
}

// The whole rows of positions up to `until`, in batches as a prompt's.
void Watch::catch_up(int until) {
    if (whole->used >= until) return;
    std::span<const Token> all = ids;
    transformer.forward(*whole, all.subspan(size_t(whole->used), size_t(until - whole->used)),
                        nullptr, 0);
}

void Watch::hold(std::span<const Token> now) {
    size_t same = size_t(std::mismatch(ids.begin(), ids.end(), now.begin(), now.end()).first -
                         ids.begin());
    ids.assign(now.begin(), now.end());
    if (whole) whole->used = std::min(whole->used, int(same));
    log.take_back(int(same));
    log.positions = int(ids.size());
}

void Watch::hold_whole(std::span<const Token> now) {
    ids.assign(now.begin(), now.end());
    log.take_back(0);
    log.positions = int(ids.size());
    cache.used = 0;
    transformer.forward(cache, ids, nullptr, 0);
}

void Watch::feed(std::span<const Token> more) {
    if (options.exact) catch_up(int(ids.size()));
    transformer.forward(cache, more, nullptr, 0);
    ids.insert(ids.end(), more.begin(), more.end());
    log.positions = int(ids.size());
    if (!options.exact) return;
    catch_up(int(ids.size()));
    expect_rows();
}

// Compares the predictions of the `count` tokens from `first` on, whose logits `drafted` holds. drawn:
// the token that each of them gave, −1 where none was drawn.
void Watch::audit(int first, std::span<const Token> drawn) {
    int count = int(drawn.size());
    if (count == 0 || !lost.empty()) return;
    const Config& config = transformer.model.config;
    if (!whole) try {
            make_whole();
        } catch (const std::exception& error) {    // memory was there at the start, and is not now
            lost = format("no whole rows for an audit: %s", error.what());
            return;
        }
    whole->used = std::min(whole->used, first);
    catch_up(first);
    std::span<const Token> block(ids.data() + first, size_t(count));
    transformer.forward_on_backend(*whole, block, full.f32(), count);
    if (lose_rows()) return;
    std::vector<RowScore> scores(static_cast<size_t>(count));
    std::vector<Token> next(drawn.begin(), drawn.end());
    std::replace(next.begin(), next.end(), Token(-1), Token(0));    // not looked at
    transformer.model.backend->score(scores.data(), drafted.f32(), full.f32(), next.data(), count,
                                     config.V);
    if (options.cold == WatchOptions::Reread) whole.reset();

    AuditedBlock one{first, count, 0, 0, 0};
    for (const RowScore& score : scores) {
        one.mean += score.divergence / count;
        one.same_top += score.same_top;
    }
    log.blocks.push_back(one);
    for (int i = 0; i < count; i++) {
        const RowScore& score = scores[size_t(i)];
        if (drawn[size_t(i)] >= 0)
            log.look_at(first + i + 1, drawn[size_t(i)], score.top_full, score.swing_next);
    }
}

Token Watch::pick(Sampler& sampler, std::span<float> logits, const KvCache& from) {
    try {
        return sampler.pick(logits);
    } catch (const NotFinite&) {
        throw Error(why_not_finite(transformer.model, from));
    }
}

Generated Watch::generate(Sampler& sampler, std::span<const Token> prompt, int limit,
                          std::span<const Token> ends, const std::function<bool(Token)>& sink) {
    check(!prompt.empty(), "nothing to continue: the prompt has no tokens");
    check(ids.size() == size_t(cache.used), "a watch of %zu positions beside a cache of %d",
          ids.size(), cache.used);
    Generated made = options.exact ? generate_exact(sampler, prompt, limit, ends, sink)
                                   : generate_audited(sampler, prompt, limit, ends, sink);
    log.positions = int(ids.size());
    return made;
}

Generated Watch::generate_audited(Sampler& sampler, std::span<const Token> prompt, int limit,
                                  std::span<const Token> ends,
                                  const std::function<bool(Token)>& sink) {
    Backend& ops = *transformer.model.backend;
    size_t V = size_t(transformer.model.config.V);
    make_logits();
    log.greedy = sampler.sampling.takes_likeliest();
    std::vector<float> logits(V);
    std::vector<Token> drawn;    // from each row of `drafted` that was not compared yet; −1: nothing
    // The first `count` of these rows are the predictions of the tokens before the last.
    auto compare = [&](size_t count) {
        audit(int(ids.size() - drawn.size()), std::span<const Token>(drawn).first(count));
    };
    auto feed_watched = [&](std::span<const Token> more, int wanted) {
        float* to = drafted.f32() + drawn.size() * V;
        transformer.forward_on_backend(cache, more, to, wanted);
        ids.insert(ids.end(), more.begin(), more.end());
        drawn.resize(drawn.size() + size_t(wanted), -1);
        ops.download(logits.data(), drafted.f32() + (drawn.size() - 1) * V, V * sizeof(float));
    };
    auto draw = [&] { return drawn.back() = pick(sampler, logits, cache); };
    auto feed_token = [&](Token next) {
        if (int(drawn.size()) == block()) compare(drawn.size()), drawn.clear();
        feed_watched({&next, 1}, 1);
    };

    // The last prediction waits for what is drawn from it.
    auto feed_prompt = [&] {
        feed_watched(prompt, std::min(block(), int(prompt.size())));
        compare(drawn.size() - 1);
        ops.upload(drafted.f32(), logits.data(), V * sizeof(float));
        drawn.assign(1, -1);
    };
    int room = std::min(cache.capacity, transformer.context) - cache.used - int(prompt.size());
    TextSteps steps{feed_prompt, draw, feed_token, [&] { compare(drawn.size()); }};
    return generate_with(steps, room, int(prompt.size()), limit, ends, sink);
}

}  // namespace stief
