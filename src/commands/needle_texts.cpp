#include "commands/needle_texts.h"

#include <algorithm>

#include "base/check.h"

namespace stief {

const std::vector<std::string> NEEDLE_KINDS = {"random", "paragraph", "name", "pairs"};

namespace {

constexpr size_t ANSWER = 4;       // tokens at most of random and paragraph
constexpr size_t QUESTIONS = 4;    // of a text

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

struct Asked {
    std::string question, answer;
};

struct Parts {
    std::vector<std::string> planted;    // in this order, other text between them
    std::vector<Asked> asked;
};

Parts named(Random& random) {
    Parts parts;
    for (size_t i = 0; i < QUESTIONS; i++) {
        std::string name = capital(made_word(random, 2)) + " " + capital(made_word(random, 3));
        std::string word = made_word(random, 3), said = "The secret word of " + name + " is";
        parts.planted.push_back(said + " " + word + ". ");
        parts.asked.push_back({"\n\n" + said, " " + word});
    }
    return parts;
}

// Another pair stands before the key that is asked, so that it is clear what is to follow.
Parts paired(Random& random) {
    Parts parts;
    std::vector<std::string> pairs;
    for (size_t i = 0; i < 2 * QUESTIONS; i++) {
        std::string key = "\nkey " + made_word(random, 2) + ":", number = " " + made_number(random);
        pairs.push_back(key + number);
        parts.planted.push_back(pairs.back() + "\n");
        if (i % 2) parts.asked.push_back({pairs[i - 1] + key, number});
    }
    // In the text no asked pair follows its example.
    for (size_t i = 0; i < QUESTIONS; i += 2)
        std::swap(parts.planted[i], parts.planted[i + QUESTIONS]);
    return parts;
}

Parts repeated(const std::string& novel, Random& random) {
    Parts parts;
    for (size_t i = 0; i < QUESTIONS; i++) {
        std::string paragraph = filler(novel, 300, random);
        size_t cut = paragraph.find(' ', paragraph.size() / 2);
        parts.planted.push_back("\n\n" + paragraph + "\n\n");
        parts.asked.push_back({"\n\n" + paragraph.substr(0, cut), paragraph.substr(cut)});
    }
    return parts;
}

std::string assembled(const Parts& parts, const std::string& novel, size_t bytes, Random random) {
    std::string text = "";
    size_t n = parts.planted.size();
    for (const std::string& one : parts.planted)
        text += filler(novel, bytes / (n + 1), random) + one;
    return text + filler(novel, bytes / (n + 1), random);
}

// Of the first quarter of the ids, which were merged first: rare ones are hardly trained.
NeedleText random_tokens(int length, const Tokenizer& tokenizer, Random& random) {
    constexpr size_t AGAIN = 24;
    auto drawn = [&] {
        for (;;) {
            Token id = Token(random.below(uint64_t(tokenizer.size()) / 4 + 1));
            if (tokenizer.has(id) && !tokenizer.is_special(id)) return id;
        }
    };
    NeedleText text;
    if (tokenizer.bos() >= 0) text.ids.push_back(tokenizer.bos());
    while (text.ids.size() + AGAIN + ANSWER < size_t(length)) text.ids.push_back(drawn());
    for (size_t i = 0; i < QUESTIONS; i++) {
        auto begin = text.ids.begin() + 1 +
                     ptrdiff_t(random.below(text.ids.size() - 1 - AGAIN - ANSWER));
        auto end = begin + ptrdiff_t(AGAIN);
        text.asked.push_back({{begin, end}, {end, end + ptrdiff_t(ANSWER)}});
    }
    return text;
}

}  // namespace

NeedleText make_needles(const std::string& kind, int length, const Tokenizer& tokenizer,
                        const std::string& novel, Random& random) {
    if (kind == "random") return random_tokens(length, tokenizer, random);
    Parts parts = kind == "name"    ? named(random)
                  : kind == "pairs" ? paired(random)
                                    : repeated(novel, random);
    NeedleText text;
    size_t most_asked = 0;
    for (const Asked& one : parts.asked) {
        // Tokens of an answer are those it has behind the question, where it may begin with a space.
        NeedleText::Asked ids{tokenizer.encode(one.question), tokenizer.encode(one.answer)};
        if (kind == "paragraph" && ids.answer.size() > ANSWER) ids.answer.resize(ANSWER);
        most_asked = std::max(most_asked, ids.question.size() + ids.answer.size());
        text.asked.push_back(std::move(ids));
    }
    // The most bytes whose tokens fit: what is between the needles is drawn from the same numbers.
    Random between(random.next());
    size_t fits = 0, too_many = size_t(length) * 8;
    while (too_many - fits > 64) {
        size_t middle = fits + (too_many - fits) / 2;
        std::vector<Token> ids = tokenizer.encode_document(assembled(parts, novel, middle, between));
        if (ids.size() + most_asked <= size_t(length)) text.ids = std::move(ids), fits = middle;
        else too_many = middle;
    }
    check(!text.ids.empty(),
          "%d tokens are too few for needles of kind %s: about %zu do; use longer --lengths or another "
          "--kind", length, kind.c_str(),
          tokenizer.encode_document(assembled(parts, novel, 128, between)).size() + most_asked);
    return text;
}

}  // namespace stief
