#include "forward/transformer.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/arena.h"
#include "forward/finite.h"

namespace stief {

Model Model::open(const std::string& folder, const BackendOptions& options, int threads) {
    Model model;
    model.config = Config::open(folder);
    model.weights = Weights::open(model.config);
    model.threads = std::make_unique<Threads>(threads);
    model.backend = make_backend(options, *model.threads);
    Backend& backend = *model.backend;
    check(model.config.d <= backend.widest_head,
          "%s: its heads have %d coordinates, attention on %s covers %d at most; use --backend cpu",
          folder.c_str(), model.config.d, backend.name.c_str(), backend.widest_head);
    size_t needed = model.weights.bytes(), available = backend.available();
    if (backend.copies_weights && needed > available)
        fail("%s: its weights need %.2f GiB, %.2f GiB of the device's memory are free; use "
             "--backend cpu or a smaller model",
             folder.c_str(), double(needed) * 0x1p-30, double(available) * 0x1p-30);
    model.embedding = backend.bind(model.weights.embedding);
    model.norm = backend.bind(model.weights.norm);
    model.classifier =
        model.config.tied_embeddings ? model.embedding : backend.bind(model.weights.classifier);
    for (const LayerWeights& w : model.weights.layer)
        for_each_weight([&](const char*, Weight& to, const Tensor& from) { to = backend.bind(from); },
                        model.layer.emplace_back(), w);
    return model;
}

size_t Model::weight_bytes_per_token() const {
    size_t bytes = norm.bytes() + classifier.bytes() + embedding.bytes() / size_t(config.V);
    for (const Layer& w : layer)
        for_each_weight([&](const char*, const Weight& one) { bytes += one.bytes(); }, w);
    return bytes;
}

static size_t rows_within(size_t bytes, const Config& config, size_t most) {
    return std::clamp<size_t>(bytes / (size_t(config.V) * sizeof(float)), 1, most);
}

size_t rows_together(const Config& config, size_t most) {
    return rows_within(size_t(128) << 20, config, most);
}

size_t PassArrays::place(const Config& c, int batch, void* memory) {
    Arena arena(memory);
    size_t B = size_t(batch), D = size_t(c.D), F = size_t(c.F);
    size_t Hd = size_t(c.H) * size_t(c.d), Gd = size_t(c.G) * size_t(c.d);
    for (float** one : {&x, &xn}) *one = arena.take<float>(B * D);
    for (float** one : {&q, &att}) *one = arena.take<float>(B * Hd);
    for (float** one : {&k, &v}) *one = arena.take<float>(B * Gd);
    for (float** one : {&gate, &up}) *one = arena.take<float>(B * F);
    rows_at_once = int(rows_within(size_t(8) << 20, c, B));
    logits_rows = arena.take<float>(size_t(rows_at_once) * size_t(c.V));
    most_likely = arena.take<int32_t>(1);
    return arena.used;
}

size_t Transformer::arena_bytes_for(const Config& config, int context, int batch) {
    return PassArrays().place(config, batch, nullptr) +
           size_t(context) * size_t(config.d) * sizeof(float);
}

Transformer::Transformer(Model& owner, int context_size, int batch_size)
    : model(owner), batch(std::min(batch_size, context_size)), context(context_size) {
    const Config& c = model.config;
    arena = Buffer(*model.backend, place(c, batch, nullptr),
                   format("the activations of %d tokens", batch).c_str());
    place(c, batch, arena.data);
    rotation = Buffer(*model.backend, size_t(context) * c.d * sizeof(float),
                      format("the rotations of %d positions", context).c_str());
    frequencies = rope_frequencies(c);
}

// Angles pos · θ_j in double: at position 131,071 a float angle is off by 4e-3. Some positions ahead,
// so that decoding on a device does not wait for a row at each token.
void Transformer::fill_rotation(int positions) {
    constexpr int AHEAD = 256;
    if (positions <= rotation_filled) return;
    positions = std::min(context, positions + AHEAD);
    size_t half = frequencies.size();
    std::vector<float> rows;
    for (int pos = rotation_filled; pos < positions; pos++) {
        for (double theta : frequencies) rows.push_back(float(std::cos(double(pos) * theta)));
        for (double theta : frequencies) rows.push_back(float(std::sin(double(pos) * theta)));
    }
    model.backend->upload(rotation.f32() + size_t(rotation_filled) * 2 * half, rows.data(),
                          rows.size() * sizeof(float));
    rotation_filled = positions;
}

void Transformer::block(int l, KvCache& cache, const Step& step) {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    const CacheLayer& kv = cache.layer[size_t(l)];
    const Config& c = model.config;
    int T = step.T;

    Projection qkv[] = {{q, w.wq}, {k, w.wk}, {v, w.wv}};
    Input attn_in(x, w.attn_norm, c.norm_eps, xn), ffn_in(x, w.ffn_norm, c.norm_eps, xn);
    Operand heads(att, w.wo.dtype), hidden(gate, w.w_down.dtype);

    ops.matmul(qkv, attn_in, T, false);               // (T, H, d), (T, G, d) ×2  norm(x) Wᵀ
    // q rotated, k too where it is kept so; c ← k E, truncated and stored; softmax(q K̃ᵀ / √d) Ṽ
    ops.append_and_attend(heads, kv, q, k, v, rotation.f32(), step);
    ops.matmul(x, heads, w.wo, T, true);              // x += att Woᵀ

    ops.gated(hidden, up, ffn_in, w.w_gate, w.w_up, T);  // (T, F)  silu(· W_gateᵀ) ⊙ · W_upᵀ
    ops.matmul(x, hidden, w.w_down, T, true);         // x += hidden W_downᵀ
}

// One batch through all layers; x holds its residual stream afterwards. A step of one token is the
// same but for pos and id whenever it goes through the same buffers.
void Transformer::pass(KvCache& cache, std::span<const Token> ids, Then then) {
    bool next = then == Then::Next, greedy = next || then == Then::Greedy;
    Step step{cache.used, next ? 1 : int(ids.size()), ids.data()};
    if (next) step.token = most_likely;
    if (greedy) step.home = most_likely;
    check(step.pos + step.T <= std::min(context, cache.capacity),
          "the context is full: position %d of %d (use a larger --context)", step.pos + step.T,
          std::min(context, cache.capacity));
    for (Token one : ids)
        check(one >= 0 && one < model.config.V, "token id %d is outside the vocabulary of %d", one,
              model.config.V);
    if (step.T == 1)
        step.replay = (arena.number << 24 ^ cache.rows.number) << 3 | uint64_t(then) << 1 | exact;
    fill_rotation(step.pos + step.T);
    Backend& ops = *model.backend;
    ops.exact = exact, ops.singly = singly;
    if (ops.begin_step(step)) {
        ops.embed(x, model.embedding, step);
        for (int l = 0; l < model.config.L; l++) block(l, cache, step);
        if (greedy || (step.T == 1 && then == Then::Logits)) classify(logits_rows, step.T - 1, 1);
        if (greedy) ops.argmax(most_likely, logits_rows, 1, model.config.V);
    }
    ops.end_step();
    cache.used += step.T, on_their_way += greedy;
}

// logits (count, V) ← those of the batch's tokens first … first + count − 1.
void Transformer::classify(float* logits, int first, int count) {
    Backend& ops = *model.backend;
    const Config& c = model.config;
    Input last(x + size_t(first) * c.D, model.norm, c.norm_eps, xn);
    ops.matmul(logits, last, model.classifier, count, false);
}

// In batches; last(first, T) follows each with the first row of it that is wanted. The logits of a
// batch of one token are there already.
template <class Last>
void Transformer::batches(KvCache& cache, std::span<const Token> ids, int wanted, Then then,
                          const Last& last) {
    int n = int(ids.size()), skipped = n - wanted;
    check(wanted >= 0 && wanted <= n, "%d rows of logits are wanted of %d tokens", wanted, n);
    int most = singly ? std::min(batch, model.backend->most_singly) : batch;
    for (int begin = 0; begin < n; begin += most) {
        int T = std::min(most, n - begin), first = std::max(0, skipped - begin);
        pass(cache, ids.subspan(size_t(begin), size_t(T)), first < T ? then : Then::Nothing);
        if (first < T) last(first, T);
    }
}

void Transformer::forward(KvCache& cache, std::span<const Token> ids, float* logits, int wanted) {
    size_t V = size_t(model.config.V);
    batches(cache, ids, wanted, Then::Logits, [&](int first, int T) {
        for (int rows; first < T; first += rows, logits += size_t(rows) * V) {
            rows = std::min(rows_at_once, T - first);
            if (T > 1) classify(logits_rows, first, rows);
            model.backend->download(logits, logits_rows, size_t(rows) * V * sizeof(float));
        }
    });
}

void Transformer::forward_on_backend(KvCache& cache, std::span<const Token> ids, float* logits,
                                     int wanted) {
    batches(cache, ids, wanted, Then::Nothing, [&](int first, int T) {
        classify(logits, first, T - first);
        logits += size_t(T - first) * size_t(model.config.V);
    });
}

void Transformer::forward_greedy(KvCache& cache, std::span<const Token> ids) {
    while (on_their_way) await_token();  // nobody has asked for them
    batches(cache, ids, 1, Then::Greedy, [](int, int) {});
}

void Transformer::forward_next(KvCache& cache) {
    pass(cache, {}, Then::Next);
}

Token Transformer::await_token() {
    assert(on_their_way > 0);
    int32_t found = -1;
    on_their_way--;
    model.backend->download(&found, most_likely, sizeof found);
    return found;
}

Token Transformer::greedy() {
    Token found = await_token();
    if (found < 0) throw NotFinite();
    return found;
}

}  // namespace stief
