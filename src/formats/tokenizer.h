// The tokenizers of Llama 3 and of SmolLM: split by the model's rule, then byte-level BPE in rank
// order. Reads Hugging Face's tokenizer.json or a tiktoken tokenizer.model, to the same ids.
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
    // From the folder's tokenizer.json or, where there is none, tokenizer.model; add_bos_token of
    // tokenizer_config.json is heard. Error where there is neither, or the file asks for what this
    // tokenizer does not do (another model, pattern, …).
    static Tokenizer open(const std::string& folder);
    // The same from the bytes of either file; where: its name, for messages.
    static Tokenizer from_json(std::string_view text, const std::string& where);
    static Tokenizer from_tiktoken(std::string_view text, const std::string& where);

    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

    // text → ids. Any bytes; invalid UTF-8 survives a round trip, as long as the vocabulary has all
    // bytes: one that it lacks gives no token. Text never becomes a special token unless
    // parse_special. No BOS is added.
    std::vector<Token> encode(std::string_view text, bool parse_special = false) const;
    // The same as what a model is given to go on with: behind BOS, where there is one. A text that
    // spells it itself has it once.
    std::vector<Token> encode_document(std::string_view text, bool parse_special = false) const;

    // The bytes of one token; a special token gives its name ("<|eot_id|>").
    // An id outside the vocabulary is an Error.
    std::string_view bytes(Token id) const;
    std::string decode(const std::vector<Token>& ids) const;

    Token bos() const;                              // what begins a document, or −1
    Token special(std::string_view name) const;     // id of "<|eot_id|>", or −1
    bool has(Token id) const;
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
