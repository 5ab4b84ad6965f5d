#include "formats/json_node.h"

#include "base/check.h"

namespace stief {

std::string shown(std::string_view text) {
    return text.size() <= 200 ? quote(text) : quote(text.substr(0, 200)) + "…";
}

Node Node::operator[](const char* key) const {
    expect(Json::Object);
    return {json->find(key), name + (name.ends_with(':') ? " " : ".") + key};
}

Node Node::operator[](size_t i) const {
    return {&json->items[i], format("%s[%zu]", name.c_str(), i)};
}

void Node::expect(Json::Kind kind) const {
    if (!json || json->kind != kind)
        fail("%s: expected %s, found %s", name.c_str(), name_of(kind), found());
}

const std::string& Node::text() const {
    expect(Json::String);
    return json->text;
}

bool Node::is(std::string_view wanted) const {
    return json && json->kind == Json::String && json->text == wanted;
}

bool Node::flag(bool otherwise) const {
    return json ? json->flag(name) : otherwise;
}

void Node::expect_text(std::string_view wanted) const {
    if (is(wanted)) return;
    bool is_text = json && json->kind == Json::String;
    fail("%s: expected %s, found %s (only the tokenizers of Llama 3 and SmolLM can be read)",
         name.c_str(), quote(wanted).c_str(), is_text ? shown(json->text).c_str() : found());
}

void Node::expect_flag(bool wanted, bool otherwise) const {
    if (flag(otherwise) != wanted)
        fail("%s: expected %s, found %s (only the tokenizers of Llama 3 and SmolLM can be read)",
             name.c_str(), wanted ? "true" : "false", wanted ? "false" : "true");
}

void Node::expect_none() const {
    if (!json || (json->kind == Json::String && json->text.empty())) return;
    if (json->kind == Json::Number && json->number(name) == 0) return;
    fail("%s: expected null, found %s (only the tokenizers of Llama 3 and SmolLM can be read)",
         name.c_str(), found());
}

}  // namespace stief
