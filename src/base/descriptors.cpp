#include "base/descriptors.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

namespace stief {

static std::atomic<bool> line_open{false};

void open_standard_streams() {
    for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
        int got = open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY);
        check(got == fd, "cannot open /dev/null in place of descriptor %d: %s", fd,
              got < 0 ? std::strerror(errno) : "another was free");
    }
}

static void wait_for(int fd, short what) {
    pollfd one = {fd, what, 0};
    poll(&one, 1, -1);
}

size_t read_some(int fd, char* into, size_t room, const std::string& name) {
    for (;;) {
        ssize_t got = read(fd, into, room);
        if (got >= 0) return size_t(got);
        check(errno != EBADF || fd != STDIN_FILENO, "standard input is closed");
        if (errno == EAGAIN || errno == EWOULDBLOCK) wait_for(fd, POLLIN);
        else if (errno != EINTR) fail("cannot read %s: %s", name.c_str(), std::strerror(errno));
    }
}

void write_all(int fd, std::string_view bytes, const std::string& name) {
    while (!bytes.empty()) {
        ssize_t count = write(fd, bytes.data(), bytes.size());
        if (count >= 0) bytes.remove_prefix(size_t(count));
        if (count >= 0 || errno == EINTR) continue;
        check(errno != EBADF || fd != STDOUT_FILENO, "standard output is closed");
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            fail("cannot write to %s: %s", name.c_str(), std::strerror(errno));
        wait_for(fd, POLLOUT);
    }
}

void write_stderr(std::string_view text) {
    if (text.empty()) return;
    line_open = text.back() != '\n' && !text.ends_with("\033[K");
    try {
        write_all(STDERR_FILENO, text, "standard error");
    } catch (const Error&) {
    }
}

bool stderr_line_is_open() {
    return line_open;
}

bool LineReader::next(std::string& line, size_t longest) {
    number++;
    line.clear();
    for (;;) {
        size_t end = std::min(held.find('\n', at), held.size());
        check(line.size() + (end - at) <= longest,
              "line %d of standard input is longer than %zu bytes", number, longest);
        line.append(held, at, end - at);
        bool whole = end < held.size();
        at = end + whole;
        if (whole) return true;
        if (ended) return !line.empty();
        held.resize(65536), at = 0;
        held.resize(read_some(STDIN_FILENO, held.data(), held.size(), "standard input"));
        ended = held.empty();
    }
}

bool obeys_escapes(int fd) {
    const char* term = std::getenv("TERM");
    return isatty(fd) && term && *term && std::string_view(term) != "dumb";
}

bool styled(int fd) {
    const char* no_color = std::getenv("NO_COLOR");
    return obeys_escapes(fd) && !(no_color && *no_color);
}

}  // namespace stief
