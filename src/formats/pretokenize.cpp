// Llama 3. The alternatives of the pattern, in their order; the first that matches takes the piece:
//   1  (?i:'s|'t|'re|'ve|'m|'ll|'d)      2  [^\r\n\p{L}\p{N}]?\p{L}+     3  \p{N}{1,3}
//   4   ?[^\s\p{L}\p{N}]+[\r\n]*         5  \s*[\r\n]+                   6  \s+(?!\S)    7  \s+
#include "formats/pretokenize.h"

#include "formats/unicode.h"

namespace stief {

namespace {

bool is_newline(uint32_t code) {
    return code == '\r' || code == '\n';
}

size_t skip_newlines(std::string_view text, size_t at) {
    while (at < text.size() && is_newline(uint8_t(text[at]))) at++;
    return at;
}

bool is_kind(std::string_view text, size_t at, CharClass kind) {
    return at < text.size() && character_at(text, at).kind == kind;
}

// Bytes of the contraction whose apostrophe is text[at], or 0.
size_t contraction(std::string_view text, size_t at) {
    auto lower = [&](size_t i) { return i < text.size() ? char(text[i] | 0x20) : '\0'; };
    char first = lower(at + 1), second = lower(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    if (text.substr(at + 1, 2) == "\u017f") return 3;   // ſ is an s where case does not matter
    return 0;
}

// Alternatives 5 to 7. Greedy \s* gives back until a newline follows: the piece ends after the last
// newline of the run. Without one, (?!\S) leaves the last space to the word that follows it.
size_t space_end(std::string_view text, size_t start) {
    size_t at = start, last = start, after_newline = start;
    while (at < text.size()) {
        Character c = character_at(text, at);
        if (c.kind != CharClass::Space) break;
        last = at;
        at += c.length;
        if (is_newline(c.code)) after_newline = at;
    }
    if (after_newline > start) return after_newline;
    return at == text.size() || last == start ? at : last;
}

}  // namespace

size_t llama3_piece_end(std::string_view text, size_t start) {
    Character c = character_at(text, start);
    size_t next = start + c.length;

    if (c.code == '\'')
        if (size_t length = contraction(text, start)) return start + length;

    if (c.kind == CharClass::Letter) return skip(text, next, CharClass::Letter);
    if (c.kind == CharClass::Number) return skip(text, next, CharClass::Number, 2);
    if (!is_newline(c.code) && is_kind(text, next, CharClass::Letter))
        return skip(text, next, CharClass::Letter);

    bool marks =
        c.kind == CharClass::Other || (c.code == ' ' && is_kind(text, next, CharClass::Other));
    if (marks) return skip_newlines(text, skip(text, next, CharClass::Other));
    return space_end(text, start);
}

}  // namespace stief
