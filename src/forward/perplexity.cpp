#include "forward/perplexity.h"

#include <algorithm>
#include <cmath>

#include "forward/finite.h"

namespace stief {

Protocol::Name Protocol::parse(const std::string& name) {
    for (Name one : {Chunks, LlamaCpp, Strided})
        if (name == name_of(one)) return one;
    fail("a protocol is chunks, llama.cpp or strided, not '%s'", name.c_str());
}

const char* name_of(Protocol::Name name) {
    return name == Protocol::Chunks     ? "chunks"
           : name == Protocol::LlamaCpp ? "llama.cpp"
                                        : "strided";
}

std::vector<Window> windows(const Protocol& protocol, size_t tokens) {
    size_t N = size_t(protocol.context);
    std::vector<Window> all;
    auto enough = [&] { return protocol.limit > 0 && all.size() >= size_t(protocol.limit); };

    if (protocol.name == Protocol::Strided) {
        size_t scored = 1;  // nothing predicts the first token
        for (size_t begin = 0; scored < tokens && !enough(); begin += size_t(protocol.stride)) {
            size_t end = std::min(begin + N, tokens);
            all.push_back({begin, end, scored, false});
            scored = end;
        }
        return all;
    }
    for (size_t begin = 0; begin + 1 < tokens && !enough(); begin += N) {
        size_t end = std::min(begin + N, tokens);
        bool whole = end - begin == N;
        if (protocol.name == Protocol::LlamaCpp) {
            if (whole) all.push_back({begin, end, begin + N / 2 + 1, protocol.bos >= 0});
        } else if (whole || begin == 0) {
            // A last window that is not whole is left out, as the papers do, unless it is the only
            // one.
            all.push_back({begin, end, begin + 1, false});
        }
    }
    return all;
}

double share_outside(std::span<const Window> windows, int sinks, int recent) {
    double outside = 0, all = 0;
    for (const Window& window : windows)
        for (size_t seen = window.first_scored - window.begin; seen < window.end - window.begin;
             seen++) {
            outside += std::max(0.0, double(seen) - sinks - recent);
            all += double(seen);
        }
    return all > 0 ? outside / all : 0;
}

// 0 where no head of the cache is cut.
static double compressed_share(std::span<const Window> windows, const KvCache& cache) {
    bool cut = false;
    for (const CacheLayer& layer : cache.layer)
        for (size_t g = 0; g < size_t(layer.G); g++) {
            const Stretch& old = layer.seen[g].oldest();
            cut = cut || layer.k[g].store[old.k].format != RowFormat::whole(layer.d) ||
                  layer.v[g].store[old.v].format != RowFormat::whole(layer.values_width());
        }
    if (!cut) return 0;
    int sinks = cache.sinks, recent = cache.recent;
    double share = share_outside(windows, sinks, recent);
    check(share > 0,
          "the windows lie within the whole window of the cache, the first %d and the last %d "
          "tokens: nothing would be read compressed; use windows of more than %lld tokens "
          "(--context, and a text as long)",
          sinks, recent, 1LL + sinks + recent);
    return share;
}

// Welford's recurrence of mean and squared deviation, for the n-th value.
static void welford(double& mean, double& squares, double x, size_t n) {
    double delta = x - mean;
    mean += delta / double(n);
    squares += delta * (x - mean);
}

static Loss loss_of(double mean, double squares, size_t n) {
    double perplexity = std::exp(mean), deviation = n > 1 ? std::sqrt(squares / double(n - 1)) : 0;
    return {perplexity, n ? perplexity * deviation / std::sqrt(double(n)) : 0, n};
}

void Tally::add(const RowScore& one, bool compared) {
    check(std::isfinite(one.loss), "the model gives no finite loss after %zu tokens", n);
    welford(mean, squares, one.loss, ++n);
    if (!compared) return;
    welford(mean_reference, squares_reference, one.loss_full, n);
    divergence += one.divergence;
    divergences.push_back(float(one.divergence));
    same_top.push_back(one.same_top);
    swing.push_back(float(one.swing)), swing_next.push_back(float(one.swing_next));
}

Measured Tally::result() {
    Measured all;
    all.loss = loss_of(mean, squares, n);
    if (divergences.empty()) return all;
    all.reference = loss_of(mean_reference, squares_reference, n);
    double count = double(n);
    std::vector<float> sorted = divergences;
    std::sort(sorted.begin(), sorted.end());
    size_t rank = size_t(std::ceil(0.99 * count)) - 1;
    auto same = std::count(same_top.begin(), same_top.end(), true);
    all.divergence = {divergence / count, sorted[rank], sorted.back(), double(same) / count};
    all.step = std::move(divergences), all.same_top = std::move(same_top);
    all.swing = std::move(swing), all.swing_next = std::move(swing_next);
    return all;
}

// Appends ids; logits (wanted, V) of the last of them on the backend.
static void run(Runner& runner, std::span<const Token> ids, Buffer& logits, int wanted) {
    runner.transformer.exact = runner.exact;
    runner.transformer.forward_on_backend(runner.cache, ids, logits.f32(), wanted);
}

[[noreturn]] static void fail_not_finite(const Runner& runner, size_t after) {
    fail("no finite loss after %zu tokens: %s", after,
         why_not_finite(runner.transformer.model, runner.cache).c_str());
}

Measured measure(Runner& tested, Runner* reference, std::span<const Token> ids,
                 const Protocol& protocol,
                 const std::function<void(size_t, size_t, double)>& progress) {
    Model& model = tested.transformer.model;
    Backend& ops = *model.backend;
    const Config& config = model.config;
    std::vector<Window> all = windows(protocol, ids.size());
    size_t total = 0, done = 0;
    for (const Window& one : all) total += one.end - one.first_scored;
    check(total > 0, "the text has %zu tokens: too few for one window of %d", ids.size(),
          protocol.context);
    double share = compressed_share(all, tested.cache);

    size_t row = size_t(config.V) * sizeof(float),
           piece = rows_together(config, size_t(std::min(protocol.context, tested.transformer.batch)));
    Buffer logits(ops, piece * row, "logits"), logits_reference;
    if (reference) logits_reference = Buffer(ops, piece * row, "the reference's logits");
    std::vector<RowScore> scores(piece);
    Tally tally;
    for (const Window& window : all) {
        std::vector<Token> text(ids.begin() + ptrdiff_t(window.begin),
                                ids.begin() + ptrdiff_t(window.end));
        if (window.bos) text[0] = protocol.bos;
        tested.cache.used = 0;
        if (reference) reference->cache.used = 0;

        // The last token of a window predicts nothing that is scored.
        for (size_t at = 0; at + 1 < text.size(); at += piece) {
            size_t n = std::min(piece, text.size() - 1 - at);
            size_t skip = window.first_scored - 1 - window.begin;  // rows nobody scores
            size_t first = std::clamp(skip, at, at + n);
            int wanted = int(at + n - first);
            std::span<const Token> part(text.data() + at, n);
            run(tested, part, logits, wanted);
            if (reference) run(*reference, part, logits_reference, wanted);
            ops.score(scores.data(), logits.f32(), reference ? logits_reference.f32() : nullptr,
                      text.data() + first + 1, wanted, config.V);
            for (size_t i = 0; i < size_t(wanted); i++) {
                if (!std::isfinite(scores[i].loss)) fail_not_finite(tested, tally.n);
                if (!std::isfinite(scores[i].loss_full)) fail_not_finite(*reference, tally.n);
                tally.add(scores[i], reference != nullptr);
            }
            done += size_t(wanted);
            if (progress) progress(done, total, std::exp(tally.mean));
        }
    }
    Measured measured = tally.result();
    measured.compressed_share = share;
    return measured;
}

}  // namespace stief
