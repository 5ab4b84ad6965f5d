// The line editor without a terminal: keys → text, and what LineView sends → a screen.
#include <algorithm>

#include "base/random.h"
#include "base/utf8.h"
#include "commands/char_width.h"
#include "commands/line_editor.h"
#include "testing.h"

namespace stief::testing {

static LineEditor::Event type(LineEditor& editor, KeyReader& reader, const std::string& bytes) {
    LineEditor::Event event = LineEditor::Event::Edit;
    std::vector<KeyPress> pressed;
    for (char byte : bytes) reader.push(static_cast<unsigned char>(byte), pressed);
    for (KeyPress key : pressed) event = editor.press(key);
    return event;
}

static std::string with_cursor(const LineEditor& editor) {
    std::u32string marked = editor.text;
    return to_utf8(marked.insert(editor.cursor, U"|"));
}

// What a terminal shows of "\r", "\n", "\033[nA", "\033[nC", "\033[J" and text, rows of any number.
struct Screen {
    int columns, row = 0, column = 0;
    std::vector<std::u32string> rows = {U""};

    explicit Screen(int width) : columns(width) {}
    void show(const std::string& sent);
    void resize(int width);              // as terminals that reflow do it
    std::string text() const;

  private:
    size_t sequence(const std::string& sent, size_t i);
};

size_t Screen::sequence(const std::string& sent, size_t i) {
    size_t end = i + 2;
    while (sent[end] < '@') end++;       // colours and the cursor's visibility are passed over
    int n = std::max(1, std::atoi(sent.c_str() + i + 2));
    if (sent[end] == 'A') row -= n;
    if (sent[end] == 'C') column += n;
    if (sent[end] == 'J') rows.resize(size_t(row) + 1), rows.back().resize(size_t(column));
    REQUIRE(row >= 0);
    if (sent[end] != 'A') REQUIRE(column < columns);    // elsewhere terminals disagree
    return end + 1;
}

void Screen::show(const std::string& sent) {
    for (size_t i = 0; i < sent.size();) {
        if (sent[i] == '\033') {
            i = sequence(sent, i);
            continue;
        }
        size_t n = utf8_length(sent, i);
        REQUIRE(n > 0);
        char32_t c = uint8_t(sent[i]) & (n == 1 ? 0x7fu : 0xffu >> (n + 1));
        for (size_t k = 1; k < n; k++) c = c << 6 | (uint8_t(sent[i + k]) & 0x3f);
        i += n;
        if (c == '\r') column = 0;
        else if (c == '\n') row++;
        else if (int width = char_width(c)) {
            rows[size_t(row)].resize(std::max(rows[size_t(row)].size(), size_t(column + width)), 0);
            rows[size_t(row)][size_t(column)] = c;
            column += width;
            REQUIRE(column <= columns);
        }
        if (rows.size() <= size_t(row)) rows.resize(size_t(row) + 1);
    }
}

void Screen::resize(int width) {
    std::vector<std::u32string> broken;
    int new_row = 0;
    for (size_t i = 0; i < rows.size(); i++) {
        if (int(i) == row) new_row = int(broken.size()) + column / width;
        for (size_t from = 0; from == 0 || from < rows[i].size(); from += size_t(width))
            broken.push_back(rows[i].substr(from, size_t(width)));
    }
    rows = broken, row = new_row, column %= width, columns = width;
    rows.resize(std::max(rows.size(), size_t(row) + 1));
}

std::string Screen::text() const {
    std::string all;
    for (const std::u32string& one : rows) {
        for (char32_t c : one)
            if (c) append_utf8(all, c);
        all += '\n';
    }
    return all;
}

TEST_SUITE_BEGIN("commands");

TEST_CASE("keys make the line that a person means") {
    const struct { const char* keys; std::string line; const char* why; } cases[] = {
        {"hello", "hello|", "text"},
        {"hello\x01X", "X|hello", "Ctrl-A"},
        {"hello\033[HX\033[FY", "XhelloY|", "Home, End"},
        {"hello\033[1~X\033[4~Y\033OHZ", "Z|XhelloY", "Home and End of other terminals"},
        {"abc\033[D\033[DX", "aX|bc", "left"},
        {"abc\x02\x02\x06X", "abX|c", "Ctrl-B, Ctrl-F"},
        {"\033[D\033[Cab\033[C", "ab|", "no further than the ends"},
        {"abc\x7f\x08", "a|", "backspace"},
        {"\x7f\033[3~\x0b\x15\x17", "|", "nothing to delete"},
        {"abc\x01\033[3~\x04", "|c", "delete, Ctrl-D"},
        {"one two three\x17", "one two |", "Ctrl-W"},
        {"one two  \x17", "one |", "Ctrl-W with spaces behind"},
        {"one two\033bX\033bY\033fZ", "one YXtwoZ|", "Alt-B, Alt-F"},
        {"one two\033[1;5D\033[1;5DX", "X|one two", "Ctrl-left"},
        {"one two\x02\x02\x0b", "one t|", "Ctrl-K"},
        {"one two\x02\x02\x15", "|wo", "Ctrl-U"},
        {"one two\x17\x01\x19", "two|one ", "Ctrl-Y"},
        {"one\033\rtwo", "one\ntwo|", "Alt-Enter"},
        {"one\\\rtwo", "one\ntwo|", "a trailing backslash"},
        {"one\033\rtwo\x01X\x15Y", "one\nY|two", "the line of several"},
        {"ab\033\rcdef\033[AX\033[BY", "abX\ncdeY|f", "up and down in several lines"},
        {"gr\xc3\xbc\xc3\x9f" "e\x7f\x7f", "gr\xc3\xbc|", "characters of two bytes"},
        {"\xe6\x97\xa5\xe6\x9c\xac\033[D\x7f", "|\xe6\x9c\xac", "characters of three bytes"},
        {"\xf0\x9f\x98\x80x\x02\x02y", "y|\xf0\x9f\x98\x80x", "characters of four bytes"},
        {"e\xcc\x81x\x02\x02X", "X|e\xcc\x81x", "left passes a letter and its accent"},
        {"e\xcc\x81\x7f", "|", "backspace takes both"},
        {"a\xff\xc3x", "a\xef\xbf\xbdx|", "what is no UTF-8"},
        {"a\xc2\x9b" "b", "ab|", "C1 controls"},
        {"a\033[99;99Zb\033[15~c\x1d\t", "abc|", "unknown keys"},
        {"\033[200~a\rb\r\nc\nd\x01\033[De\tf\033[201~g", "a\nb\nc\nde\tfg|", "a paste is text"},
        {"\033[200~a\x03x", "x|", "Ctrl-C ends a paste without an end"},
        {"abc\x03x", "x|", "Ctrl-C"},
        {"a\033[27;3;13~b\033[13;2uc", "a\nb\nc|", "Alt-Enter and Shift-Enter spelt otherwise"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.why);
        LineEditor editor;
        KeyReader reader;
        CHECK(type(editor, reader, c.keys) == LineEditor::Event::Edit);
        CHECK(with_cursor(editor) == c.line);
    }
}

TEST_CASE("Enter submits, Ctrl-D leaves an empty line, a second Ctrl-C hints") {
    using Event = LineEditor::Event;
    LineEditor editor;
    KeyReader reader;
    CHECK(type(editor, reader, "hi\r") == Event::Submit);
    CHECK(editor.take() == "hi");
    CHECK(type(editor, reader, "hi\n") == Event::Submit);
    CHECK(type(editor, reader, "\x04") == Event::Edit);
    CHECK(type(editor, reader, "\x03") == Event::Edit);
    CHECK(type(editor, reader, "\x03") == Event::Edit);
    CHECK(type(editor, reader, "\x03") == Event::Hint);
    CHECK(type(editor, reader, "\x1a") == Event::Suspend);
    CHECK(type(editor, reader, "\x0c") == Event::Redraw);
    CHECK(type(editor, reader, "\x04") == Event::Leave);
}

TEST_CASE("the Escape key alone is forgotten, an escape sequence in pieces is not") {
    LineEditor editor;
    KeyReader reader;
    type(editor, reader, "one two\033");
    CHECK(reader.undecided());
    reader.give_up();
    type(editor, reader, "b\033[");
    CHECK(with_cursor(editor) == "one twob|");
    type(editor, reader, "D");
    CHECK(with_cursor(editor) == "one two|b");
    type(editor, reader, "\033[200~x\033");
    CHECK(!reader.undecided());
}

TEST_CASE("the history keeps what was sent, and what was being typed") {
    LineEditor editor;
    KeyReader reader;
    for (const char* line : {"one", "two", "two", "three"}) {
        type(editor, reader, line);
        editor.take();
    }
    const struct { const char* keys; std::string line; } cases[] = {
        {"dra\033[A", "three|"}, {"\033[A", "two|"}, {"\x10\x10\x10", "one|"}, {"\033[B", "two|"},
        {"\x0e", "three|"}, {"\033[B", "dra|"}, {"\033[B", "dra|"}, {"ft", "draft|"}};
    for (const auto& c : cases) {
        type(editor, reader, c.keys);
        CHECK(with_cursor(editor) == c.line);
    }
}

TEST_CASE("wide characters take two columns, combining ones none") {
    const struct { char32_t c; int width; } cases[] = {
        {'a', 1}, {0xe9, 1}, {0x301, 0}, {0x200d, 0}, {0x2014, 1}, {0x3042, 2}, {0x65e5, 2},
        {0xac00, 2}, {0xff21, 2}, {0xfe0f, 0}, {0x1f600, 2}, {0x20000, 2}, {0x2603, 1},
        {0xdd2, 0}, {0x7a6, 0}, {0x103a, 0}, {0xf71, 0}, {0xb3f, 0}, {0xcbf, 0},   // vowel signs
        {0x903, 1}, {0xad, 1}, {0x600, 1}, {0x1160, 0}, {0x1f1e6, 1}, {0x1f9ff, 2}, {0x10ffff, 1}};
    for (const auto& c : cases) {
        CAPTURE(uint32_t(c.c));
        CHECK(char_width(c.c) == c.width);
    }
}

// The screen shows the text once and the cursor in its place, after every key and every new width.
TEST_CASE("what is drawn is the text, whatever was typed and however wide the terminal is") {
    const char* keys[] = {"word ", "\xe6\x97\xa5\xe6\x9c\xac", "e\xcc\x81", "\033[D", "\033[C",
                          "\x01", "\x05", "\x7f", "\x17", "\033\r", "\033[A",
                          "a longer run of words; ", "\033[200~\t\033[201~"};
    for (uint64_t seed = 1; seed <= 40; seed++) {
        CAPTURE(seed);
        Random random(seed);
        LineEditor editor;
        KeyReader reader;
        LineView view;
        Prompt prompt = {"You (3%)> ", true};
        view.columns = int(12 + random.below(60)), view.lines = 1000;
        Screen screen(view.columns);
        screen.show("before\r\n");
        for (int step = 0; step < 60; step++) {
            if (random.below(5) == 0) screen.resize(view.columns = int(12 + random.below(60)));
            type(editor, reader, keys[random.below(std::size(keys))]);
            screen.show(view.draw(editor, prompt));
            Layout layout = lay_out(editor, prompt, view.columns);
            Screen whole(view.columns);
            whole.show("before");
            for (const Layout::Row& row : layout.rows) whole.show("\r\n" + row.text);
            REQUIRE(screen.text().substr(screen.text().find("You")) ==
                    whole.text().substr(whole.text().find("You")));
            REQUIRE(screen.row == 1 + layout.cursor_row);
            REQUIRE(screen.column == layout.cursor_column);
        }
    }
}

TEST_CASE("a text higher than the screen shows the part around the cursor") {
    LineEditor editor;
    KeyReader reader;
    LineView view;
    view.columns = 20, view.lines = 4;
    Screen screen(20);
    for (int i = 0; i < 10; i++) type(editor, reader, "line " + std::to_string(i) + "\033\r");
    screen.show(view.draw(editor, {"> "}));
    CHECK(screen.text() == "... line 7\n... line 8\n... line 9\n... \n");
    for (int i = 0; i < 5; i++) type(editor, reader, "\033[A");
    screen.show(view.draw(editor, {"> "}));
    CHECK(screen.text() == "... line 5\n... line 6\n... line 7\n... line 8\n");
    type(editor, reader, "\033[A\033[A\033[A\033[A\033[A\033[A");
    screen.show(view.draw(editor, {"> "}));
    CHECK(screen.text() == "> line 0\n... line 1\n... line 2\n... line 3\n");
    screen.show(view.finish(editor, {"> "}));
    CHECK(screen.text().find("... line 9\n... \n\n") != std::string::npos);
}

TEST_SUITE_END();

}  // namespace stief::testing
