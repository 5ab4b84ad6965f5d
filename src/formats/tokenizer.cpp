#include "formats/tokenizer.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "formats/model_folder.h"
#include "formats/pretokenize.h"
#include "base/json.h"
#include "formats/tokenizer_config.h"
#include "formats/tokenizer_files.h"
#include "formats/unicode.h"

namespace stief {

// Added tokens by content, to find the longest that a text begins with.
struct AddedSet {
    std::vector<AddedToken> tokens;                       // in the order of their contents
    std::array<bool, 256> begins{};                       // bytes that begin one

    void add(const AddedToken& token) {
        tokens.push_back(token);
        begins[uint8_t(token.content[0])] = true;
    }

    // What sorts between a text and a prefix of it begins with that prefix. So the longest prefix
    // is the last content not after the text or, where that is none, a prefix of what it shares
    // with the text.
    const AddedToken* longest_at(std::string_view text) const {
        for (;;) {
            auto after = std::upper_bound(
                tokens.begin(), tokens.end(), text,
                [](std::string_view t, const AddedToken& token) { return t < token.content; });
            if (after == tokens.begin()) return nullptr;
            const AddedToken& last = *std::prev(after);
            if (text.starts_with(last.content)) return &last;
            auto difference = std::mismatch(text.begin(), text.end(), last.content.begin(),
                                            last.content.end());
            text = text.substr(0, size_t(difference.first - text.begin()));
        }
    }
};

struct Tokenizer::Tables {
    Bpe bpe;
    Splitter piece_end;
    Token bos;
    std::array<AddedSet, 2> added;                        // looked for one after the other
    std::vector<bool> special;                            // by id
    std::map<std::string, Token, std::less<>> special_id;

    explicit Tables(TokenizerFile&& file);
    void encode(std::vector<Token>& out, std::string_view text, bool parse_special,
                size_t set) const;
    void encode_plain(std::vector<Token>& out, std::string_view text) const;
};

Tokenizer::Tables::Tables(TokenizerFile&& file)
    : bpe(std::move(file.bpe)), piece_end(file.piece_end), bos(file.bos) {
    special.resize(size_t(bpe.vocabulary.size));
    std::sort(file.added.begin(), file.added.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
    for (const AddedToken& token : file.added) {
        added[token.normalized].add(token);
        if (!token.special) continue;
        special[size_t(token.id)] = true;
        special_id[token.content] = token.id;
    }
}

// The white space at the end of text begins here.
static size_t space_before(std::string_view text) {
    size_t at = text.size();
    while (at > 0) {
        size_t last = at - 1;
        while (last > 0 && at - last < 4 && (uint8_t(text[last]) & 0xc0) == 0x80) last--;
        Character c = character_at(text, last);
        if (c.kind != CharClass::Space || last + c.length != at) break;
        at = last;
    }
    return at;
}

// Cuts text at the added tokens of one set; what is between them is searched for those of the next.
// A token that takes in the space before it takes none that an earlier one has, and is nothing
// where no character is left for it; one that begins in space that an earlier one took is found all
// the same, and the text goes on behind it. All as tokenizers has it.
void Tokenizer::Tables::encode(std::vector<Token>& out, std::string_view text, bool parse_special,
                               size_t set) const {
    if (set == added.size()) return encode_plain(out, text);
    size_t begin = 0, at = 0;
    while (at < text.size()) {
        const AddedToken* token = nullptr;
        if (added[set].begins[uint8_t(text[at])]) token = added[set].longest_at(text.substr(at));
        size_t after = at + (token ? token->content.size() : 1);
        if (token && (parse_special || !token->special)) {
            size_t from = token->lstrip ? std::max(begin, space_before(text.substr(0, at))) : at;
            size_t to = token->rstrip ? skip(text, after, CharClass::Space) : after;
            if (from > begin) encode(out, text.substr(begin, from - begin), parse_special, set + 1);
            if (from < to) out.push_back(token->id), begin = to;
        }
        at = after;
    }
    encode(out, text.substr(begin), parse_special, set + 1);
}

void Tokenizer::Tables::encode_plain(std::vector<Token>& out, std::string_view text) const {
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
        end = piece_end(text, begin);
        bpe.encode(out, text.substr(begin, end - begin));
    }
}

Tokenizer::Tokenizer(std::unique_ptr<Tables> t) : tables(std::move(t)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::open(const std::string& folder) {
    std::string json = join(folder, "tokenizer.json"), model = join(folder, "tokenizer.model");
    expect_model_folder(folder);
    for (const std::string& path : {json, model}) expect_real_file(path);
    if (!file_exists(json)) {
        if (!file_exists(model) && !file_exists(join(folder, "config.json"))) no_config(folder);
        check(file_exists(model),
              "%s: no tokenizer.json and no tokenizer.model there; a model folder has one of them",
              folder.c_str());
        return from_tiktoken(MappedFile(model).text(), model);
    }
    Tokenizer tokenizer = from_json(MappedFile(json).text(), json);
    TokenizerConfig config = TokenizerConfig::open(folder);
    if (!config.add_bos) return tokenizer;
    Token bos = *config.add_bos ? tokenizer.special(config.bos_token) : -1;
    if (*config.add_bos && bos < 0 && !config.bos_token.empty())
        fail("%s: add_bos_token, but the tokenizer has no special token %s", folder.c_str(),
             quote(config.bos_token).c_str());
    tokenizer.tables->bos = bos;
    return tokenizer;
}

Tokenizer Tokenizer::from_json(std::string_view text, const std::string& where) {
    return Tokenizer(std::make_unique<Tables>(read_tokenizer_json(text, where)));
}

Tokenizer Tokenizer::from_tiktoken(std::string_view text, const std::string& where) {
    return Tokenizer(std::make_unique<Tables>(read_tiktoken(text, where)));
}

std::vector<Token> Tokenizer::encode(std::string_view text, bool parse_special) const {
    std::vector<Token> ids;
    ids.reserve(text.size() / 4 + 1);
    tables->encode(ids, text, parse_special, 0);
    return ids;
}

std::vector<Token> Tokenizer::encode_document(std::string_view text, bool parse_special) const {
    std::vector<Token> ids = encode(text, parse_special);
    bool begins = tables->bos < 0 || (parse_special && !ids.empty() && ids[0] == tables->bos);
    if (!begins) ids.insert(ids.begin(), tables->bos);
    return ids;
}

std::string_view Tokenizer::bytes(Token id) const {
    check(has(id),
          "token %d: the tokenizer has ids from 0 to %d and no such one", id, size() - 1);
    return tables->bpe.vocabulary.bytes(id);
}

std::string Tokenizer::decode(const std::vector<Token>& ids) const {
    std::string text;
    for (Token id : ids) text += bytes(id);
    return text;
}

Token Tokenizer::bos() const {
    return tables->bos;
}

bool Tokenizer::has(Token id) const {
    return tables->bpe.vocabulary.has(id);
}

Token Tokenizer::special(std::string_view name) const {
    auto found = tables->special_id.find(name);
    return found == tables->special_id.end() ? -1 : found->second;
}

bool Tokenizer::is_special(Token id) const {
    return id >= 0 && id < size() && tables->special[size_t(id)];
}

int Tokenizer::size() const {
    return tables->bpe.vocabulary.size;
}

std::string Utf8Stream::push(std::string_view bytes) {
    held += bytes;
    size_t kept = unfinished_tail(held);
    std::string ready = held.substr(0, held.size() - kept);
    held.erase(0, ready.size());
    return ready;
}

std::string Utf8Stream::finish() {
    return std::exchange(held, {});
}

}  // namespace stief
