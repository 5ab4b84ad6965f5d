// stief perplexity: perplexity of a text by a named protocol and, with --compare, the KL divergence
// from the same model run another way (exact arithmetic, another cache) over the same tokens in
// this process.
#include "forward/perplexity.h"

#include <algorithm>
#include <optional>

#include "base/file.h"
#include "base/json_writer.h"
#include "base/progress.h"
#include "base/seconds.h"
#include "commands/session.h"
#include "forward/finite.h"

namespace stief {

static Protocol protocol_of(const Args& args) {
    Protocol protocol;
    protocol.name = Protocol::parse(args.protocol);
    protocol.context = protocol.name == Protocol::LlamaCpp ? 512 : 2048;
    if (args.context) protocol.context = args.context;
    protocol.stride = args.stride ? args.stride : protocol.context / 2;
    protocol.limit = args.chunks;
    if (args.stride && protocol.name != Protocol::Strided)
        throw UsageError("--stride belongs to --protocol strided");
    if (protocol.context < 4)
        throw UsageError("a window of fewer than 4 tokens scores next to nothing");
    if (protocol.stride > protocol.context)
        throw UsageError(format("--stride %d leaves gaps between windows of %d", protocol.stride,
                                protocol.context));
    return protocol;
}

static std::string as_json(const Args& args, const Protocol& protocol, const Measured& m,
                           double seconds, size_t cache_bytes) {
    JsonWriter json;
    json.begin_object();
    json.add("perplexity", m.loss.perplexity).add("stderr", m.loss.standard_error);
    json.add("tokens", m.loss.tokens).add("protocol", name_of(protocol.name));
    json.add("context", protocol.context).add("seconds", seconds);
    json.add("cache_bytes_per_token", cache_bytes);
    json.add("compressed_share", m.compressed_share);
    if (!reference_name(args).empty()) {
        json.add("compared_with", reference_name(args))
            .add("perplexity_full", m.reference.perplexity);
        json.add("kld_mean", m.divergence.mean).add("kld_p99", m.divergence.p99);
        json.add("kld_max", m.divergence.max).add("same_top", m.divergence.same_top);
    }
    return json.end_object().text + "\n";
}

static std::string as_text(const Args& args, const Protocol& protocol, const Measured& m,
                           double seconds, size_t cache_bytes) {
    std::string text = format(
        "perplexity %.4f ± %.4f   (%s, windows of %d, %zu tokens scored, %.1f s)\n"
        "cache      %zu bytes a token",
        m.loss.perplexity, m.loss.standard_error, name_of(protocol.name), protocol.context,
        m.loss.tokens, seconds, cache_bytes);
    if (compresses(args))
        text += format("; %.3g%% of what was read of it was compressed", 100 * m.compressed_share);
    text += "\n";
    if (!reference_name(args).empty())
        text += format(
            "against %s: perplexity %.4f, KL divergence mean %.3g, 99%% %.3g, max %.3g nats; "
            "same top token %.2f%%\n",
            reference_name(args).c_str(), m.reference.perplexity, m.divergence.mean,
            m.divergence.p99, m.divergence.max, 100 * m.divergence.same_top);
    return text;
}

int perplexity(const Args& args) {
    Protocol protocol = protocol_of(args);
    Args opened = args;
    Config config = Config::open(args.model);
    if (!args.context) protocol.context = std::min(protocol.context, config.context);
    protocol.stride = std::min(protocol.stride, protocol.context);
    opened.context = protocol.context;

    Tokenizer tokenizer = Tokenizer::open(args.model);
    std::vector<Token> ids = tokenizer.encode_document(read_text(args.rest[0]));
    check(ids.size() >= 4, "%s: %zu tokens, too few to measure anything on; give a longer text",
          args.rest[0].c_str(), ids.size());
    protocol.bos = tokenizer.bos();
    if (protocol.name == Protocol::LlamaCpp && protocol.bos < 0)
        status(args, "the tokenizer puts no BOS before a text: windows keep their first token");
    Session session(opened);
    Model& model = session.model;
    Runner tested{*session.transformer, *session.cache, args.exact};
    std::optional<Runner> reference;
    if (session.reference)
        reference.emplace(Runner{*session.transformer, *session.reference,
                                 args.exact || reference_name(args) == "exact"});

    auto start = std::chrono::steady_clock::now();
    Measured measured;
    {
        Progress progress("perplexity", "tokens", args.quiet);
        measured = measure(tested, reference ? &*reference : nullptr, ids, protocol,
                           [&](size_t done, size_t all, double so_far) {
                               progress.update(done, all, format("%.3f so far", so_far));
                           });
    }
    expect_rows_that_fit(model, *session.cache);
    model.weights.files.check_unchanged();
    double seconds = seconds_since(start);
    size_t cache_bytes = session.cache->bytes_per_token();
    print((args.json ? as_json : as_text)(args, protocol, measured, seconds, cache_bytes));
    return 0;
}

}  // namespace stief
