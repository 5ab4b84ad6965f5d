// Perplexity by a named protocol, and the KL divergence between two caches fed the same tokens.
//
//   chunks     non-overlapping windows of N tokens, every next token scored, BOS only where the text
//              begins (GPTQ, Palu, EigenAttention)
//   llama.cpp  windows of N, the first token replaced by BOS (where the tokenizer puts one in front
//              of a text), only positions from the middle on scored
//   strided    windows of N that begin every `stride` tokens; a window scores what no earlier one did
//              (Hugging Face's recipe)
//
// perplexity = e^mean(−ln p).  stderr = perplexity · s/√n with s the deviation of −ln p.
// KL(full ‖ other) = Σ_i p_i ln(p_i / q_i), natural logarithm, at each scored position.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "forward/transformer.h"

namespace stief {

struct Protocol {
    enum Name { Chunks, LlamaCpp, Strided } name = Chunks;
    int context = 2048;
    int stride = 0;                // Strided only
    int limit = 0;                 // windows at most; 0: all
    Token bos = -1;                // LlamaCpp only: what begins a window; −1: its own first token

    static Protocol::Name parse(const std::string& name);
};
const char* name_of(Protocol::Name name);

// What one window feeds and scores: tokens begin … end − 1, and of the predictions of tokens
// first_scored … end − 1 the loss.
struct Window {
    size_t begin, end, first_scored;
    bool bos;                      // the first token is replaced by BOS
};
std::vector<Window> windows(const Protocol& protocol, size_t tokens);

// Of all positions that the scored predictions of windows read, the share outside of a whole window:
// a token at position p reads s ≤ p exactly where s < sinks or p − s < recent.
double share_outside(std::span<const Window> windows, int sinks, int recent);

struct Loss {
    double perplexity = 0, standard_error = 0;
    size_t tokens = 0;
};
struct Divergence {
    double mean = 0, p99 = 0, max = 0;
    double same_top = 0;           // share of positions where both like the same token best
};

struct Measured {
    Loss loss;                     // of the runner under test
    Loss reference;                // of the reference, where there is one
    Divergence divergence;         // KL(reference ‖ under test)
    double compressed_share = 0;   // of what the scored predictions read of the cache under test
    std::vector<float> step;       // (tokens)  the divergence of each, in order
    std::vector<bool> same_top;    // (tokens)
    std::vector<float> swing, swing_next;    // (tokens)  RowScore's
};

// Adds up scores of positions. Memory: 12 bytes a compared position.
struct Tally {
    size_t n = 0;
    double mean = 0, mean_reference = 0;   // of −ln p so far

    void add(const RowScore& one, bool compared);   // Error where the loss is not finite
    Measured result();

  private:
    double squares = 0, squares_reference = 0, divergence = 0;
    std::vector<float> divergences, swing, swing_next;
    std::vector<bool> same_top;
};

// One way to run the model: where its keys and values go, and with which arithmetic.
struct Runner {
    Transformer& transformer;
    KvCache& cache;
    bool exact;                    // f32 activations
};

// ids: the whole text with BOS in front. reference may be null. progress(tokens done, tokens in all,
// perplexity so far). Both runners are of one model; of the logits only scores leave its backend.
// Error where the text is too short, and where all that is read lies in the whole window of a cache
// that compresses: nothing would be measured.
Measured measure(Runner& tested, Runner* reference, std::span<const Token> ids,
                 const Protocol& protocol,
                 const std::function<void(size_t, size_t, double)>& progress);

}  // namespace stief
