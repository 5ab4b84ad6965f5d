#include "commands/needle_texts.h"

#include <algorithm>

#include "base/check.h"

namespace stief {

const std::vector<std::string> NEEDLE_KINDS = {"random", "paragraph", "name", "pairs"};

namespace {

constexpr size_t ANSWER = 4;    // tokens at most of random and paragraph

template <size_t N>
const char* one_of(const char* const (&words)[N], Random& random) {
    return words[random.below(N)];
}

std::string made_sentence(Random& random) {
    static const char* const WHO[] = {"The old baker", "A tall sailor", "My neighbour", "The teacher",
                                      "A young doctor", "The gardener", "Her brother", "The captain",
                                      "A quiet student", "The farmer", "His aunt", "The painter"};
    static const char* const DID[] = {"walked slowly to", "often talked about", "had never seen",
                                      "bought bread near", "wrote a letter about", "remembered",
                                      "looked for", "lived close to", "waited in front of", "painted"};
    static const char* const WHAT[] = {"the river", "the little church", "the market", "a red house",
                                       "the harbour", "the station", "a garden full of roses",
                                       "the bridge", "the school", "the mill", "an empty field"};
    static const char* const WHEN[] = {"in the morning", "before the rain", "on Sunday",
                                       "at the end of the summer", "every evening", "after the war",
                                       "when the snow fell", "without a word", "for many years"};
    return format("%s %s %s %s. ", one_of(WHO, random), one_of(DID, random), one_of(WHAT, random),
                  one_of(WHEN, random));
}

// A word that no text has: consonants and vowels in turn.
std::string made_word(Random& random, int syllables) {
    static const char* const BEGIN[] = {"b", "br", "d", "f", "g",  "k", "l",
                                        "m", "n",  "p", "r", "st", "t", "v"};
    static const char* const END[] = {"a", "e", "i", "o", "u", "an", "el", "ir", "on", "ul"};
    std::string word;
    for (int i = 0; i < syllables; i++)
        word += std::string(one_of(BEGIN, random)) + one_of(END, random);
    return word;
}

std::string capital(std::string word) {
    word[0] = char(word[0] - 'a' + 'A');
    return word;
}

std::string made_number(Random& random) {
    return std::to_string(1000 + random.below(9000));
}

// About that many bytes of the novel from a random place on, whole lines of it; or made sentences.
std::string filler(const std::string& novel, size_t bytes, Random& random) {
    std::string text;
    if (novel.size() > 2 * bytes) {
        size_t begin = random.below(novel.size() - bytes);
        begin = std::min(novel.find_first_of(" \n", begin), novel.size());
        text = novel.substr(begin, bytes);
        return text.substr(0, text.find_last_of(" \n")) + " ";
    }
    while (text.size() < bytes) text += made_sentence(random);
    return text;
}

struct Parts {
    std::vector<std::string> planted;    // in this order, other text between them
    std::string question, answer;
};

Parts named(Random& random) {
    Parts parts;
    std::vector<std::string> names, words;
    for (int i = 0; i < 4; i++) {
        names.push_back(capital(made_word(random, 2)) + " " + capital(made_word(random, 3)));
        words.push_back(made_word(random, 3));
        parts.planted.push_back("The secret word of " + names.back() + " is " + words.back() + ". ");
    }
    size_t asked = random.below(4);
    parts.question = "\n\nThe secret word of " + names[asked] + " is";
    parts.answer = " " + words[asked];
    return parts;
}

Parts paired(Random& random) {
    Parts parts;
    std::vector<std::string> keys, numbers;
    for (int i = 0; i < 8; i++) {
        keys.push_back(made_word(random, 2)), numbers.push_back(made_number(random));
        parts.planted.push_back("\nkey " + keys.back() + ": " + numbers.back() + "\n");
    }
    size_t first = random.below(8), asked = (first + 1 + random.below(7)) % 8;
    parts.question = "\nkey " + keys[first] + ": " + numbers[first] + "\nkey " + keys[asked] + ":";
    parts.answer = " " + numbers[asked];
    return parts;
}

Parts repeated(const std::string& novel, Random& random) {
    std::string paragraph = filler(novel, 400, random);
    size_t cut = paragraph.find(' ', paragraph.size() / 2);
    return {{"\n\n" + paragraph + "\n\n"}, "\n\n" + paragraph.substr(0, cut), paragraph.substr(cut)};
}

std::string assembled(const Parts& parts, const std::string& novel, size_t bytes, Random random) {
    std::string text = "";
    size_t n = parts.planted.size();
    for (const std::string& one : parts.planted)
        text += filler(novel, bytes / (n + 1), random) + one;
    return text + filler(novel, bytes / (n + 1), random) + parts.question;
}

// Of the first quarter of the ids, which were merged first: rare ones are hardly trained.
Needle random_tokens(int length, const Tokenizer& tokenizer, Random& random) {
    auto drawn = [&] {
        for (;;) {
            Token id = Token(random.below(uint64_t(tokenizer.size()) / 4 + 1));
            if (tokenizer.has(id) && !tokenizer.is_special(id)) return id;
        }
    };
    Needle needle;
    if (tokenizer.bos() >= 0) needle.prompt.push_back(tokenizer.bos());
    size_t half = (size_t(length) - needle.prompt.size()) / 3 * 2, begin = needle.prompt.size();
    for (size_t i = 0; i < half; i++) needle.prompt.push_back(drawn());
    size_t again = size_t(length) - needle.prompt.size();
    for (size_t i = 0; i < again; i++) needle.prompt.push_back(needle.prompt[begin + i]);
    for (size_t i = 0; i < ANSWER; i++) needle.answer.push_back(needle.prompt[begin + again + i]);
    return needle;
}

}  // namespace

Needle make_needle(const std::string& kind, int length, const Tokenizer& tokenizer,
                   const std::string& novel, Random& random) {
    if (kind == "random") return random_tokens(length, tokenizer, random);
    Parts parts = kind == "name"    ? named(random)
                  : kind == "pairs" ? paired(random)
                                    : repeated(novel, random);
    // The most bytes whose tokens fit: what is between the needles is drawn from the same numbers.
    Random between(random.next());
    size_t fits = 0, too_many = size_t(length) * 8;
    std::vector<Token> prompt;
    while (too_many - fits > 64) {
        size_t middle = fits + (too_many - fits) / 2;
        std::vector<Token> ids = tokenizer.encode_document(assembled(parts, novel, middle, between));
        if (ids.size() <= size_t(length)) prompt = std::move(ids), fits = middle;
        else too_many = middle;
    }
    check(!prompt.empty(), "%d tokens are too few for a needle of kind %s", length, kind.c_str());
    // Tokens of an answer are those it has behind the question, where it may begin with a space.
    std::vector<Token> answer = tokenizer.encode(parts.answer);
    if (kind == "paragraph" && answer.size() > ANSWER) answer.resize(ANSWER);
    return {std::move(prompt), std::move(answer)};
}

}  // namespace stief
