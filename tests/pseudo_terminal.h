// A program with a pseudo-terminal of its own: what a test types into it and sees of it.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "testing.h"

namespace stief::testing {

constexpr int LONG = 120;                       // seconds; sanitizers and emulators are slow

inline std::string program() {                         // build/…/stief, beside this test program
    return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "stief").string();
}

// The program with a terminal of its own. No answer within LONG seconds is a failure.
struct TerminalSession {
    int screen = -1;
    pid_t child = -1;
    std::string seen;                           // since the last expect()
    termios before = {};

    // term, no_color: the program's TERM and NO_COLOR; "": not set.
    explicit TerminalSession(std::vector<std::string> words, const std::string& term = "xterm",
                             const std::string& no_color = "");
    ~TerminalSession();
    void send(const std::string& keys);
    bool read_more(int milliseconds);           // false: nothing came
    void expect(const std::string& text);       // waits for it; what came before it is forgotten
    int wait();                                 // the status as waitpid gives it
    bool terminal_restored() const;
};

inline TerminalSession::TerminalSession(std::vector<std::string> words, const std::string& term,
                                        const std::string& no_color) {
    screen = posix_openpt(O_RDWR | O_NOCTTY);
    if (screen < 0 || grantpt(screen) != 0 || unlockpt(screen) != 0) return;
    std::string name = ptsname(screen);
    winsize size = {24, 80, 0, 0};
    ioctl(screen, TIOCSWINSZ, &size);
    tcgetattr(screen, &before);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::string path = program();
    child = fork();
    if (child == 0) {
        setsid();
        int terminal = open(name.c_str(), O_RDWR);   // becomes the controlling one
        ioctl(terminal, TIOCSCTTY, 0);
        for (int fd : {0, 1, 2}) dup2(terminal, fd);
        if (terminal > 2) close(terminal);
        close(screen);
        for (auto [variable, value] : {std::pair{"TERM", &term}, std::pair{"NO_COLOR", &no_color}})
            value->empty() ? unsetenv(variable) : setenv(variable, value->c_str(), 1);
        signal(SIGHUP, SIG_DFL);  // tests that run under nohup ignore it, and so would the program
        execv(path.c_str(), arguments.data());
        _exit(127);
    }
}

inline TerminalSession::~TerminalSession() {
    if (child > 0) kill(child, SIGKILL), waitpid(child, nullptr, 0);
    if (screen >= 0) close(screen);
}

inline bool TerminalSession::read_more(int milliseconds) {
    pollfd source = {screen, POLLIN, 0};
    char bytes[4096];
    if (poll(&source, 1, milliseconds) <= 0) return false;
    ssize_t count = read(screen, bytes, sizeof bytes);
    if (count > 0) seen.append(bytes, size_t(count));
    return count > 0;
}

// Reads while it writes: a program that echoes and a test that does not listen would wait on each
// other.
inline void TerminalSession::send(const std::string& keys) {
    for (size_t done = 0; done < keys.size();) {
        pollfd room = {screen, POLLIN | POLLOUT, 0};
        REQUIRE(poll(&room, 1, LONG * 1000) > 0);
        if (room.revents & POLLIN) read_more(0);
        if (!(room.revents & POLLOUT)) continue;
        size_t some = std::min<size_t>(keys.size() - done, 512);
        ssize_t count = write(screen, keys.data() + done, some);
        REQUIRE(count > 0);
        done += size_t(count);
    }
}

inline void TerminalSession::expect(const std::string& text) {
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(LONG);
    size_t found;
    while ((found = seen.find(text)) == std::string::npos) {
        bool more = read_more(1000);
        bool in_time = more || std::chrono::steady_clock::now() < end;
        if (!in_time || (!more && waitpid(child, nullptr, WNOHANG) == child)) {
            CAPTURE(seen);
            FAIL("waited in vain for: " << text);
        }
    }
    seen.erase(0, found + text.size());
}

inline int TerminalSession::wait() {
    int status = -1;
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(LONG);
    while (waitpid(child, &status, WNOHANG) == 0) {
        REQUIRE(std::chrono::steady_clock::now() < end);
        read_more(20);
    }
    child = -1;
    return status;
}

inline bool TerminalSession::terminal_restored() const {
    termios after = {};
    tcgetattr(screen, &after);
    return after.c_lflag == before.c_lflag && after.c_iflag == before.c_iflag;
}

}  // namespace stief::testing
