// The bytes of a terminal in raw mode → keys: UTF-8, control characters, the escape sequences of
// xterm and its descendants, and bracketed paste, between whose marks nothing is a command.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace stief {

enum class Key : uint8_t {
    Text, Enter, Newline, Backspace, Delete, Left, Right, Up, Down, Home, End, WordLeft, WordRight,
    KillWordLeft, KillWordRight, KillToStart, KillToEnd, Yank, Redraw, Interrupt, EndOfInput,
    Suspend
};

struct KeyPress {
    Key key;
    char32_t text = 0;        // of Key::Text
};

struct KeyReader {
    // Adds what this byte completes; bytes that are no text and no known key add nothing.
    void push(unsigned char byte, std::vector<KeyPress>& out);

    // An escape sequence has begun: where nothing follows within a moment it was the Escape key
    // alone, which give_up() drops.
    bool undecided() const { return !escape.empty() && !pasting; }
    void give_up() { escape.clear(); }

  private:
    bool pasting = false, after_return = false;
    std::string escape;       // ESC and what followed it so far
    std::string character;    // the first bytes of a UTF-8 character

    void push_escape(unsigned char byte, std::vector<KeyPress>& out);
    void push_text(unsigned char byte, std::vector<KeyPress>& out);
    void push_control(unsigned char byte, std::vector<KeyPress>& out);
    void end_sequence(char final, std::vector<KeyPress>& out);
};

}  // namespace stief
