#include "forward/transformer.h"

#include <algorithm>
#include <cmath>

#include "forward/finite.h"

namespace stief {

Model Model::open(const std::string& folder, const BackendOptions& options, int threads) {
    Model model;
    model.config = Config::open(folder);
    model.weights = Weights::open(model.config);
    model.threads = std::make_unique<Threads>(threads);
    model.backend = make_backend(options, *model.threads);
    Backend& backend = *model.backend;
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
        model.layer.push_back({backend.bind(w.attn_norm), backend.bind(w.wq), backend.bind(w.wk),
                               backend.bind(w.wv), backend.bind(w.wo), backend.bind(w.ffn_norm),
                               backend.bind(w.w_gate), backend.bind(w.w_up),
                               backend.bind(w.w_down)});
    return model;
}

size_t Model::weight_bytes_per_token() const {
    size_t bytes = norm.bytes() + classifier.bytes() + embedding.bytes() / size_t(config.V);
    for (const Layer& w : layer)
        for (const Weight* one :
             {&w.attn_norm, &w.wq, &w.wk, &w.wv, &w.wo, &w.ffn_norm, &w.w_gate, &w.w_up, &w.w_down})
            bytes += one->bytes();
    return bytes;
}

// Logits leave in pieces of this many rows: (batch, V) at once would be the largest buffer of all.
static int logit_rows(const Config& config, int batch) {
    return std::min(batch, std::max(1, int((size_t(8) << 20) / (size_t(config.V) * 4))));
}

static size_t arena_floats(const Config& c, int batch) {
    size_t row = 2 * size_t(c.D) + 2 * size_t(c.H) * c.d + 2 * size_t(c.G) * c.d + 2 * size_t(c.F);
    return size_t(batch) * row + size_t(logit_rows(c, batch)) * c.V;
}

size_t Transformer::arena_bytes_for(const Config& config, int context, int batch) {
    return (arena_floats(config, batch) + size_t(context) * config.d) * sizeof(float);
}

Transformer::Transformer(Model& owner, int context_size, int batch_size)
    : model(owner), batch(std::min(batch_size, context_size)), context(context_size) {
    const Config& c = model.config;
    arena = Buffer(*model.backend, arena_floats(c, batch) * sizeof(float),
                   format("the activations of %d tokens", batch).c_str());
    rotation = Buffer(*model.backend, size_t(context) * c.d * sizeof(float),
                      format("the rotations of %d positions", context).c_str());
    most_likely = Buffer(*model.backend, sizeof(int32_t), "the most likely token");
    frequencies = rope_frequencies(c);
    rows_at_once = logit_rows(c, batch);

    float* next = arena.f32();
    auto rows = [&](size_t count, size_t width) {
        float* first = next;
        next += count * width;
        return first;
    };
    size_t B = size_t(batch);
    x = rows(B, c.D), xn = rows(B, c.D);
    q = rows(B, size_t(c.H) * c.d), att = rows(B, size_t(c.H) * c.d);
    k = rows(B, size_t(c.G) * c.d), v = rows(B, size_t(c.G) * c.d);
    gate = rows(B, c.F), up = rows(B, c.F);
    logits_rows = rows(size_t(rows_at_once), c.V);
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
    ops.rmsnorm(xn, x, w.attn_norm, c.norm_eps, T);
    ops.matmul(qkv, xn, T, false);  // (T, H, d), (T, G, d) ×2
    ops.rope(q, kv.rotated ? k : nullptr, rotation.f32(), c.H, c.G, c.d, step);
    ops.append(kv, k, v, step);                    // c ← k E, truncated
    ops.attend(att, q, rotation.f32(), kv, step);  // softmax(q K̃ᵀ / √d) Ṽ
    ops.matmul(x, att, w.wo, T, true);             // x += att Woᵀ

    ops.rmsnorm(xn, x, w.ffn_norm, c.norm_eps, T);
    ops.gated(gate, up, xn, w.w_gate, w.w_up, T);  // (T, F)  silu(xn W_gateᵀ) ⊙ xn W_upᵀ
    ops.matmul(x, gate, w.w_down, T, true);        // x += gate W_downᵀ
}

// One batch through all layers; x holds its residual stream afterwards. A step of one token is the
// same but for pos and id whenever it goes through the same buffers.
void Transformer::pass(KvCache& cache, std::span<const Token> ids, Then then) {
    Step step{cache.used, int(ids.size()), ids.data()};
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
    ops.exact = exact;
    if (ops.begin_step(step)) {
        ops.embed(x, model.embedding, step);
        for (int l = 0; l < model.config.L; l++) block(l, cache, step);
        if (step.T == 1 && then != Then::Nothing) classify(0, 1);
        if (step.T == 1 && then == Then::Greedy) argmax();
    }
    ops.end_step();
    cache.used += step.T;
}

// logits_rows ← those of the batch's tokens first … first + count − 1.
void Transformer::classify(int first, int count) {
    Backend& ops = *model.backend;
    const Config& c = model.config;
    ops.rmsnorm(xn, x + size_t(first) * c.D, model.norm, c.norm_eps, count);
    ops.matmul(logits_rows, xn, model.classifier, count, false);
}

void Transformer::argmax() {
    model.backend->argmax(static_cast<int32_t*>(most_likely.data), logits_rows, 1, model.config.V);
}

// In batches; last(first, T) follows each with the first row of it that is wanted. The logits of a
// batch of one token are there already.
template <class Last>
void Transformer::batches(KvCache& cache, std::span<const Token> ids, int wanted, Then then,
                          const Last& last) {
    int n = int(ids.size()), skipped = n - wanted;
    check(wanted >= 0 && wanted <= n, "%d rows of logits are wanted of %d tokens", wanted, n);
    for (int begin = 0; begin < n; begin += batch) {
        int T = std::min(batch, n - begin), first = std::max(0, skipped - begin);
        pass(cache, ids.subspan(size_t(begin), size_t(T)), first < T ? then : Then::Nothing);
        if (first < T) last(first, T);
    }
}

void Transformer::forward(KvCache& cache, std::span<const Token> ids, float* logits, int wanted) {
    size_t V = size_t(model.config.V);
    batches(cache, ids, wanted, Then::Logits, [&](int first, int T) {
        for (int rows; first < T; first += rows, logits += size_t(rows) * V) {
            rows = std::min(rows_at_once, T - first);
            if (T > 1) classify(first, rows);
            model.backend->download(logits, logits_rows, size_t(rows) * V * sizeof(float));
        }
    });
}

void Transformer::forward_greedy(KvCache& cache, std::span<const Token> ids) {
    batches(cache, ids, 1, Then::Greedy, [&](int first, int T) {
        if (T == 1) return;
        classify(first, 1);
        argmax();
    });
}

Token Transformer::greedy() const {
    int32_t best = -1;
    model.backend->download(&best, most_likely.data, sizeof best);
    if (best < 0) throw NotFinite();
    return best;
}

}  // namespace stief
