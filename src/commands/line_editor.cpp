#include "commands/line_editor.h"

#include <algorithm>

#include "base/utf8.h"
#include "commands/char_width.h"

namespace stief {

std::string to_utf8(const std::u32string& text) {
    std::string bytes;
    for (char32_t c : text) append_utf8(bytes, c);
    return bytes;
}

static bool joins(char32_t c) {                // to the character before it
    return char_width(c) == 0;
}
static bool is_space(char32_t c) {
    return c == ' ' || c == '\t' || c == '\n' || c == 0x3000;
}

size_t LineEditor::left(size_t from) const {
    if (from > 0) from--;
    while (from > 0 && joins(text[from])) from--;
    return from;
}
size_t LineEditor::right(size_t from) const {
    if (from < text.size()) from++;
    while (from < text.size() && joins(text[from])) from++;
    return from;
}
size_t LineEditor::word_left() const {
    size_t i = cursor;
    while (i > 0 && is_space(text[i - 1])) i--;
    while (i > 0 && !is_space(text[i - 1])) i--;
    return i;
}
size_t LineEditor::word_right() const {
    size_t i = cursor;
    while (i < text.size() && is_space(text[i])) i++;
    while (i < text.size() && !is_space(text[i])) i++;
    return i;
}
size_t LineEditor::line_start(size_t from) const {
    while (from > 0 && text[from - 1] != '\n') from--;
    return from;
}
size_t LineEditor::line_end(size_t from) const {
    return std::min(text.find(U'\n', from), text.size());
}

void LineEditor::insert(char32_t c) {
    text.insert(cursor, 1, c);
    cursor++;
}

void LineEditor::erase(size_t first, size_t last, bool keep) {
    if (keep && first < last) killed = text.substr(first, last - first);
    text.erase(first, last - first);
    cursor = first;
}

void LineEditor::recall(size_t entry) {
    if (recalled == history.size()) draft = text;
    recalled = entry;
    text = entry == history.size() ? draft : history[entry];
    cursor = text.size();
}

// Within a text of several lines up and down move between them; beyond its first and last line they
// move through the history.
void LineEditor::up() {
    size_t start = line_start(cursor);
    if (start > 0)
        cursor = std::min(line_start(start - 1) + (cursor - start), start - 1);
    else if (recalled > 0)
        recall(recalled - 1);
}
void LineEditor::down() {
    size_t end = line_end(cursor);
    if (end < text.size())
        cursor = std::min(end + 1 + (cursor - line_start(cursor)), line_end(end + 1));
    else if (recalled < history.size())
        recall(recalled + 1);
}

LineEditor::Event LineEditor::submit() {
    if (text.empty() || text.back() != '\\') return Event::Submit;
    text.back() = '\n';                        // a trailing backslash: the text goes on
    cursor = text.size();
    return Event::Edit;
}

LineEditor::Event LineEditor::interrupt() {
    if (text.empty()) return ++interrupts >= 2 ? Event::Hint : Event::Edit;
    text.clear();
    cursor = 0;
    recalled = history.size();
    interrupts = 0;
    return Event::Edit;
}

LineEditor::Event LineEditor::press(KeyPress pressed) {
    if (pressed.key == Key::Interrupt) return interrupt();
    interrupts = 0;
    switch (pressed.key) {
        case Key::Enter: return submit();
        case Key::Redraw: return Event::Redraw;
        case Key::Suspend: return Event::Suspend;
        case Key::EndOfInput:
            if (text.empty()) return Event::Leave;
            erase(cursor, right(cursor), false);
            return Event::Edit;
        case Key::Text: insert(pressed.text); return Event::Edit;
        default: edit(pressed.key); return Event::Edit;
    }
}

void LineEditor::edit(Key key) {
    switch (key) {
        case Key::Newline: return insert('\n');
        case Key::Backspace: return erase(left(cursor), cursor, false);
        case Key::Delete: return erase(cursor, right(cursor), false);
        case Key::KillWordLeft: return erase(word_left(), cursor, true);
        case Key::KillWordRight: return erase(cursor, word_right(), true);
        case Key::KillToStart: return erase(line_start(cursor), cursor, true);
        case Key::KillToEnd: return erase(cursor, line_end(cursor), true);
        case Key::Yank:
            for (char32_t c : killed) insert(c);
            return;
        case Key::Left: cursor = left(cursor); return;
        case Key::Right: cursor = right(cursor); return;
        case Key::WordLeft: cursor = word_left(); return;
        case Key::WordRight: cursor = word_right(); return;
        case Key::Home: cursor = line_start(cursor); return;
        case Key::End: cursor = line_end(cursor); return;
        case Key::Up: return up();
        case Key::Down: return down();
        default: return;
    }
}

std::string LineEditor::take() {
    if (!text.empty() && (history.empty() || history.back() != text)) history.push_back(text);
    recalled = history.size();
    std::string bytes = to_utf8(text);
    text.clear();
    draft.clear();
    cursor = 0;
    interrupts = 0;
    return bytes;
}

}  // namespace stief
