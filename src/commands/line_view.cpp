// The part of line_editor.h that draws: a text on a screen of columns × lines.
#include <algorithm>

#include "base/check.h"
#include "base/utf8.h"
#include "commands/char_width.h"
#include "commands/line_editor.h"

namespace stief {

static constexpr char CONTINUED[] = "... ";    // before every line but the first

Layout lay_out(const LineEditor& editor, const Prompt& prompt, int columns) {
    Layout layout;
    layout.rows.emplace_back();
    auto put = [&](char32_t c) {
        int width = char_width(c);
        if (layout.rows.back().width + width > columns && layout.rows.back().width > 0)
            layout.rows.emplace_back();
        append_utf8(layout.rows.back().text, c);
        layout.rows.back().width += width;
    };
    auto mark_cursor = [&] {
        if (layout.rows.back().width >= columns) layout.rows.emplace_back();
        layout.cursor_row = int(layout.rows.size()) - 1;
        layout.cursor_column = layout.rows.back().width;
    };

    if (prompt.bold) layout.rows.back().text += "\033[1m";
    for (char c : prompt.text) put(char32_t(c));
    if (prompt.bold) layout.rows.back().text += "\033[0m";
    for (size_t i = 0; i < editor.text.size(); i++) {
        char32_t c = editor.text[i];
        bool wraps = c != '\n' && layout.rows.back().width + char_width(c) > columns;
        if (wraps) layout.rows.emplace_back();
        if (i == editor.cursor) mark_cursor();
        if (c == '\n') {
            layout.rows.emplace_back();
            for (char dot : CONTINUED)
                if (dot) put(char32_t(dot));
        } else if (c == '\t') {
            for (int space = 0; space < 4; space++) put(' ');
        } else {
            put(c);
        }
    }
    if (editor.cursor == editor.text.size()) mark_cursor();
    return layout;
}

void LineView::forget() {
    widths.clear();
    cursor_row = cursor_column = top = 0;
}

// Where the terminal was made narrower it has broken our rows into several each: so count them by
// the width of now. (A terminal that cuts rows instead, as xterm does, loses a line or two above.)
std::string LineView::back_to_start() const {
    int up = 0;
    for (int i = 0; i < cursor_row; i++)
        up += std::max(1, (widths[size_t(i)] + columns - 1) / columns);
    up = std::min(up + cursor_column / columns, lines - 1);
    return (up > 0 ? format("\033[%dA", up) : "") + "\r\033[J";
}

std::string LineView::paint(const Layout& layout, int first, int count) {
    std::string out = "\033[?25l" + back_to_start();          // no cursor that jumps about
    widths.clear();
    for (int i = first; i < first + count; i++) {
        out += (i > first ? "\r\n" : "") + layout.rows[size_t(i)].text;
        widths.push_back(layout.rows[size_t(i)].width);
    }
    cursor_row = layout.cursor_row - first;
    cursor_column = layout.cursor_column;
    if (count - 1 > cursor_row) out += format("\033[%dA", count - 1 - cursor_row);
    out += "\r";
    if (cursor_column > 0) out += format("\033[%dC", cursor_column);
    return out + "\033[?25h";
}

std::string LineView::draw(const LineEditor& editor, const Prompt& prompt) {
    Layout layout = lay_out(editor, prompt, columns);
    int count = std::min(int(layout.rows.size()), lines);
    top = std::clamp(top, layout.cursor_row - count + 1, layout.cursor_row);
    top = std::clamp(top, 0, int(layout.rows.size()) - count);
    return paint(layout, top, count);
}

std::string LineView::finish(LineEditor editor, const Prompt& prompt) {
    editor.cursor = editor.text.size();
    Layout layout = lay_out(editor, prompt, columns);
    if (layout.rows.back().width == 0) layout.rows.pop_back();   // it was there for the cursor
    std::string out = paint(layout, 0, int(layout.rows.size())) + "\r\n";
    forget();
    return out;
}

}  // namespace stief
