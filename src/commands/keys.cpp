#include "commands/keys.h"

#include <cstdlib>

#include "base/utf8.h"
#include "commands/char_width.h"

namespace stief {

static constexpr unsigned char ESC = 0x1b, CTRL_C = 3;
static constexpr char32_t REPLACEMENT = 0xfffd;

void KeyReader::push(unsigned char byte, std::vector<KeyPress>& out) {
    bool return_before = after_return;
    after_return = false;
    if (byte == CTRL_C) {                 // also out of a paste whose end was lost
        pasting = false;
        escape.clear(), character.clear();
        out.push_back({Key::Interrupt});
    } else if (byte == ESC) {
        escape = char(ESC);
    } else if (!escape.empty()) {
        push_escape(byte, out);
    } else if (byte >= 0x80) {
        push_text(byte, out);
    } else if (pasting && (byte == '\r' || byte == '\n')) {
        after_return = byte == '\r';
        if (!(byte == '\n' && return_before)) out.push_back({Key::Newline});
    } else if (pasting) {
        if (!is_control(byte) || byte == '\t') out.push_back({Key::Text, byte});
    } else if (is_control(byte)) {
        push_control(byte, out);
    } else {
        out.push_back({Key::Text, byte});
    }
    if (byte < 0x80) character.clear();
}

static char32_t decode(const std::string& bytes) {
    char32_t c = uint8_t(bytes[0]) & (0xffu >> (bytes.size() + 1));
    for (size_t i = 1; i < bytes.size(); i++) c = c << 6 | (uint8_t(bytes[i]) & 0x3f);
    return c;
}

void KeyReader::push_text(unsigned char byte, std::vector<KeyPress>& out) {
    bool follows = (byte & 0xc0) == 0x80;
    if (follows == character.empty()) {   // out of place: what was begun is lost
        character.clear();
        out.push_back({Key::Text, REPLACEMENT});
        if (follows) return;
    }
    character += char(byte);
    uint8_t first = uint8_t(character[0]);
    size_t whole = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (character.size() < whole) return;
    char32_t c = utf8_length(character, 0) == whole ? decode(character) : REPLACEMENT;
    character.clear();
    if (!is_control(c)) out.push_back({Key::Text, c});
}

void KeyReader::push_control(unsigned char byte, std::vector<KeyPress>& out) {
    static constexpr struct {
        unsigned char byte;
        Key key;
    } table[] = {
        {1, Key::Home},          {2, Key::Left},        {4, Key::EndOfInput},
        {5, Key::End},           {6, Key::Right},       {8, Key::Backspace},
        {'\n', Key::Enter},      {11, Key::KillToEnd},  {12, Key::Redraw},
        {'\r', Key::Enter},      {14, Key::Down},       {16, Key::Up},
        {21, Key::KillToStart},  {23, Key::KillWordLeft}, {25, Key::Yank},
        {26, Key::Suspend},      {0x7f, Key::Backspace},
    };
    for (auto [code, key] : table)
        if (byte == code) out.push_back({key});
}

void KeyReader::push_escape(unsigned char byte, std::vector<KeyPress>& out) {
    bool sequence = escape.size() > 1;    // ESC [ … or ESC O …
    if (!sequence && (byte == '[' || byte == 'O')) {
        escape += char(byte);
        return;
    }
    if (sequence && byte >= 0x20 && byte < 0x40) {
        if (escape.size() < 32) escape += char(byte);
        return;
    }
    if (sequence) {
        end_sequence(char(byte), out);
        escape.clear();
        return;
    }
    escape.clear();
    if (pasting) return push(byte, out);
    switch (byte) {                       // Alt with a key
        case '\r': case '\n': out.push_back({Key::Newline}); break;
        case 'b': out.push_back({Key::WordLeft}); break;
        case 'f': out.push_back({Key::WordRight}); break;
        case 'd': out.push_back({Key::KillWordRight}); break;
        case 8: case 0x7f: out.push_back({Key::KillWordLeft}); break;
    }
}

// CSI number ; modifier final. A modifier is one more than the sum of Shift 1, Alt 2, Ctrl 4.
void KeyReader::end_sequence(char final, std::vector<KeyPress>& out) {
    std::string parameters = escape.substr(2);
    size_t semicolon = parameters.find(';');
    int number = std::atoi(parameters.c_str());
    int modifier = semicolon == parameters.npos ? 1 : std::atoi(parameters.c_str() + semicolon + 1);
    if (final == '~' && (number == 200 || number == 201)) {
        pasting = number == 200;
        return;
    }
    if (pasting) return;
    bool by_word = modifier >= 3;         // Alt or Ctrl
    auto press = [&](Key plain, Key word) { out.push_back({by_word ? word : plain}); };
    if (final == 'A') press(Key::Up, Key::Up);
    if (final == 'B') press(Key::Down, Key::Down);
    if (final == 'C') press(Key::Right, Key::WordRight);
    if (final == 'D') press(Key::Left, Key::WordLeft);
    if (final == 'H') press(Key::Home, Key::Home);
    if (final == 'F') press(Key::End, Key::End);
    if (final == 'M') press(Key::Enter, Key::Newline);               // Enter of the number block
    if (final == 'u' && number == 13) out.push_back({modifier > 1 ? Key::Newline : Key::Enter});
    if (final != '~') return;
    if (number == 1 || number == 7) press(Key::Home, Key::Home);
    if (number == 4 || number == 8) press(Key::End, Key::End);
    if (number == 3) press(Key::Delete, Key::KillWordRight);
    if (number == 27 && parameters.ends_with(";13")) out.push_back({Key::Newline});
}

}  // namespace stief
