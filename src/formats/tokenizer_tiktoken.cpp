// tiktoken's tokenizer.model: a line a token, its bytes in base64 and its rank, which is its id.
// Merges are not stated but follow: two neighbours merge where their bytes together are a token, in
// the order of that token's rank. Special tokens are not stated either: Meta's code names them,
// the first of them begins every text, and the split is that of Llama 3.
#include <charconv>

#include "base/check.h"
#include "base/utf8.h"
#include "formats/tokenizer_files.h"

namespace stief {

namespace {

// Longer ones would make the search for merges, quadratic in a token's length, take minutes. The
// longest of Llama 3 has 128 bytes.
constexpr size_t MAX_TOKEN = 1024;
constexpr int SPECIAL_TOKENS = 256;

struct Line {
    std::string bytes;
    size_t rank;
};

// Base64 with padding (RFC 4648, section 4). False where it is anything else.
bool decode_base64(std::string& bytes, std::string_view text) {
    static constexpr std::string_view digits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (text.empty() || text.size() % 4 != 0) return false;
    size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
    bytes.clear();
    uint32_t bits = 0;
    for (size_t i = 0; i < text.size(); i++) {
        size_t digit = i < text.size() - padding ? digits.find(text[i]) : 0;
        if (digit == digits.npos) return false;
        bits = bits << 6 | uint32_t(digit);
        if (i % 4 == 3) bytes += {char(bits >> 16), char(bits >> 8), char(bits)};
    }
    bytes.resize(bytes.size() - padding);
    return (bits & (padding == 2 ? 0xffffu : padding == 1 ? 0xffu : 0u)) == 0;  // one spelling only
}

bool parse_line(Line& line, std::string_view text) {
    size_t space = text.find(' ');
    if (space == text.npos || !decode_base64(line.bytes, text.substr(0, space))) return false;
    const char* end = text.data() + text.size();
    auto rank = std::from_chars(text.data() + space + 1, end, line.rank);
    return rank.ec == std::errc() && rank.ptr == end;
}

// Takes the first line of text off, without its end. Empty lines are passed over.
bool next_line(std::string_view& line, std::string_view& text, size_t& number) {
    while (!text.empty()) {
        size_t end = text.find('\n');
        line = text.substr(0, end);
        text.remove_prefix(end == text.npos ? text.size() : end + 1);
        if (line.ends_with('\r')) line.remove_suffix(1);
        number++;
        if (!line.empty()) return true;
    }
    return false;
}

Vocabulary read_lines(std::string_view text, const std::string& where) {
    size_t count = 0, number = 0;
    std::string_view written, rest = text;
    while (next_line(written, rest, number)) count++;
    check(count <= size_t(1) << 24, "%s: %zu tokens, expected at most 2^24", where.c_str(), count);

    Vocabulary vocabulary(count, Token(count) + SPECIAL_TOKENS);
    Line line;
    number = 0;
    while (next_line(written, text, number)) {
        if (!parse_line(line, written))
            fail("%s:%zu: expected a token in base64, a space and its rank (a tokenizer.model of "
                 "sentencepiece, as Llama 2 has it, is another format)", where.c_str(), number);
        check(line.bytes.size() <= MAX_TOKEN, "%s:%zu: a token of %zu bytes, expected at most %zu",
              where.c_str(), number, line.bytes.size(), MAX_TOKEN);
        check(line.rank < count, "%s:%zu: rank %zu, expected one below %zu, the number of tokens "
              "(is the file complete?)", where.c_str(), number, line.rank, count);
        check(vocabulary.add(Token(line.rank), line.bytes),
              "%s:%zu: rank %zu or its bytes have been given to a token before",
              where.c_str(), number, line.rank);
    }
    return vocabulary;
}

// Calls pair(left, right, whole) for each way to cut a token into two tokens.
template <class F>
void for_each_pair(const Vocabulary& vocabulary, const F& pair) {
    for (Token whole = 0; whole < vocabulary.size; whole++) {
        std::string_view bytes = vocabulary.bytes(whole);
        for (size_t cut = 1; cut < bytes.size(); cut++) {
            Token left = vocabulary.find(bytes.substr(0, cut));
            if (left < 0) continue;
            Token right = vocabulary.find(bytes.substr(cut));
            if (right >= 0) pair(left, right, whole);
        }
    }
}

// The names of Llama 3.1 and later, in Meta's order (llama-models, models/llama3/tokenizer.py).
std::vector<AddedToken> special_tokens(Token first) {
    std::vector<std::string> names = {
        "begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
        "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id",
        "python_tag", "image"};
    for (int i = 2; names.size() < SPECIAL_TOKENS; i++)
        names.push_back("reserved_special_token_" + std::to_string(i));

    std::vector<AddedToken> added;
    for (const std::string& name : names)
        added.push_back({"<|" + name + "|>", first++, true, false});
    return added;
}

// Every byte must be a token, or there would be texts without an encoding.
void check_bytes(const Vocabulary& vocabulary, const std::string& where) {
    for (int b = 0; b < 256; b++) {
        char c = char(b);
        if (vocabulary.find({&c, 1}) < 0)
            fail("%s: no token for byte 0x%02x: expected one for each of the 256 (is it complete?)",
                 where.c_str(), b);
    }
}

}  // namespace

TokenizerFile read_tiktoken(std::string_view text, const std::string& where) {
    Vocabulary vocabulary = read_lines(without_bom(text), where);
    check_bytes(vocabulary, where);

    size_t pairs = 0;
    for_each_pair(vocabulary, [&](Token, Token, Token) { pairs++; });
    Token first_special = vocabulary.size;
    Bpe bpe(std::move(vocabulary), pairs);
    bpe.whole_first = true;
    for_each_pair(bpe.vocabulary, [&](Token left, Token right, Token whole) {
        bpe.add(left, right, {uint32_t(whole), whole});
    });

    std::vector<AddedToken> added = special_tokens(first_special);
    for (const AddedToken& token : added) bpe.vocabulary.add_name(token.id, token.content);
    return {std::move(bpe), llama3_piece_end, std::move(added), first_special};
}

}  // namespace stief
