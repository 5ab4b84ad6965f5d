// Texts with something in them that a model can only say if it still finds it: made from a seed, of
// sentences that say little, with others like the one that is asked for.
#pragma once
#include <string>
#include <vector>

#include "base/random.h"
#include "formats/tokenizer.h"

namespace stief {

struct NeedleText {
    struct Asked {
        std::vector<Token> question, answer;    // the answer is what follows text and question
    };
    std::vector<Token> ids;
    std::vector<Asked> asked;     // each of the text alone
};

// random     random tokens: some of them again are to go on as the first time
// paragraph  four paragraphs in other text: each one's beginning is to go on as the first time
// name       four persons' secret words
// pairs      eight keys and their numbers, of which four are asked, each after another pair
extern const std::vector<std::string> NEEDLE_KINDS;

// Text, question and answer are at most `length` tokens, the longest of them hardly fewer. novel: what
// hides the needles; "": made. Error where that is too short for them.
NeedleText make_needles(const std::string& kind, int length, const Tokenizer& tokenizer,
                        const std::string& novel, Random& random);

}  // namespace stief
