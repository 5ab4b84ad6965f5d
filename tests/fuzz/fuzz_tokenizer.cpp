// The input up to its first zero byte is a tokenizer file (tokenizer.json where it begins with '{',
// else tokenizer.model, a small good one where it is empty); what follows is text. A file is
// refused by an Error or gives a tokenizer from which every text comes back as it was, unless its
// vocabulary lacks a byte or spells an added token otherwise. A tokenizer.json is tried as a chat
// template as well.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "../tokenizer_files.h"
#include "base/check.h"
#include "formats/chat_form.h"

using namespace stief;

static Tokenizer read(std::string_view file) {
    static const std::string good = testing::tiktoken_model(
        {{"a", "b"}, {" ", "a"}, {"ab", "ab"}, {"\n", "\n"}, {"\xc3", "\xa9"}});
    if (file.empty()) file = good;
    return file.starts_with('{') ? Tokenizer::from_json(file, "fuzz")
                                 : Tokenizer::from_tiktoken(file, "fuzz");
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string_view input(reinterpret_cast<const char*>(data), size);
    std::string_view file = input.substr(0, input.find('\0'));
    std::string_view text = input.substr(file.size() < size ? file.size() + 1 : size);
    if (auto form = recognise(file, "<s>"); form && form->name.empty()) std::abort();
    try {
        Tokenizer tokenizer = read(file);
        for (bool parse_special : {false, true}) {
            std::vector<Token> ids = tokenizer.encode(text, parse_special);
            Utf8Stream stream;
            std::string streamed;
            for (Token id : ids) streamed += stream.push(tokenizer.bytes(id));
            streamed += stream.finish();
            if (!file.starts_with('{') && streamed != text) std::abort();
        }
    } catch (const Error&) {
    }
    return 0;
}
