// Llama 3's tokenizer: split by the model's pattern, then byte-level BPE in rank order.
// Reads Hugging Face's tokenizer.json or a tiktoken tokenizer.model; both give the same ids.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace stief {

using Token = int32_t;

struct Tokenizer {
    // From the folder's tokenizer.json or, where there is none, tokenizer.model. Error where there
    // is neither, or the file asks for what this tokenizer does not do (another model, pattern, …).
    static Tokenizer open(const std::string& folder);
    // The same from the bytes of either file; where: its name, for messages.
    static Tokenizer from_json(std::string_view text, const std::string& where);
    static Tokenizer from_tiktoken(std::string_view text, const std::string& where);

    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

    // text → ids. Any bytes; invalid UTF-8 survives a round trip. Text never becomes a special
    // token unless parse_special. No BOS is added.
    std::vector<Token> encode(std::string_view text, bool parse_special = false) const;

    // The bytes of one token; a special token gives its name ("<|eot_id|>").
    // An id outside the vocabulary is an Error.
    std::string_view bytes(Token id) const;
    std::string decode(const std::vector<Token>& ids) const;

    Token special(std::string_view name) const;     // id of "<|eot_id|>", or −1
    bool is_special(Token id) const;
    int size() const;                               // one more than the largest id

  private:
    struct Tables;
    std::unique_ptr<Tables> tables;
    explicit Tokenizer(std::unique_ptr<Tables>);
};

// Holds back the bytes of a character that is not complete yet, so that a stream never prints half
// of one. Bytes that can never become a character come out at once, as they are.
struct Utf8Stream {
    std::string push(std::string_view bytes);       // what can be printed now
    std::string finish();                           // what was held back
  private:
    std::string held;
};

}  // namespace stief
