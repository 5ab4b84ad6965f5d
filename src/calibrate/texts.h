// What calibration learns from and measures on: one text or several, each by its name, and sequences
// drawn evenly from all of them.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "formats/tokenizer.h"
#include "forward/perplexity.h"

namespace stief {

struct NamedText {
    std::string name;  // for messages and the report
    std::vector<Token> ids;
};

struct CalibrationText {
    std::vector<NamedText> learn, held_out;
};
// "a.txt, b.txt"; of the parts of one file "a.txt: prose, code".
std::string names_of(const std::vector<NamedText>& texts);

// Sequences of T tokens.
struct Sequences {
    int T = 0;
    std::vector<std::vector<Token>> ids;  // (count, T)
    std::vector<int> pos;                 // (count)  position of each one's first token
    std::vector<size_t> text;             // (count)  which of the texts it is of

    size_t count() const { return ids.size(); }
    Step step(size_t s) const { return {pos[s], T}; }
};

// As many of each text; what a short one does not have goes to the others, and each that holds one
// gives one, also beyond at_most. One of each text in turn, so that a few of them are of all.
// Spread evenly over a text, each from a random position on: attention does not change under such an
// offset, but keys after rotation do, and their bases must serve all positions.
Sequences cut_sequences(std::span<const NamedText> texts, int T, size_t at_most, int context,
                        Random& random);
// The same numbers of them, but from the beginning of each text one after another, position 0.
Sequences first_windows(std::span<const NamedText> texts, int T, size_t at_most);

// Mean divergence on each text's windows, by the scores of all of them in their order.
struct TextDivergence {
    std::string name;
    size_t tokens = 0;
    double mean = 0;  // nats a token
};
std::vector<TextDivergence> by_text(const Measured& measured, const Sequences& windows,
                                    std::span<const NamedText> texts);

}  // namespace stief
