#include "forward/perplexity.h"

#include <algorithm>
#include <cmath>

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

namespace {

// −ln p(next) of one row, and ln Σ e^z.
struct Row {
    double log_sum, loss;
    int top;
};

Row read_row(const float* logits, int V, Token next) {
    int top = int(std::max_element(logits, logits + V) - logits);
    double sum = 0;  // double: V = 128,256 terms
    for (int i = 0; i < V; i++) sum += std::exp(double(logits[i] - logits[top]));
    double log_sum = double(logits[top]) + std::log(sum);
    return {log_sum, log_sum - double(logits[next]), top};
}

double divergence(const float* full, const Row& p, const float* other, const Row& q, int V) {
    double sum = 0;
    for (int i = 0; i < V; i++) {
        double log_p = double(full[i]) - p.log_sum;
        sum += std::exp(log_p) * (log_p - (double(other[i]) - q.log_sum));
    }
    return std::max(0.0, sum);  // rounding can leave −1e-17
}

// Mean and deviation of the losses, by Welford's recurrence.
struct Accumulator {
    size_t n = 0;
    double mean = 0, squares = 0;

    void add(double loss) {
        double delta = loss - mean;
        mean += delta / double(++n);
        squares += delta * (loss - mean);
    }
    Loss result() const {
        double deviation = n > 1 ? std::sqrt(squares / double(n - 1)) : 0;
        double perplexity = std::exp(mean);
        return {perplexity, n ? perplexity * deviation / std::sqrt(double(n)) : 0, n};
    }
};

// What one scored position gives; the second half only where there is a reference.
struct Scored {
    double loss = 0, reference_loss = 0, divergence = 0;
    bool same_top = false;
};

Scored score(const float* tested, const float* reference, int V, Token next) {
    Row q = read_row(tested, V, next);
    if (!reference) return {q.loss, 0, 0, false};
    Row p = read_row(reference, V, next);
    return {q.loss, p.loss, divergence(reference, p, tested, q, V), p.top == q.top};
}

struct Tally {
    Accumulator tested, reference;
    std::vector<float> divergences;
    size_t same_top = 0;

    void add(const Scored& one, bool compared) {
        check(std::isfinite(one.loss), "the model gives no finite loss after %zu tokens", tested.n);
        tested.add(one.loss);
        if (!compared) return;
        reference.add(one.reference_loss);
        divergences.push_back(float(one.divergence));
        same_top += one.same_top;
    }

    Measured result() {
        Measured all{tested.result(), reference.result(), {}};
        if (divergences.empty()) return all;
        double sum = 0;
        for (float one : divergences) sum += double(one);
        double n = double(divergences.size());
        std::sort(divergences.begin(), divergences.end());
        size_t rank = size_t(std::ceil(0.99 * n)) - 1;
        all.divergence = {sum / n, divergences[rank], divergences.back(), double(same_top) / n};
        return all;
    }
};

// Runs `count` tokens and keeps the logits of the last `wanted` of them.
void run(Runner& runner, std::span<const Token> ids, std::vector<float>& logits, int wanted) {
    logits.resize(size_t(wanted) * size_t(runner.transformer.model.config.V));
    runner.transformer.exact = runner.exact;
    runner.transformer.forward(runner.cache, ids, logits.data(), wanted);
}

}  // namespace

Measured measure(Runner& tested, Runner* reference, std::span<const Token> ids,
                 const Protocol& protocol,
                 const std::function<void(size_t, size_t, double)>& progress) {
    const Config& config = tested.transformer.model.config;
    std::vector<Window> all = windows(protocol, ids.size());
    size_t total = 0, done = 0;
    for (const Window& one : all) total += one.end - one.first_scored;
    check(total > 0, "the text has %zu tokens: too few for one window of %d", ids.size(),
          protocol.context);

    // Pieces of a window, so that two runners' logits of one piece fit 64 MiB each.
    size_t piece = std::clamp<size_t>((size_t(64) << 20) / (size_t(config.V) * 4), 1, 512);
    std::vector<float> logits, logits_reference;
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

            std::vector<Scored> scored(static_cast<size_t>(wanted));
            tested.transformer.model.threads->run(scored.size(), [&](size_t i) {
                size_t row = i * size_t(config.V);
                scored[i] =
                    score(logits.data() + row, reference ? logits_reference.data() + row : nullptr,
                          config.V, text[first + i + 1]);
            });
            for (const Scored& one : scored) tally.add(one, reference != nullptr);
            done += size_t(wanted);
            if (progress) progress(done, total, std::exp(tally.tested.mean));
        }
    }
    return tally.result();
}

}  // namespace stief
