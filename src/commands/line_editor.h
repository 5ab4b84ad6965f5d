// A line of text that is being typed, without any terminal: keys change it, lay_out() says how it
// fills a screen of so many columns, and LineView turns that into what a terminal is to be sent.
#pragma once
#include <string>
#include <vector>

#include "commands/keys.h"

namespace stief {

struct LineEditor {
    std::u32string text;                       // code points; '\n' between its lines
    size_t cursor = 0;                         // 0 … text.size()
    std::vector<std::u32string> history;       // oldest first

    // Edit: draw again. Hint: the second Ctrl-C on an empty line. Leave: Ctrl-D on an empty line.
    enum class Event { Edit, Submit, Hint, Leave, Redraw, Suspend };
    Event press(KeyPress key);

    std::string take();                        // the text, remembered; the editor is empty again

  private:
    size_t recalled = 0;                       // shown entry of the history; its size: none
    std::u32string draft;                      // what was typed before the history was looked at
    std::u32string killed;                     // what Ctrl-Y brings back
    int interrupts = 0;

    void insert(char32_t c);
    void erase(size_t first, size_t last, bool keep);
    void recall(size_t entry);
    void up();
    void down();
    Event submit();
    Event interrupt();
    void edit(Key key);
    size_t left(size_t from) const;            // over a character and what combines with it
    size_t right(size_t from) const;
    size_t word_left() const;
    size_t word_right() const;
    size_t line_start(size_t from) const;
    size_t line_end(size_t from) const;
};

std::string to_utf8(const std::u32string& text);

struct Prompt {
    std::string text;                          // "You (3%)> ", ASCII
    bool bold = false;
};

// Rows are broken by us and never by the terminal, so that where the cursor is never depends on how
// a terminal treats its last column.
struct Layout {
    struct Row {
        std::string text;
        int width = 0;
    };
    std::vector<Row> rows;
    int cursor_row = 0, cursor_column = 0;
};
Layout lay_out(const LineEditor& editor, const Prompt& prompt, int columns);

// What is on the screen of it, and the strings that change that.
struct LineView {
    int columns = 80, lines = 24;              // of the terminal, now

    // Draws over what was drawn before. A text that is higher than the screen shows the part around
    // the cursor.
    std::string draw(const LineEditor& editor, const Prompt& prompt);
    std::string finish(LineEditor editor, const Prompt& prompt);   // all of it, then a new line
    void forget();                             // the next draw begins where the cursor is

  private:
    std::vector<int> widths;                   // of the rows on the screen
    int cursor_row = 0, cursor_column = 0;     // among them
    int top = 0;                               // the first of them in the layout

    std::string back_to_start() const;
    std::string paint(const Layout& layout, int first, int count);
};

}  // namespace stief
