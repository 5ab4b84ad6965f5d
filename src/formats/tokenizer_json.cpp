// Hugging Face's tokenizer.json. It can describe many tokenizers: everything that would change the
// ids is compared with what Llama 3's has, and named in an Error where it differs. What only adds
// tokens around an encoding (post_processor, padding) or cuts it (truncation) is not looked at.
#include <set>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "formats/byte_level.h"
#include "formats/pretokenize.h"
#include "formats/tokenizer_files.h"

namespace stief {

namespace {

// Text from the file, for messages, which stay short whatever the file holds.
std::string shown(std::string_view text) {
    return text.size() <= 200 ? quote(text) : quote(text.substr(0, 200)) + "…";
}

// A value and how it is called in messages: "tokenizer.json: model.vocab". json is null where the
// file has no such member; a null in the file is the same as none.
struct Node {
    const Json* json;
    std::string name;

    Node operator[](const char* key) const {
        expect(Json::Object);
        const Json* member = json->find(key);
        if (member && member->kind == Json::Null) member = nullptr;
        return {member, name + (name.ends_with(':') ? " " : ".") + key};
    }
    Node operator[](size_t i) const {
        return {&json->items[i], format("%s[%zu]", name.c_str(), i)};
    }

    const char* found() const { return json ? name_of(json->kind) : "nothing"; }

    void expect(Json::Kind kind) const {
        if (!json || json->kind != kind)
            fail("%s: expected %s, found %s", name.c_str(), name_of(kind), found());
    }
    void expect_text(std::string_view wanted) const {
        bool is_text = json && json->kind == Json::String;
        if (is_text && json->text == wanted) return;
        fail("%s: expected %s, found %s (only Llama 3's tokenizer can be read)", name.c_str(),
             quote(wanted).c_str(), is_text ? shown(json->text).c_str() : found());
    }
    bool flag(bool otherwise) const { return json ? json->flag(name) : otherwise; }
    void expect_flag(bool wanted, bool otherwise) const {
        if (flag(otherwise) != wanted)
            fail("%s: expected %s, found %s (only Llama 3's tokenizer can be read)", name.c_str(),
                 wanted ? "true" : "false", wanted ? "false" : "true");
    }
    // Nothing, null, "" or 0: all of them leave an option out.
    void expect_none() const {
        if (!json || (json->kind == Json::String && json->text.empty())) return;
        if (json->kind == Json::Number && json->number(name) == 0) return;
        fail("%s: expected null, found %s (only Llama 3's tokenizer can be read)", name.c_str(),
             found());
    }
};

// text → split by the pattern → bytes spelt as characters → (the model) → characters back to bytes.
void check_pipeline(const Node& root) {
    root["normalizer"].expect_none();
    Node sequence = root["pre_tokenizer"];
    sequence["type"].expect_text("Sequence");
    Node steps = sequence["pretokenizers"];
    steps.expect(Json::Array);
    check(steps.json->items.size() == 2, "%s: expected Split and ByteLevel, found %zu steps",
          steps.name.c_str(), steps.json->items.size());

    Node split = steps[size_t(0)], bytes = steps[size_t(1)];
    split["type"].expect_text("Split");
    split["pattern"]["Regex"].expect_text(SPLIT_PATTERN);
    split["behavior"].expect_text("Isolated");
    split["invert"].expect_flag(false, false);
    bytes["type"].expect_text("ByteLevel");
    bytes["add_prefix_space"].expect_flag(false, true);
    bytes["use_regex"].expect_flag(false, true);
    root["decoder"]["type"].expect_text("ByteLevel");
}

void check_model(const Node& model) {
    model["type"].expect_text("BPE");
    model["dropout"].expect_none();
    model["continuing_subword_prefix"].expect_none();
    model["end_of_word_suffix"].expect_none();
    model["byte_fallback"].expect_flag(false, false);
}

size_t count_of(const Node& list) {
    return list.json ? list.json->items.size() + list.json->members.size() : 0;
}

Vocabulary read_vocabulary(const Node& vocab, size_t added) {
    vocab.expect(Json::Object);
    size_t count = count_of(vocab) + added;
    // Room for gaps between ids, but not for whatever number the file contains.
    size_t limit = 2 * count + 1024;
    check(limit < size_t(1) << 30, "%s: %zu tokens are too many", vocab.name.c_str(), count);

    Vocabulary vocabulary(count, Token(limit));
    std::string bytes;
    for (const auto& [spelling, value] : vocab.json->members) {
        bytes.clear();
        if (spelling.empty() || !append_bytes(bytes, spelling))
            fail("%s: %s does not spell bytes (is this a byte-level vocabulary?)",
                 vocab.name.c_str(), shown(spelling).c_str());
        Token id = Token(value.integer(vocab.name, 0, int64_t(limit) - 1));
        if (!vocabulary.add(id, bytes))
            fail("%s: %s has id %d, which another token has", vocab.name.c_str(),
                 shown(spelling).c_str(), id);
    }
    return vocabulary;
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

void read_merges(Bpe& bpe, const Node& merges) {
    std::string bytes;
    for (size_t i = 0; i < merges.json->items.size(); i++) {
        auto sides = sides_of(merges, i);
        auto refuse = [&](const char* why) {
            fail("%s: %s and %s %s", merges[i].name.c_str(), shown(sides.first).c_str(),
                 shown(sides.second).c_str(), why);
        };
        bytes.clear();
        bool spelt = append_bytes(bytes, sides.first);
        size_t cut = bytes.size();
        spelt = spelt && append_bytes(bytes, sides.second);
        std::string_view whole = bytes;
        Token left = bpe.vocabulary.find(whole.substr(0, cut));
        Token right = bpe.vocabulary.find(whole.substr(cut));
        Token token = bpe.vocabulary.find(whole);
        if (!spelt || left < 0 || right < 0 || token < 0)
            refuse("are merged, but they or what they become are not in the vocabulary");
        if (!bpe.add(left, right, {uint32_t(i), token})) refuse("have been merged before");
    }
}

AddedToken read_added(const Node& node, Vocabulary& vocabulary) {
    const Json* id = node["id"].json;
    Node content = node["content"];
    content.expect(Json::String);
    check(id, "%s.id: expected a number, found nothing", node.name.c_str());
    check(!content.json->text.empty(), "%s: is empty", content.name.c_str());
    for (const char* option : {"single_word", "lstrip", "rstrip"})
        node[option].expect_flag(false, false);

    AddedToken token;
    token.content = content.json->text;
    token.id = Token(id->integer(node.name + ".id", 0, vocabulary.limit() - 1));
    token.special = node["special"].flag(false);
    token.normalized = node["normalized"].flag(!token.special);
    // The vocabulary may list the token as well, if both agree about it.
    Token known = vocabulary.find(token.content);
    if (known != token.id && (known >= 0 || !vocabulary.add_name(token.id, token.content)))
        fail("%s: %s has id %d, but the vocabulary has another token of that id or content",
             node.name.c_str(), shown(token.content).c_str(), token.id);
    return token;
}

void read_added_tokens(TokenizerFile& file, const Node& list) {
    std::set<std::string> contents;
    for (size_t i = 0; i < count_of(list); i++) {
        file.added.push_back(read_added(list[i], file.bpe.vocabulary));
        const std::string& content = file.added.back().content;
        if (!contents.insert(content).second)
            fail("%s: %s is there twice", list[i].name.c_str(), shown(content).c_str());
    }
}

}  // namespace

TokenizerFile read_tokenizer_json(std::string_view text, const std::string& where) {
    Json json = Json::parse(text, where);
    check(json.kind == Json::Object, "%s: expected an object, found %s", where.c_str(),
          name_of(json.kind));
    Node root{&json, where + ":"};
    Node model = root["model"], vocab = model["vocab"], merges = model["merges"];
    Node added = root["added_tokens"];
    check_model(model);
    check_pipeline(root);
    merges.expect(Json::Array);
    if (added.json) added.expect(Json::Array);

    Vocabulary vocabulary = read_vocabulary(vocab, count_of(added));
    check_bytes(vocabulary, vocab.name);
    TokenizerFile file{Bpe(std::move(vocabulary), count_of(merges)), {}};
    file.bpe.whole_first = model["ignore_merges"].flag(false);
    read_merges(file.bpe, merges);
    read_added_tokens(file, added);
    return file;
}

}  // namespace stief
