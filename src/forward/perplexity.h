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

struct Loss {
    double perplexity = 0, standard_error = 0;
    size_t tokens = 0;
};
struct Divergence {
    double mean = 0, p99 = 0, max = 0;
    double same_top = 0;           // share of positions where both like the same token best
};

// One way to run the model: where its keys and values go, and with which arithmetic.
struct Runner {
    Transformer& transformer;
    KvCache& cache;
    bool exact;                    // f32 activations
};

struct Measured {
    Loss loss;                     // of the runner under test
    Loss reference;                // of the reference, where there is one
    Divergence divergence;         // KL(reference ‖ under test)
};

// ids: the whole text, behind its BOS. reference may be null. progress(tokens done, tokens in all,
// perplexity so far). Memory does not grow with the text but for 4 bytes a scored token (p99).
Measured measure(Runner& tested, Runner* reference, std::span<const Token> ids,
                 const Protocol& protocol,
                 const std::function<void(size_t, size_t, double)>& progress);

}  // namespace stief
