// Small tokenizers, written as the files that real ones come in.
#pragma once
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/utf8.h"
#include "formats/tokenizer.h"

namespace stief::testing {

using Pair = std::pair<std::string, std::string>;         // the bytes of two tokens

// All 256 bytes in their order, then what each merge makes, if it is new.
inline std::vector<std::string> tokens_of(const std::vector<Pair>& merges) {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; b++) tokens.emplace_back(1, char(b));
    std::set<std::string> known(tokens.begin(), tokens.end());
    for (const auto& [left, right] : merges)
        if (known.insert(left + right).second) tokens.push_back(left + right);
    return tokens;
}

// Bytes as GPT-2's encoder.py spells them.
inline std::string spell(std::string_view bytes) {
    std::string out;
    for (char c : bytes) {
        uint32_t b = uint8_t(c), others = 0;
        auto visible = [](uint32_t x) { return (x > 32 && x < 127) || (x > 160 && x != 173); };
        for (uint32_t x = 0; x < b; x++) others += !visible(x);
        append_utf8(out, visible(b) ? b : 256 + others);
    }
    return out;
}

struct JsonOptions {
    bool whole_first = true;
    bool pairs_as_arrays = true;
    std::string added = "[]";
};

inline std::string tokenizer_json(const std::vector<Pair>& merges,
                                  const JsonOptions& options = {}) {
    std::string vocab, list;
    int id = 0;
    for (const std::string& token : tokens_of(merges))
        vocab += (id ? "," : "") + quote(spell(token)) + ":" + std::to_string(id), id++;
    for (const auto& [left, right] : merges) {
        std::string l = spell(left), r = spell(right);
        list += list.empty() ? "" : ",";
        list += options.pairs_as_arrays ? "[" + quote(l) + "," + quote(r) + "]"
                                        : quote(l + " " + r);
    }
    return R"({"normalizer": null, "added_tokens": )" + options.added + R"(,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|)"
           R"([^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|)"
           R"(\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
             "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "byte_fallback": false, "ignore_merges": )" +
           (options.whole_first ? "true" : "false") + R"(, "vocab": {)" + vocab +
           R"(}, "merges": [)" + list + "]}}";
}

inline std::string base64(std::string_view bytes) {
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t bits = 0;
        for (size_t k = 0; k < 3; k++)
            bits = bits << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0u);
        for (size_t k = 0; k < 4; k++)
            out += i + k <= bytes.size() ? digits[bits >> (18 - 6 * k) & 63] : '=';
    }
    return out;
}

inline std::string tiktoken_model(const std::vector<Pair>& merges) {
    std::string out;
    int rank = 0;
    for (const std::string& token : tokens_of(merges))
        out += base64(token) + " " + std::to_string(rank++) + "\n";
    return out;
}

}  // namespace stief::testing
