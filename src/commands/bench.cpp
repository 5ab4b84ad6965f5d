// stief bench: tokens/s of prefill and decode, and what share of the memory's bandwidth a decode
// step reaches. The bandwidth is measured before and after every run, with the same threads, on a
// block that no cache holds, and the rate of the products' inner loop likewise. A share is the
// median of the runs over the best that any of these measurements has shown: on a machine that
// others use too it may be too small, and is seldom too large. One above 1 is marked. Decode is greedy
// text as generate() makes it: of a token nothing but its number leaves the backend. With --risk audit
// the same text once more, audited; with exact what a verification takes.
#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/json_writer.h"
#include "base/limits.h"
#include "base/progress.h"
#include "base/random.h"
#include "commands/peaks.h"
#include "commands/session.h"
#include "forward/generate.h"

namespace stief {
namespace {

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    size_t n = values.size();
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double best(const std::vector<double>& values) {
    return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

struct Row {
    const char* test;
    int depth, tokens;
    double bytes_per_token, flops_per_token;
    std::vector<double> rates;  // tokens/s, run by run
    size_t resident = 0;        // after the test: this process's memory, block aside

    bool prefill() const { return std::string_view(test) == "prefill"; }
    bool verifies() const { return std::string_view(test) == "verify"; }
    double bytes() const { return median(rates) * bytes_per_token; }  // a second
    double flops() const { return median(rates) * flops_per_token; }
};

struct Bench {
    Session session;
    Peaks peaks;
    Random random{1};

    explicit Bench(const Args& args)
        : session(args), peaks(session.model, args.isa, args.exact) {}

    // Random keys and values at positions 0 … depth − 1, through the cache's own append; the same in the
    // whole rows of a watch.
    void fill(int depth) {
        constexpr int BATCH = 512;
        Backend& backend = *session.model.backend;
        const Config& c = session.model.config;
        std::vector<float> noise(size_t(BATCH) * size_t(c.G) * size_t(c.d));
        for (float& one : noise) one = float(random.normal());
        Buffer rows(backend, noise.size() * sizeof(float), "random keys and values");
        backend.upload(rows.data, noise.data(), rows.bytes);
        for (int pos = 0; pos < depth; pos += BATCH) {
            Step step{pos, std::min(BATCH, depth - pos)};
            backend.begin_step(step);
            for (KvCache* cache : {session.cache.get(), whole()})
                for (size_t l = 0; cache && l < cache->layer.size(); l++)
                    backend.append(cache->layer[l], rows.f32(), rows.f32(), step);
            backend.end_step();
        }
        session.cache->used = depth;
    }
    KvCache* whole() { return session.watch ? session.watch->whole.get() : nullptr; }

    size_t resident() const {
        size_t all = resident_memory();
        size_t block = session.model.backend->copies_weights ? 0 : peaks.block.bytes;
        return all > block ? all - block : 0;
    }

    std::vector<Token> random_tokens(int n) {
        std::vector<Token> ids;
        for (int i = 0; i < n; i++)
            ids.push_back(Token(random.below(uint64_t(session.model.config.V))));
        return ids;
    }

    // Multiply-adds count twice. The classifier is read once in a prefill, for the last token.
    double flops(int tokens, int depth) const {
        const Config& c = session.model.config;
        double layer = 2.0 * c.D * c.d * (c.H + c.G) + 3.0 * double(c.D) * c.F;
        double attention = 2.0 * c.H * c.d * (depth + (tokens + 1) / 2.0);
        return 2 * c.L * (layer + attention) + 2.0 * c.V * c.D / (tokens > 1 ? tokens : 1);
    }

    // The work that many times and once more, which is not counted; peaks before each, and at the end.
    template <class Before, class Work>
    Row timed(Row row, double tokens, int repeat, const Before& before, const Work& work) {
        auto look = [&] {
            peaks.bandwidth();
            if (row.prefill()) peaks.matrix_rate();
        };
        for (int i = -1; i < repeat; i++) {
            before(), look();
            double seconds = seconds_of(work);
            if (i >= 0) row.rates.push_back(tokens / seconds);
        }
        look();
        row.resident = resident();
        return row;
    }

    Row prefill(int tokens, int repeat) {
        KvCache& cache = *session.cache;
        Row row{"prefill", 0, tokens, 0, flops(tokens, 0), {}};
        size_t batches =
            size_t((tokens + session.transformer->batch - 1) / session.transformer->batch);
        row.bytes_per_token = double(session.model.weight_bytes_per_token() * batches) / tokens +
                              cache.bytes_per_token();
        std::vector<Token> ids = random_tokens(tokens);
        return timed(row, tokens, repeat, [&] { cache.used = 0; }, [&] {
            session.transformer->forward_greedy(cache, ids);
            session.transformer->greedy();
        });
    }

    Row decode(int tokens, int depth, int repeat) {
        KvCache& cache = *session.cache;
        Row row{"decode", depth, tokens, 0, flops(1, depth), {}};
        row.bytes_per_token = double(session.model.weight_bytes_per_token()) +
                              double(cache.bytes_per_token()) * (depth + tokens / 2.0);
        fill(depth);
        Sampler sampler(Sampling{}, 0);
        std::vector<Token> first = random_tokens(1);
        auto go_on = [](Token) { return true; };
        // `tokens` passes: the first token, and what follows
        return timed(row, tokens, repeat, [&] { cache.used = depth; }, [&] {
            generate(*session.transformer, cache, sampler, first, tokens - 1, {}, go_on);
            session.transformer->greedy();
        });
    }

    // Decode with audits of its blocks.
    Row audited(const Row& decoded, int repeat) {
        Watch& watch = *session.watch;
        int depth = decoded.depth, tokens = decoded.tokens, block = std::min(watch_block(), tokens);
        int passes = (tokens + block - 1) / block;
        Row row{"audited", depth, tokens, 0, 0, {}};
        row.bytes_per_token = decoded.bytes_per_token + passes * bytes_of_whole_pass(depth) / tokens;
        row.flops_per_token = 2 * decoded.flops_per_token;
        fill(depth);
        std::vector<Token> before = random_tokens(depth), first = random_tokens(1);
        Sampler sampler(Sampling{}, 0);
        auto reset = [&] {
            session.cache->used = depth;
            watch.hold(before);
            if (whole()) whole()->used = depth;
        };
        return timed(row, tokens, repeat, reset, [&] {
            watch.generate(sampler, first, tokens - 1, {}, [](Token) { return true; });
        });
    }

    // What verifies a draft: passes of its tokens and one more over the whole rows. How many of a draft are
    // right is a matter of the text, of which there is none here.
    Row verify(const Row& decoded, int repeat) {
        Backend& backend = *session.model.backend;
        int V = session.model.config.V, depth = decoded.depth, T = watch_block() + 1;
        Row row{"verify", depth, T, bytes_of_whole_pass(depth) / T, decoded.flops_per_token, {}};
        fill(depth);
        Buffer logits(backend, size_t(T) * size_t(V) * sizeof(float), "a draft's logits"),
            likeliest(backend, size_t(T) * sizeof(Token), "a draft's tokens");
        std::vector<Token> draft = random_tokens(T), found(draft);
        Singly singly(*session.transformer);
        int passes = (decoded.tokens + T - 1) / T;
        return timed(row, passes * T, repeat, [] {}, [&] {
            for (int n = 0; n < passes; n++) {
                whole()->used = depth;
                session.transformer->forward_on_backend(*whole(), draft, logits.f32(), T);
                backend.argmax(static_cast<Token*>(likeliest.data), logits.f32(), T, V);
                backend.download(found.data(), likeliest.data, likeliest.bytes);
            }
        });
    }
    // Tokens of a block of --risk; of a draft where its length would be a matter of agreement, too.
    int watch_block() const {
        const WatchOptions& how = session.watch->options;
        return how.block ? how.block : how.exact ? 7 : Watch::MOST;
    }
    double bytes_of_whole_pass(int depth) const {
        const Session& s = session;
        return double(s.model.weight_bytes_per_token()) +
               double(KvCache::bytes_for(s.model.config, 1, s.dtype)) * depth;
    }
};

// Tokens/s of --risk exact at an agreement a: a draft of N tokens and its verification give
// (1 − a^{N+1}) / (1 − a) of them (exact.cpp).
double exact_rate(const Row& draft, const Row& verify, double a) {
    double T = verify.tokens, seconds = (T - 1) / median(draft.rates) + T / median(verify.rates);
    return (1 - std::pow(a, T)) / (1 - a) / seconds;
}

// A share of what the machine can do; above 1 with a mark, which print_text explains.
std::string shown(double share) {
    return format("%.0f%%%s", 100 * share, share > 1 ? "*" : " ");
}

// "–" but for a prefill whose products have a bound.
std::string products_shown(const Row& row, const Peaks& peaks) {
    return row.prefill() && best(peaks.matrix_rates) > 0
               ? shown(row.flops() / best(peaks.matrix_rates))
               : "– ";
}

void print_text(const Bench& bench, const std::vector<Row>& rows) {
    const Session& s = bench.session;
    const Peaks& peaks = bench.peaks;
    double bandwidth = best(peaks.bandwidths), products = best(peaks.matrix_rates);
    std::string text = format(
        "%s, %s; %.2f B parameters; cache %s; measured here, the best of %zu: bandwidth %.1f GB/s",
        s.model.backend->name.c_str(), s.model.backend->device.c_str(),
        double(s.model.weights.parameters()) * 1e-9, name_of(s.dtype), peaks.bandwidths.size(),
        bandwidth * 1e-9);
    if (products > 0) text += format(", products %.3f TFLOP/s", products * 1e-12);
    text +=
        "\ntest      depth   tokens/s (min … max)             MB/token    GB/s  of bandwidth  "
        "TFLOP/s  of products  resident MiB\n";
    bool above = false;
    for (const Row& row : rows) {
        auto [low, high] = std::minmax_element(row.rates.begin(), row.rates.end());
        std::string range = format("%.1f … %.1f)", *low, *high);
        std::string of_products = products_shown(row, peaks);
        above = above || row.bytes() > bandwidth || of_products.ends_with('*');
        // Widths count bytes: … and – have two more than columns.
        text += format("%-8s %6d  %9.1f (%-24s %8.2f %7.1f  %12s  %7.3f  %*s  %12.0f\n", row.test,
                       row.depth, median(row.rates), range.c_str(), row.bytes_per_token * 1e-6,
                       row.bytes() * 1e-9, shown(row.bytes() / bandwidth).c_str(),
                       row.flops() * 1e-12, of_products.starts_with("–") ? 14 : 12,
                       of_products.c_str(), double(row.resident) / (1 << 20));
    }
    for (size_t i = 1; i < rows.size(); i++)
        if (rows[i].verifies())
            text += format("--risk exact at %d: %.1f tokens/s by drafts of %d, where 95 of 100 are right\n",
                           rows[i].depth, exact_rate(rows[i - 1], rows[i], 0.95), rows[i].tokens - 1);
    if (above)
        text +=
            "* more than the bound that was measured. Of bandwidth: what a token reads did not all "
            "come from memory\n"
            "  (a small model's weights stay in the processor's cache), or memory was busy with "
            "other work whenever it was\n"
            "  measured. This is no share of what the machine can do.\n";
    print(text);
}

void print_json(const Bench& bench, const std::vector<Row>& rows) {
    const Session& s = bench.session;
    double bandwidth = best(bench.peaks.bandwidths), products = best(bench.peaks.matrix_rates);
    JsonWriter json;
    json.begin_object();
    json.add("backend", s.model.backend->name).add("device", s.model.backend->device);
    json.add("threads", s.model.threads->count());
    json.add("bandwidth_gbs", bandwidth * 1e-9);
    if (products > 0) json.add("matrix_tflops", products * 1e-12);
    json.begin_array("rows");
    for (const Row& row : rows) {
        auto [low, high] = std::minmax_element(row.rates.begin(), row.rates.end());
        double share = row.bytes() / bandwidth;
        json.begin_object().add("test", row.test).add("depth", row.depth).add("tokens", row.tokens);
        json.begin_object("tokens_per_second").add("min", *low).add("median", median(row.rates));
        json.add("max", *high).end_object().add("bytes_per_token", row.bytes_per_token);
        json.add("gbs", row.bytes() * 1e-9).add("share_of_bandwidth", share);
        json.add("above_bandwidth", share > 1);
        json.add("tflops", row.flops() * 1e-12);
        if (row.prefill() && products > 0) json.add("share_of_matrix_rate", row.flops() / products);
        json.add("resident_bytes", row.resident).end_object();
    }
    print(json.end_array().end_object().text + "\n");
}

}  // namespace

int bench(const Args& args) {
    int deepest = *std::max_element(args.depths.begin(), args.depths.end());
    int ahead = std::max(args.bench_generate, args.risk == "exact" ? Watch::MOST + 1 : 0);
    int64_t needed = std::max<int64_t>(args.bench_prompt, int64_t(deepest) + ahead);
    Args opened = args;
    Config config = Config::open(args.model);
    if (!args.context) opened.context = int(std::clamp<int64_t>(needed, 1, config.context));
    check(needed <= opened.context,
          "the tests reach position %lld, the context ends at %d: use a smaller --prompt, --generate "
          "or --depth, or a larger --context",
          static_cast<long long>(needed), opened.context);
    Bench bench(opened);
    std::vector<Row> rows;
    Progress progress("bench", "tests", args.quiet || args.json);
    size_t tests = args.depths.size() * (bench.session.watch ? 2 : 1) + 1;
    progress.update(0, tests);
    rows.push_back(bench.prefill(args.bench_prompt, args.repeat));
    for (int depth : args.depths) {
        progress.update(rows.size(), tests);
        rows.push_back(bench.decode(args.bench_generate, depth, args.repeat));
        if (!bench.session.watch) continue;
        progress.update(rows.size(), tests);
        Row decoded = rows.back();
        rows.push_back(args.risk == "exact" ? bench.verify(decoded, args.repeat)
                                            : bench.audited(decoded, args.repeat));
    }
    progress.clear();
    (args.json ? print_json : print_text)(bench, rows);
    return 0;
}

}  // namespace stief
