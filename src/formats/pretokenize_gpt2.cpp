// SmolLM's split: each digit is a piece, and the text between two digits is cut by GPT-2's pattern
// (openai/gpt-2, encoder.py), whose alternatives are, the first that matches taking the piece:
//   1  's|'t|'re|'ve|'m|'ll|'d     2   ?\p{L}+     3   ?[^\s\p{L}\p{N}]+     4  \s+(?!\S)     5 \s+
// The text between two digits ends before the second: (?!\S) sees the end there.
#include "formats/pretokenize.h"
#include "formats/unicode.h"

namespace stief {

namespace {

// Digits are Hugging Face's Digits, Rust's char::is_numeric of Unicode 17; the classes of the
// pattern are of Unicode 16, which lacks these.
Character character(std::string_view text, size_t at) {
    Character c = character_at(text, at);
    bool newer =
        (c.code >= 0x11de0 && c.code <= 0x11de9) || (c.code >= 0x16ff4 && c.code <= 0x16ff6);
    if (newer) c.kind = CharClass::Number;
    return c;
}

// The end of the run of one class that begins at text[at].
size_t run_end(std::string_view text, size_t at, CharClass kind) {
    while (at < text.size()) {
        Character c = character(text, at);
        if (c.kind != kind) break;
        at += c.length;
    }
    return at;
}

// Bytes of the contraction that text[at …] begins with, or 0.
size_t contraction(std::string_view text, size_t at) {
    for (std::string_view one : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
        if (text.substr(at, one.size()) == one) return one.size();
    return 0;
}

// Alternatives 4 and 5: the last space of a run is left to the word that follows it.
size_t space_end(std::string_view text, size_t start) {
    size_t at = start, last = start;
    while (at < text.size()) {
        Character c = character(text, at);
        if (c.kind == CharClass::Number) return at;
        if (c.kind != CharClass::Space) return last == start ? at : last;
        last = at;
        at += c.length;
    }
    return at;
}

}  // namespace

size_t gpt2_piece_end(std::string_view text, size_t start) {
    if (size_t length = contraction(text, start)) return start + length;
    Character c = character(text, start);
    size_t next = start + c.length;
    if (c.kind == CharClass::Number) return next;
    bool joins = c.code == ' ' && next < text.size();       // the word behind it, if there is one
    CharClass word = joins ? character(text, next).kind : c.kind;
    if (word == CharClass::Letter || word == CharClass::Other) return run_end(text, next, word);
    return space_end(text, start);
}

}  // namespace stief
