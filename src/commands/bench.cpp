// stief bench: tokens/s of prefill and decode, and what share of the memory's bandwidth a decode
// step reaches. The bandwidth is measured beside every run, with the same threads, on a block that
// no cache holds, and the rate of the products' inner loop likewise; a share is the median of the
// runs' own ratios, so that a machine whose speed drifts does not distort it.
#include <algorithm>

#include "base/json_writer.h"
#include "base/limits.h"
#include "base/progress.h"
#include "base/random.h"
#include "commands/peaks.h"
#include "commands/session.h"

namespace stief {
namespace {

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    size_t n = values.size();
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

struct Row {
    const char* test;
    int depth, tokens;
    double bytes_per_token, flops_per_token;
    std::vector<double> rates, shares;  // tokens/s; share of the bandwidth, run by run
    std::vector<double> matrix_shares;  // share of the matrix rate; of prefill
    size_t resident = 0;                // after the test: this process's memory, block aside

    double gbs() const { return median(rates) * bytes_per_token * 1e-9; }
    double tflops() const { return median(rates) * flops_per_token * 1e-12; }
};

struct Bench {
    Session session;
    Peaks peaks;
    Random random{1};

    explicit Bench(const Args& args)
        : session(args), peaks(session.model, args.isa, args.exact) {}

    // Random keys and values at positions 0 … depth − 1, through the cache's own append.
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
            for (const CacheLayer& layer : session.cache->layer)
                backend.append(layer, rows.f32(), rows.f32(), step);
            backend.end_step();
        }
        session.cache->used = depth;
    }

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

    Row prefill(int tokens, int repeat) {
        const Config& c = session.model.config;
        KvCache& cache = *session.cache;
        Row row{"prefill", 0, tokens, 0, flops(tokens, 0), {}, {}, {}};
        size_t batches =
            size_t((tokens + session.transformer->batch - 1) / session.transformer->batch);
        row.bytes_per_token = double(session.model.weight_bytes_per_token() * batches) / tokens +
                              cache.bytes_per_token();
        std::vector<Token> ids = random_tokens(tokens);
        std::vector<float> logits(static_cast<size_t>(c.V));
        for (int i = -1; i < repeat; i++) {  // −1: a warm-up that is not counted
            cache.used = 0;
            double peak = peaks.bandwidth(), matrix = peaks.matrix_rate();
            double rate = tokens / seconds_of([&] {
                              session.transformer->forward(cache, ids, logits.data(), 1);
                          });
            if (i < 0) continue;
            row.rates.push_back(rate);
            row.shares.push_back(rate * row.bytes_per_token / peak);
            if (matrix > 0) row.matrix_shares.push_back(rate * row.flops_per_token / matrix);
        }
        row.resident = resident();
        return row;
    }

    Row decode(int tokens, int depth, int repeat) {
        KvCache& cache = *session.cache;
        Row row{"decode", depth, tokens, 0, flops(1, depth), {}, {}, {}};
        row.bytes_per_token = double(session.model.weight_bytes_per_token()) +
                              double(cache.bytes_per_token()) * (depth + tokens / 2.0);
        fill(depth);
        std::vector<float> logits(size_t(session.model.config.V));
        std::vector<Token> ids = random_tokens(tokens);
        for (int i = -1; i < repeat; i++) {
            cache.used = depth;
            double peak = peaks.bandwidth();
            double seconds = seconds_of([&] {
                for (Token& id : ids)
                    session.transformer->forward(cache, {&id, 1}, logits.data(), 1);
            });
            if (i < 0) continue;
            row.rates.push_back(tokens / seconds);
            row.shares.push_back(row.rates.back() * row.bytes_per_token / peak);
        }
        row.resident = resident();
        return row;
    }
};

void print_text(const Bench& bench, const std::vector<Row>& rows) {
    const Session& s = bench.session;
    std::string text =
        format("%s, %s; %.2f B parameters; cache %s; measured here: bandwidth %.1f GB/s",
               s.model.backend->name.c_str(), s.model.backend->device.c_str(),
               double(s.model.weights.parameters()) * 1e-9, name_of(s.dtype),
               median(bench.peaks.bandwidths) * 1e-9);
    if (!bench.peaks.matrix_rates.empty())
        text += format(", products %.3f TFLOP/s", median(bench.peaks.matrix_rates) * 1e-12);
    text +=
        "\ntest      depth   tokens/s (min … max)             MB/token    GB/s  of bandwidth  "
        "TFLOP/s  of products  resident MiB\n";
    for (const Row& row : rows) {
        auto [low, high] = std::minmax_element(row.rates.begin(), row.rates.end());
        std::string share = "–  ";
        if (!row.matrix_shares.empty()) share = format("%.0f%%", 100 * median(row.matrix_shares));
        text += format("%-8s %6d  %9.1f (%.1f … %.1f)%*s%10.2f %7.1f  %11.0f%%  %7.3f  %11s  "
                       "%12.0f\n",
                       row.test, row.depth, median(row.rates), *low, *high,
                       std::max(0, 20 - int(format("%.1f%.1f", *low, *high).size())), "",
                       row.bytes_per_token * 1e-6, row.gbs(), 100 * median(row.shares),
                       row.tflops(), share.c_str(), double(row.resident) / (1 << 20));
    }
    print(text);
}

void print_json(const Bench& bench, const std::vector<Row>& rows) {
    const Session& s = bench.session;
    JsonWriter json;
    json.begin_object();
    json.add("backend", s.model.backend->name).add("device", s.model.backend->device);
    json.add("threads", s.model.threads->count());
    json.add("bandwidth_gbs", median(bench.peaks.bandwidths) * 1e-9);
    if (!bench.peaks.matrix_rates.empty())
        json.add("matrix_tflops", median(bench.peaks.matrix_rates) * 1e-12);
    json.begin_array("rows");
    for (const Row& row : rows) {
        auto [low, high] = std::minmax_element(row.rates.begin(), row.rates.end());
        json.begin_object().add("test", row.test).add("depth", row.depth).add("tokens", row.tokens);
        json.begin_object("tokens_per_second").add("min", *low).add("median", median(row.rates));
        json.add("max", *high).end_object().add("bytes_per_token", row.bytes_per_token);
        json.add("gbs", row.gbs()).add("share_of_bandwidth", median(row.shares));
        json.add("tflops", row.tflops());
        if (!row.matrix_shares.empty())
            json.add("share_of_matrix_rate", median(row.matrix_shares));
        json.add("resident_bytes", row.resident).end_object();
    }
    print(json.end_array().end_object().text + "\n");
}

}  // namespace

int bench(const Args& args) {
    int deepest = *std::max_element(args.depths.begin(), args.depths.end());
    int needed = std::max(args.bench_prompt, deepest + args.bench_generate);
    Args opened = args;
    Config config = Config::open(args.model);
    if (!args.context) opened.context = std::min(std::max(needed, 1), config.context);
    check(needed <= opened.context,
          "the tests reach position %d, the context ends at %d: use a smaller --prompt, --generate "
          "or "
          "--depth, or a larger --context",
          needed, opened.context);
    Bench bench(opened);
    std::vector<Row> rows;
    Progress progress("bench", "tests", args.quiet || args.json);
    size_t tests = args.depths.size() + 1;
    progress.update(0, tests);
    rows.push_back(bench.prefill(args.bench_prompt, args.repeat));
    for (int depth : args.depths) {
        progress.update(rows.size(), tests);
        rows.push_back(bench.decode(args.bench_generate, depth, args.repeat));
    }
    progress.clear();
    (args.json ? print_json : print_text)(bench, rows);
    return 0;
}

}  // namespace stief
