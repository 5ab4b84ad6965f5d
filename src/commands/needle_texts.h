// Texts with something in them that a model can only say if it still finds it: made from a seed, of
// sentences that say little, with others like the one that is asked for.
#pragma once
#include <string>
#include <vector>

#include "base/random.h"
#include "formats/tokenizer.h"

namespace stief {

struct Needle {
    std::vector<Token> prompt, answer;    // the answer is what follows the prompt
};

// random     random tokens twice: the answer goes on with the second as the first went on
// paragraph  a paragraph, other text, and the paragraph's beginning again
// name       the secret word of a person, three other persons' words about it
// pairs      eight keys and their numbers, one of which is asked after another was
extern const std::vector<std::string> NEEDLE_KINDS;

// A prompt of at most `length` tokens and hardly fewer. novel: what hides the needle; "": made.
Needle make_needle(const std::string& kind, int length, const Tokenizer& tokenizer,
                   const std::string& novel, Random& random);

}  // namespace stief
