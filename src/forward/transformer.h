// The forward pass of a Llama, written once, for T tokens: decode is T = 1, prefill is batches of them.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/buffer.h"
#include "cache/kv_cache.h"
#include "model/weights.h"

namespace stief {

// A model bound to a backend. Opening it copies nothing on the CPU.
struct Model {
    Config config;
    Weights weights;
    std::unique_ptr<Threads> threads;        // the process's one pool
    std::unique_ptr<Backend> backend;

    using Layer = LayerOf<Weight>;
    Weight embedding, norm, classifier;
    std::vector<Layer> layer;

    static Model open(const std::string& folder, const BackendOptions& options, int threads);
    size_t weight_bytes_per_token() const;   // what one decode step reads of the weights
};

// Rows of logits (rows, V) that are made and scored together, `most` or as many as 128 MiB hold: the
// classifier's product needs some 200 to run at its rate, and all of a text would be its largest array.
size_t rows_together(const Config& config, size_t most);

// The activations of one call of at most `batch` tokens.
struct PassArrays {
    float *x, *xn;            // (batch, D)      residual stream; its norm
    float *q, *att;           // (batch, H, d)
    float *k, *v;             // (batch, G, d)
    float *gate, *up;         // (batch, F)
    float* logits_rows;       // (rows_at_once, V)
    int rows_at_once;
    int32_t* most_likely;     // argmax of the last logits

    // In `memory`, one after another; returns how many bytes that is.
    size_t place(const Config& config, int batch, void* memory);
};

// The pass itself.
struct Transformer : private PassArrays {
    Model& model;
    int batch;                // tokens a pass at most; longer prompts go in several
    int context;              // positions at most
    bool exact = false;       // f32 activations in every product (may change between calls)
    bool singly = false;      // every token as in a pass of its own, to the last bit (Singly)

    Transformer(Model& owner, int context_size, int batch_size = 512);

    // Appends ids to the cache at its positions used, used + 1, …
    // logits: for the last `wanted` of them, (wanted, V) host memory; nothing is computed for the rest.
    void forward(KvCache& cache, std::span<const Token> ids, float* logits, int wanted);
    // The same where the logits are to stay on the backend.
    void forward_on_backend(KvCache& cache, std::span<const Token> ids,
                            float* logits,   // (wanted, V)  the backend's memory
                            int wanted);
    // Appends ids and keeps on the backend which token the last of them makes most likely; of a device
    // only that comes back, with greedy().
    void forward_greedy(KvCache& cache, std::span<const Token> ids);
    // Appends the token that was found last, which need not have come back.
    void forward_next(KvCache& cache);
    // What forward_greedy and each forward_next since have found, one after the other; a later pass is
    // not waited for. NotFinite where a logit was NaN.
    Token greedy();

    static size_t arena_bytes_for(const Config& config, int context, int batch);

  private:
    Buffer arena;
    // What follows the layers in the same step; Next: as Greedy, of the token that was found last.
    enum class Then { Nothing, Logits, Greedy, Next };
    int on_their_way = 0;     // tokens found and not asked for with greedy()

    Buffer rotation;          // (context, 2, d/2)  cosines, sines of each position, filled as visited
    int rotation_filled = 0;
    std::vector<double> frequencies;   // (d/2)

    void fill_rotation(int positions);
    void block(int l, KvCache& cache, const Step& step);
    void pass(KvCache& cache, std::span<const Token> ids, Then then);
    void classify(float* logits, int first, int count);
    Token await_token();
    template <class Last>
    void batches(KvCache& cache, std::span<const Token> ids, int wanted, Then then,
                 const Last& last);
};

// A transformer, and its backend with it, goes singly as long as this lives, or not: whatever ends that.
struct Singly {
    Transformer& transformer;
    const bool before;

    explicit Singly(Transformer& pass, bool on = true)
        : transformer(pass), before(std::exchange(pass.singly, on)) {}
    ~Singly() { transformer.singly = transformer.model.backend->singly = before; }
    Singly(const Singly&) = delete;
};

}  // namespace stief
