// Tokens beside the byte pairs in tokenizer.json: added ones, and what is put in front of a text.
//
// An added token is a name. It shares the id of the vocabulary's entry of that spelling ("é" is the
// entry of byte 0xe9); any other is new, whatever bytes its name may spell: the token of " good"
// and the entry "Ġgood" both exist. tokenizers does not believe the file's ids but counts new ones
// on from the vocabulary's end; a file that states others would have two meanings and is refused.
#include <algorithm>

#include "base/check.h"
#include "formats/tokenizer_parts.h"

namespace stief {

namespace {

AddedToken read_added(const Node& node, Token limit) {
    Node id = node["id"], content = node["content"];
    AddedToken token;
    token.content = content.text();
    id.expect(Json::Number);
    token.id = Token(id.json->integer(id.name, 0, limit - 1));
    token.special = node["special"].flag(false);
    token.normalized = node["normalized"].flag(!token.special);
    token.lstrip = node["lstrip"].flag(false);
    token.rstrip = node["rstrip"].flag(false);
    if (node["single_word"].flag(false))
        fail("%s.single_word: %s is to be found between words only, which is not supported",
             node.name.c_str(), shown(token.content).c_str());
    return token;
}

bool same(const AddedToken& a, const AddedToken& b) {
    return a.id == b.id && a.special == b.special && a.normalized == b.normalized &&
           a.lstrip == b.lstrip && a.rstrip == b.rstrip;
}

// A step of a TemplateProcessing's "single": {"Sequence": …} or {"SpecialToken": …}.
std::vector<Token> ids_of(const Node& step, const Node& special_tokens, Token limit) {
    const std::string& name = step["SpecialToken"]["id"].text();
    Node ids = special_tokens[name.c_str()]["ids"];
    ids.expect(Json::Array);
    std::vector<Token> all;
    for (size_t i = 0; i < ids.count(); i++)
        all.push_back(Token(ids[i].json->integer(ids[i].name, 0, limit - 1)));
    return all;
}

Token first_of_template(const Node& processor, Token limit) {
    Node steps = processor["single"];
    steps.expect(Json::Array);
    std::vector<Token> before, after;
    bool text_seen = false;
    for (size_t i = 0; i < steps.count(); i++) {
        Node step = steps[i];
        if (step["Sequence"].json) {
            text_seen = true;
            continue;
        }
        for (Token id : ids_of(step, processor["special_tokens"], limit))
            (text_seen ? after : before).push_back(id);
    }
    if (before.size() > 1 || !after.empty())
        fail("%s: puts %zu tokens before a text and %zu behind it, expected at most one before it",
             steps.name.c_str(), before.size(), after.size());
    return before.empty() ? -1 : before[0];
}

}  // namespace

std::vector<AddedToken> read_added_tokens(Spellings& spellings, size_t entries, const Node& list) {
    std::vector<AddedToken> added;
    std::map<std::string, size_t, std::less<>> known;     // content → place in added
    Token next = Token(entries);
    for (size_t i = 0; i < list.count(); i++) {
        AddedToken token = read_added(list[i], spellings.vocabulary.limit());
        std::string name = shown(token.content);
        auto refuse = [&](const std::string& why) {
            fail("%s: %s has id %d, but %s", list[i].name.c_str(), name.c_str(), token.id,
                 why.c_str());
        };
        if (token.content.empty()) continue;              // as tokenizers has it
        if (auto twin = known.find(token.content); twin != known.end()) {
            if (!same(added[twin->second], token)) refuse("it is there twice, with other options");
            continue;
        }
        Token entry = spellings.find(token.content);
        if (entry >= 0 && entry != token.id)
            refuse(format("the vocabulary has it as %d", entry));
        if (entry < 0 && spellings.vocabulary.has(token.id)) refuse("another token has that id");
        if (entry < 0 && token.id != next)
            refuse(format("Hugging Face's tokenizers counts new tokens on from the vocabulary's "
                          "end and would give it %d", next));
        if (entry < 0) spellings.vocabulary.add_name(token.id, token.content);
        next = std::max(next, Token(token.id + 1));
        known[token.content] = added.size();
        added.push_back(std::move(token));
    }
    return added;
}

// ByteLevel only moves offsets. Of several templates in a sequence the last adds around the rest.
Token read_beginning(const Node& processor, Token limit) {
    if (!processor.json) return -1;
    Node type = processor["type"], parts = processor["processors"];
    if (type.is("ByteLevel")) return -1;
    if (type.is("TemplateProcessing")) return first_of_template(processor, limit);
    type.expect_text("Sequence");
    Token bos = -1;
    for (size_t i = 0; i < parts.count(); i++) {
        Token one = read_beginning(parts[i], limit);
        if (one >= 0 && bos >= 0)
            fail("%s: two of them put a token before a text, expected one", parts.name.c_str());
        bos = std::max(bos, one);
    }
    return bos;
}

}  // namespace stief
