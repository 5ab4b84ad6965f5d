// The three standard streams: open before anything else is, waited for where they do not block.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace stief {

// Called before any file is opened: a descriptor of 0 to 2 that is closed would be given to the
// first of them, and a program would read its tokenizer for what the user types. What is closed
// becomes /dev/null, the wrong way round: reading 0 and writing 1 fail then, and are an Error.
void open_standard_streams();

// read() and write() that go on after a signal and wait (poll) where the descriptor has nothing to
// give or no room to take. name: for the Error, "standard input".
size_t read_some(int fd, char* into, size_t room, const std::string& name);   // 0: the end
void write_all(int fd, std::string_view bytes, const std::string& name);

// Standard error. Nothing is done where that fails: nobody is left to be told.
void write_stderr(std::string_view text);
bool stderr_line_is_open();      // what was written last did not end its line

// Standard input line by line, without the '\n'.
struct LineReader {
    // False at the end. Error where the line has more than `longest` bytes.
    bool next(std::string& line, size_t longest);

  private:
    std::string held;
    size_t at = 0;
    int number = 0;
    bool ended = false;
};

// Whether escape sequences that move the cursor may be sent to it: a terminal, and TERM names one
// that obeys (neither dumb nor empty). styled: also bold and dim, which NO_COLOR forbids.
bool obeys_escapes(int fd);
bool styled(int fd);

}  // namespace stief
