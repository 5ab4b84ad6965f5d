// stief inspect: what a folder holds, what one token costs in the cache, what opening it will need.
#include <algorithm>
#include <numeric>

#include "base/json_writer.h"
#include "base/progress.h"
#include "commands/session.h"
#include "formats/model_folder.h"

namespace stief {
namespace {

struct Needs {
    Plan plan;
    Plan::Bytes bytes;
    size_t weights;
    size_t whole;                   // --risk: rows of a full cache beside a compressed one, else 0
    std::vector<size_t> per_token;  // (L)  bytes of a position beyond the window and all ages
    std::string format;             // "f16", "q4", "my.bases, f16"
};

Needs needs_of(const Args& args, const Config& config, const Weights& weights,
               const Backend& backend) {
    Plan plan = plan_of(args, config, weights, backend);
    Needs needs{std::move(plan), {}, weights.bytes(), 0, {}, {}};
    needs.bytes = needs.plan.bytes(needs.plan.context);
    if (needs.plan.bases) needs.whole = needs.plan.whole_bytes(needs.plan.context);
    std::string elements = name_of(needs.plan.dtype);
    needs.format = !needs.plan.bases    ? elements
                   : args.bases.empty() ? args.cache
                                        : args.bases + ", " + elements;
    for (int l = 0; l < config.L; l++) needs.per_token.push_back(needs.plan.bytes_per_token(size_t(l)));
    return needs;
}

std::string ids_text(const std::vector<Token>& ids) {
    std::string text;
    for (Token id : ids) text += (text.empty() ? "" : ", ") + std::to_string(id);
    return text;
}

std::string tensor_lines(const Weights& weights) {
    auto line = [](const std::string& name, const Tensor& t, const std::string& times) {
        return format("  %-28s %-18s %-5s%s\n", name.c_str(), to_string(t.shape).c_str(),
                      name_of(t.dtype), times.c_str());
    };
    std::string text = line("embed_tokens", weights.embedding, "");
    LayerOf<size_t> others = {};  // layers whose dtype differs from the first's
    for (const LayerWeights& layer : weights.layer)
        for_each_weight([](const char*, size_t& n, const Tensor& first,
                           const Tensor& one) { n += one.dtype != first.dtype; },
                        others, weights.layer[0], layer);
    for_each_weight(
        [&](const char* name, const Tensor& first, size_t other) {
            std::string times = format("x %zu", weights.layer.size());
            if (other) times += format(" (%zu of them of another dtype)", other);
            text += line(name, first, times);
        },
        weights.layer[0], others);
    text += line("norm", weights.norm, "");
    bool tied = weights.classifier.data == weights.embedding.data;
    return text + (tied ? "  lm_head                      tied to embed_tokens\n"
                        : line("lm_head", weights.classifier, ""));
}

std::string rope_text(const Config& c) {
    std::string text = format("theta %g", c.rope_theta);
    if (c.rope_scaling.factor != 1)
        text += format(", llama3 scaling: factor %g, low %g, high %g, original context %d",
                       c.rope_scaling.factor, c.rope_scaling.low_freq_factor,
                       c.rope_scaling.high_freq_factor, c.rope_scaling.original_context);
    return text;
}

// The host's memory is mapped and given out as it is touched; a device's is taken at once.
std::string memory_lines(const Needs& needs, const Backend& backend) {
    bool device = backend.copies_weights;
    std::string text = format(
        "memory%s: weights %s%s; at a context of %d: cache %s%s and activations %s\n",
        device ? " of the device" : "", human_bytes(double(needs.weights)).c_str(),
        device ? "" : ", mapped and shared", needs.plan.context,
        human_bytes(double(needs.bytes.cache)).c_str(), device ? "" : " (as it fills)",
        human_bytes(double(needs.bytes.activations)).c_str());
    if (!needs.whole) return text;
    return text + format("--risk keeps whole rows besides: %s, %s\n",
                         human_bytes(double(needs.whole)).c_str(),
                         backend.cold_apart ? "in the host's memory, a layer at a time on the device too"
                                            : "in memory or, --cold FILE, in a file");
}

std::string as_text(const Config& c, const Weights& weights, const Needs& needs,
                    const Backend& backend) {
    size_t shards = weights.files.files.size();
    std::string text =
        format("%s: Llama, %.2f million parameters in %zu file%s, fingerprint %016llx\n",
               c.folder.c_str(), double(weights.parameters()) * 1e-6, shards,
               shards == 1 ? "" : "s", static_cast<unsigned long long>(weights.fingerprint(c)));
    text +=
        format("  layers %d · width %d · feed-forward %d · vocabulary %d\n", c.L, c.D, c.F, c.V);
    text += format("  query heads %d · kv heads %d · head width %d · context %d\n", c.H, c.G, c.d,
                   c.context);
    text += format("  rope %s · norm eps %g · bos %d · eos %s\n\n", rope_text(c).c_str(),
                   double(c.norm_eps), c.bos, ids_text(c.eos).c_str());
    text += tensor_lines(weights) + "\n";
    auto [least, most] = std::minmax_element(needs.per_token.begin(), needs.per_token.end());
    size_t all = std::accumulate(needs.per_token.begin(), needs.per_token.end(), size_t(0));
    std::string each = std::to_string(*least);
    if (*most > *least) each += format(" to %zu", *most);
    text += format(
        "cache in %s: %s bytes a token in each of %d layers (keys and values, %d heads of %d), "
        "%zu in all, %.2f bits an element\n",
        needs.format.c_str(), each.c_str(), c.L, c.G, c.d, all,
        8 * double(all) / (2.0 * c.L * c.G * c.d));
    text += memory_lines(needs, backend);
    text += format("backend: %s, %s; this processor runs", backend.name.c_str(),
                   backend.device.c_str());
    for (const std::string& isa : cpu_isas()) text += " " + isa;
    return text + "\n";
}

std::string as_json(const Config& c, const Weights& weights, const Needs& needs,
                    const Backend& backend) {
    JsonWriter json;
    json.begin_object().add("model", c.folder).add("parameters", weights.parameters());
    json.add("fingerprint",
             format("%016llx", static_cast<unsigned long long>(weights.fingerprint(c))));
    json.add("layers", c.L).add("width", c.D).add("feed_forward", c.F).add("vocabulary", c.V);
    json.add("query_heads", c.H)
        .add("kv_heads", c.G)
        .add("head_width", c.d)
        .add("context", c.context);
    json.add("rope_theta", c.rope_theta).add("tied_embeddings", c.tied_embeddings);
    json.add("cache_dtype", name_of(needs.plan.dtype)).add("cache_format", needs.format);
    json.begin_array("cache_bytes_per_token_by_layer");
    for (size_t bytes : needs.per_token) json.add("", bytes);
    json.end_array()
        .begin_object("memory")
        .add("context", needs.plan.context)
        .add("weights", needs.weights);
    json.add("cache", needs.bytes.cache)
        .add("activations", needs.bytes.activations)
        .add("whole_rows_of_risk", needs.whole)
        .end_object();
    json.add("backend", backend.name).add("device", backend.device).begin_array("isas");
    for (const std::string& isa : cpu_isas()) json.add("", isa);
    return json.end_array().end_object().text + "\n";
}

}  // namespace

int inspect(const Args& args) {
    if (is_bases_file(args.model)) return inspect_bases(args);
    Config config = Config::open(args.model);
    Weights weights = Weights::open(config);
    Threads threads(args.threads);
    std::unique_ptr<Backend> backend = make_backend(backend_options(args), threads);
    Needs needs = needs_of(args, config, weights, *backend);
    print((args.json ? as_json : as_text)(config, weights, needs, *backend));
    return 0;
}

}  // namespace stief
