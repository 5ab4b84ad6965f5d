// A value of tokenizer.json and how it is called in messages: "tokenizer.json: model.vocab". What
// would change the ids is compared with what is supported, and named in an Error where it differs.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"

namespace stief {

// Text from the file, for messages, which stay short whatever the file holds.
std::string shown(std::string_view text);

struct Node {
    const Json* json;                                     // null where the file has no such member
    std::string name;

    Node operator[](const char* key) const;               // Error where this is no object
    Node operator[](size_t i) const;
    size_t count() const { return json ? json->items.size() + json->members.size() : 0; }

    void expect(Json::Kind kind) const;
    const std::string& text() const;                      // Error where this is no string
    bool is(std::string_view wanted) const;               // a string of these characters
    bool flag(bool otherwise) const;
    void expect_text(std::string_view wanted) const;
    void expect_flag(bool wanted, bool otherwise) const;
    void expect_none() const;                             // nothing, "" or 0: no such option

  private:
    const char* found() const { return json ? name_of(json->kind) : "nothing"; }
};

}  // namespace stief
