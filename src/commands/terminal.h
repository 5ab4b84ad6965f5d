// The terminal of a conversation: raw while a line is typed; while an answer streams out, silent to
// what is typed (kept for the next line) but alive to Ctrl-C. However the program ends or is
// suspended, the terminal is given back as it was found. One that obeys no escapes (TERM=dumb)
// stays as it is, and edits its lines itself.
#pragma once
#include <string>

#include "commands/line_editor.h"

namespace stief {

struct Terminal {
    // Standard input is a terminal, and so is standard output or, for the prompt, standard error.
    static bool present();

    Terminal();
    ~Terminal();
    Terminal(const Terminal&) = delete;

    // False: Ctrl-D on an empty line, or the terminal is gone.
    bool read_line(const Prompt& prompt, std::string& line);

    // Around an answer: from here on Ctrl-C makes interrupted() true.
    void begin_answer();
    bool interrupted();                  // also takes in what was typed: no buffer runs full

  private:
    LineEditor editor;
    LineView view;
    KeyReader keys;
    std::string typed;                   // bytes that are read and not yet looked at

    bool read_plain_line(const Prompt& prompt, std::string& line);
    void write(const std::string& text);
    void draw(const Prompt& prompt);
    bool collect(int milliseconds);      // false: the input has ended
    bool process(const Prompt& prompt, LineEditor::Event& event);
};

}  // namespace stief
