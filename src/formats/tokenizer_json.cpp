// Hugging Face's tokenizer.json. It can describe many tokenizers: everything that would change the
// ids is compared with what Llama 3's and SmolLM's have, and named in an Error where it differs.
// What cuts or fills an encoding (truncation, padding) is not looked at.
#include <utility>

#include "base/check.h"
#include "formats/byte_level.h"
#include "formats/json_node.h"
#include "formats/tokenizer_parts.h"

namespace stief {

namespace {

// Of Llama 3: everything is a match of the pattern, so that keeping the matches alone is the same.
void check_llama3(const Node& split, const Node& bytes) {
    split["pattern"]["Regex"].expect_text(LLAMA3_PATTERN);
    bool matches_alone = split["behavior"].is("Removed") && split["invert"].flag(false);
    if (!matches_alone) split["behavior"].expect_text("Isolated");
    bytes["use_regex"].expect_flag(false, true);
}

// text → pieces → bytes spelt as characters → (the model) → characters back to bytes.
Splitter read_pipeline(const Node& root) {
    Node normalizer = root["normalizer"];
    if (normalizer.json && normalizer.json->kind == Json::Object &&
        normalizer["type"].is("Sequence") && normalizer["normalizers"].count() == 0)
        normalizer.json = nullptr;                        // a sequence of nothing
    normalizer.expect_none();
    Node sequence = root["pre_tokenizer"];
    sequence["type"].expect_text("Sequence");
    Node steps = sequence["pretokenizers"];
    steps.expect(Json::Array);
    check(steps.count() == 2, "%s: expected Split (Llama 3) or Digits (SmolLM), and ByteLevel, "
          "found %zu steps", steps.name.c_str(), steps.count());

    Node first = steps[size_t(0)], bytes = steps[size_t(1)];
    bytes["type"].expect_text("ByteLevel");
    bytes["add_prefix_space"].expect_flag(false, true);
    root["decoder"]["type"].expect_text("ByteLevel");
    if (first["type"].is("Digits")) {
        first["individual_digits"].expect_flag(true, false);
        bytes["use_regex"].expect_flag(true, true);
        return gpt2_piece_end;
    }
    first["type"].expect_text("Split");
    check_llama3(first, bytes);
    return llama3_piece_end;
}

void check_model(const Node& model) {
    model["type"].expect_text("BPE");
    model["dropout"].expect_none();
    model["continuing_subword_prefix"].expect_none();
    model["end_of_word_suffix"].expect_none();
    model["byte_fallback"].expect_flag(false, false);
    model["merges"].expect(Json::Array);
}

// What does not spell bytes cannot come from a text: such an entry is only named.
Spellings read_vocabulary(const Node& vocab, size_t added) {
    vocab.expect(Json::Object);
    size_t count = vocab.count() + added;
    // Room for gaps between ids, but not for whatever number the file contains.
    size_t limit = 2 * count + 1024;
    check(limit < size_t(1) << 30, "%s: %zu tokens are too many", vocab.name.c_str(), count);

    Spellings result{Vocabulary(count, Token(limit)), {}};
    std::string bytes;
    for (const auto& [spelling, value] : vocab.json->members) {
        bytes.clear();
        Token id = Token(value.integer(vocab.name, 0, int64_t(limit) - 1));
        bool spelt = !spelling.empty() && append_bytes(bytes, spelling);
        bool free = spelt ? result.vocabulary.add(id, bytes)
                          : result.vocabulary.add_name(id, spelling);
        if (!free)
            fail("%s: %s has id %d, which another token has", vocab.name.c_str(),
                 shown(spelling).c_str(), id);
        if (!spelt) result.names[spelling] = id;
    }
    return result;
}

// The token of bytes that the vocabulary lacks: stated by unk_token, or none. Where it lacks none,
// what is stated does not matter.
Token read_unknown(const Node& model, const Spellings& spellings) {
    bool lacks = false;
    for (int b = 0; b < 256; b++) {
        char c = char(b);
        lacks = lacks || spellings.vocabulary.find({&c, 1}) < 0;
    }
    Node unknown = model["unk_token"];
    if (!lacks || !unknown.json) return -1;
    Token id = spellings.find(unknown.text());
    if (id < 0)
        fail("%s: %s is not in the vocabulary, which lacks tokens for some bytes",
             unknown.name.c_str(), shown(unknown.text()).c_str());
    model["fuse_unk"].expect_flag(false, false);
    return id;
}

// One merge, "l r" or ["l", "r"], as the two spellings.
std::pair<std::string_view, std::string_view> sides_of(const Node& merges, size_t i) {
    const Json& merge = merges.json->items[i];
    const std::vector<Json>& pair = merge.items;
    if (pair.size() == 2 && pair[0].kind == Json::String && pair[1].kind == Json::String)
        return {pair[0].text, pair[1].text};
    size_t space = merge.text.find(' ');
    if (merge.kind != Json::String || space == std::string::npos)
        fail("%s: expected \"left right\" or [\"left\", \"right\"]", merges[i].name.c_str());
    std::string_view text = merge.text;
    return {text.substr(0, space), text.substr(space + 1)};
}

// Of a pair that is listed twice, the later rank holds.
void read_merges(Bpe& bpe, const Spellings& spellings, const Node& merges) {
    for (size_t i = 0; i < merges.count(); i++) {
        auto sides = sides_of(merges, i);
        Token left = spellings.find(sides.first), right = spellings.find(sides.second);
        Token token = spellings.find(std::string(sides.first) + std::string(sides.second));
        if (left < 0 || right < 0 || token < 0)
            fail("%s: %s and %s are merged, but they or what they become are not in the vocabulary",
                 merges[i].name.c_str(), shown(sides.first).c_str(), shown(sides.second).c_str());
        bpe.add(left, right, {uint32_t(i), token});
    }
}

}  // namespace

Token Spellings::find(std::string_view spelling) const {
    if (auto name = names.find(spelling); name != names.end()) return name->second;
    std::string bytes;
    return append_bytes(bytes, spelling) ? vocabulary.find(bytes) : -1;
}

TokenizerFile read_tokenizer_json(std::string_view text, const std::string& where) {
    Json json = Json::parse(text, where);
    Node root{&json, where + ":"};
    if (json.kind != Json::Object)
        fail("%s: expected an object, found %s", where.c_str(), name_of(json.kind));
    Node model = root["model"], vocab = model["vocab"], merges = model["merges"];
    Node added = root["added_tokens"];
    check_model(model);
    Splitter piece_end = read_pipeline(root);
    if (added.json) added.expect(Json::Array);

    Spellings spellings = read_vocabulary(vocab, added.count());
    std::vector<AddedToken> tokens = read_added_tokens(spellings, vocab.count(), added);
    Bpe bpe(spellings.vocabulary, merges.count(), read_unknown(model, spellings));
    bpe.whole_first = model["ignore_merges"].flag(false);
    read_merges(bpe, spellings, merges);
    Token bos = read_beginning(root["post_processor"], spellings.vocabulary.limit());
    return {std::move(bpe), piece_end, std::move(tokens), bos};
}

}  // namespace stief
