// Binding by name. One list says every tensor of a Llama: its name, where it goes, its shape.
#include "model/weights.h"

#include <set>

#include "base/check.h"
#include "base/hash.h"
#include "base/json.h"

namespace stief {

namespace {

struct Slot {
    std::string name;
    Tensor* tensor;
    Shape shape;
    std::string hint;
};

std::vector<Slot> slots(Weights& w, const Config& c) {
    size_t D = size_t(c.D), F = size_t(c.F), V = size_t(c.V), d = size_t(c.d);
    size_t q = size_t(c.H) * d, kv = size_t(c.G) * d;
    w.layer.resize(size_t(c.L));

    std::string width = format("config.json says hidden_size %d", c.D);
    std::string vocabulary = width + format(", vocab_size %d", c.V);
    std::string heads = width + format(", %d heads of %d", c.H, c.d);
    std::string kv_heads = width + format(", %d kv heads of %d", c.G, c.d);
    std::string ffn = width + format(", intermediate_size %d", c.F);

    std::vector<Slot> all = {{"model.embed_tokens.weight", &w.embedding, {V, D}, vocabulary}};
    struct Expected {
        Shape shape;
        const std::string& hint;
    };
    const LayerOf<Expected> of_layer = {.attn_norm = {{D}, width},
                                        .wq = {{q, D}, heads},
                                        .wk = {{kv, D}, kv_heads},
                                        .wv = {{kv, D}, kv_heads},
                                        .wo = {{D, q}, heads},
                                        .ffn_norm = {{D}, width},
                                        .w_gate = {{F, D}, ffn},
                                        .w_up = {{F, D}, ffn},
                                        .w_down = {{D, F}, ffn}};
    for (int l = 0; l < c.L; l++)
        for_each_weight(
            [&](const char* name, Tensor& tensor, const Expected& expected) {
                all.push_back({format("model.layers.%d.%s.weight", l, name), &tensor,
                               expected.shape, expected.hint});
            },
            w.layer[size_t(l)], of_layer);
    all.push_back({"model.norm.weight", &w.norm, {D}, width});
    if (!c.tied_embeddings) all.push_back({"lm_head.weight", &w.classifier, {V, D}, vocabulary});
    return all;
}

// The tensors that no Llama of this config has. Checkpoints of before 2023 hold the rotary
// frequencies, which follow from the config; a tied lm_head is compared with the embedding instead.
std::vector<std::string> strangers(const SafeTensors& files, const std::vector<Slot>& expected,
                                   bool tied) {
    std::set<std::string> known;
    for (const Slot& slot : expected) known.insert(slot.name);
    if (tied) known.insert("lm_head.weight");
    std::vector<std::string> names;
    for (const auto& [name, info] : files.tensors)
        if (!known.count(name) && !name.ends_with(".rotary_emb.inv_freq")) names.push_back(name);
    return names;
}

void check_names(const SafeTensors& files, const std::vector<Slot>& expected, const Config& c) {
    std::vector<std::string> extra = strangers(files, expected, c.tied_embeddings);
    std::string found = extra.empty() ? "" : " (found: " + printable(extra[0]) + ")";
    for (const Slot& slot : expected)
        if (!files.has(slot.name)) {
            bool classifier = slot.name == "lm_head.weight";
            fail("%s: the tensor %s is missing%s%s", c.folder.c_str(), slot.name.c_str(),
                 found.c_str(),
                 classifier ? "; config.json would have to say \"tie_word_embeddings\": true" : "");
        }
    if (!extra.empty())
        fail("%s: the tensor %s%s has no place in a Llama of %d layers without biases "
             "(is this the right config.json?)",
             c.folder.c_str(), printable(extra[0]).c_str(),
             extra.size() > 1 ? format(" (and %zu more)", extra.size() - 1).c_str() : "", c.L);
}

// The first, the last and two more stretches of 64 bytes: four pages of a file, whatever its size.
void add_samples(Hash& hash, const Tensor& tensor) {
    constexpr size_t PLACES = 4, STRETCH = 64;
    const unsigned char* bytes = static_cast<const unsigned char*>(tensor.data);
    size_t size = tensor.bytes(), length = size < STRETCH ? size : STRETCH;
    for (size_t place = 0; place < PLACES; place++) {
        size_t begin = (size - length) / (PLACES - 1) * place;
        if (place == PLACES - 1) begin = size - length;
        for (size_t i = 0; i < length; i++) hash.add(uint64_t(bytes[begin + i]));
    }
}

uint64_t samples_of(const Tensor& tensor) {
    Hash hash;
    add_samples(hash, tensor);
    return hash.value();
}

// transformers 4 runs a tied model with the embedding, transformers 5 with lm_head where it differs
// from the embedding. Where they are the same, so are both; where not, nobody can know what was
// meant.
void check_tied(const Weights& w, const Config& c) {
    if (!w.files.has("lm_head.weight")) return;
    Tensor head =
        w.files.take("lm_head.weight", w.embedding.shape, "tied to model.embed_tokens.weight");
    check(head.dtype == w.embedding.dtype && samples_of(head) == samples_of(w.embedding),
          "%s: config.json says tie_word_embeddings, but lm_head.weight differs from "
          "model.embed_tokens.weight; set it to false to use lm_head.weight",
          c.folder.c_str());
}

std::vector<const Tensor*> all_tensors(const Weights& w) {
    std::vector<const Tensor*> all = {&w.embedding};
    for (const LayerWeights& l : w.layer)
        for_each_weight([&](const char*, const Tensor& t) { all.push_back(&t); }, l);
    all.push_back(&w.norm);
    if (w.classifier.data != w.embedding.data) all.push_back(&w.classifier);
    return all;
}

}  // namespace

Weights Weights::open(const Config& config) {
    Weights w;
    w.files = SafeTensors::open_folder(config.folder);
    std::vector<Slot> expected = slots(w, config);
    check_names(w.files, expected, config);
    for (const Slot& slot : expected) *slot.tensor = w.files.take(slot.name, slot.shape, slot.hint);
    if (config.tied_embeddings) {
        w.classifier = w.embedding;
        check_tied(w, config);
    }
    return w;
}

size_t Weights::parameters() const {
    size_t total = 0;
    for (const Tensor* tensor : all_tensors(*this)) total += tensor->count();
    return total;
}

size_t Weights::bytes() const {
    size_t total = 0;
    for (const Tensor* tensor : all_tensors(*this)) total += tensor->bytes();
    return total;
}

// What changes the activations counts; the context length, the end ids and the sampling do not.
uint64_t Weights::fingerprint(const Config& c) const {
    Hash hash;
    for (int n : {c.L, c.D, c.F, c.V, c.H, c.G, c.d, c.rope_scaling.original_context})
        hash.add(uint64_t(n));
    for (double x : {double(c.norm_eps), c.rope_theta, c.rope_scaling.factor,
                     c.rope_scaling.low_freq_factor, c.rope_scaling.high_freq_factor})
        hash.add(x);
    for (const Tensor* tensor : all_tensors(*this)) {
        hash.add(uint64_t(tensor->dtype));
        for (size_t extent : tensor->shape) hash.add(uint64_t(extent));
        add_samples(hash, *tensor);
    }
    return hash.value();
}

std::vector<NamedTensor> tensors_of(const Config& config, DType dtype) {
    Weights unbound;
    std::vector<NamedTensor> all;
    for (const Slot& slot : slots(unbound, config))
        all.push_back({slot.name, {nullptr, dtype, slot.shape}});
    return all;
}

}  // namespace stief
