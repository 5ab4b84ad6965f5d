#include "commands/terminal.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/descriptors.h"
#include "base/signals.h"

namespace stief {

// ---- what signal handlers touch -----------------------------------------------------------------

enum class Mode { Restored, Typing, Answering };

static termios found, typing_mode, answering_mode;      // written before any handler is installed
static std::atomic<Mode> mode{Mode::Restored};
static std::atomic<bool> interrupt_seen{false};
static int screen = STDOUT_FILENO;                      // where the prompt is drawn
static bool plain = false;                              // it obeys no escapes: lines as typed
static int wake_up[2] = {-1, -1};                       // a pipe: a signal ends the wait for input
static_assert(std::atomic<Mode>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

static const char PASTE_ON[] = "\033[?2004h", PASTE_OFF[] = "\033[?2004l\033[?25h";

static void send(const char* text) {
    ssize_t ignored = ::write(screen, text, std::strlen(text));
    (void)ignored;
}

static void apply(Mode wanted) {
    const termios& settings = wanted == Mode::Typing      ? typing_mode
                              : wanted == Mode::Answering ? answering_mode
                                                          : found;
    tcsetattr(STDIN_FILENO, TCSANOW, &settings);
    if (!plain) send(wanted == Mode::Restored ? PASTE_OFF : PASTE_ON);
}

static void wake() {
    int saved = errno;
    char byte = 0;
    ssize_t ignored = ::write(wake_up[1], &byte, 1);
    (void)ignored;
    errno = saved;
}

static void on_interrupt(int) {
    interrupt_seen = true;
    wake();
}

static void on_resize(int) {
    wake();
}

static void on_continue(int) {
    int saved = errno;
    if (mode != Mode::Restored) apply(mode);
    wake();
    errno = saved;
}

static void on_stop(int signal_number) {
    int saved = errno;
    if (mode != Mode::Restored) apply(Mode::Restored);
    raise_default(signal_number);
    on_continue(SIGCONT);                               // a group without a shell is not stopped
    errno = saved;
}

static void on_death(int signal_number, siginfo_t* info, void*);

static constexpr struct {
    int number;
    void (*handler)(int);                               // null: on_death
} handlers[] = {
    {SIGINT, on_interrupt}, {SIGWINCH, on_resize}, {SIGCONT, on_continue}, {SIGTSTP, on_stop},
    {SIGTERM, nullptr},     {SIGHUP, nullptr},     {SIGQUIT, nullptr},     {SIGABRT, nullptr},
    {SIGBUS, nullptr},      {SIGPIPE, nullptr},
};
static struct sigaction handlers_before[std::size(handlers)];

// The terminal first; then what is done where there is none. A fault comes again by itself, with
// its address.
static void on_death(int signal_number, siginfo_t* info, void*) {
    bool from_file = signal_number == SIGBUS && info->si_code == BUS_ADRERR;
    if (from_file && replace_lost_mapping(info->si_addr)) return;
    if (mode != Mode::Restored) apply(Mode::Restored);
    for (size_t i = 0; i < std::size(handlers); i++)
        if (handlers[i].number == signal_number)
            sigaction(signal_number, &handlers_before[i], nullptr);
    bool fault = signal_number == SIGBUS && info->si_code > 0;
    if (!fault) raise(signal_number);
}

// ---- the terminal -------------------------------------------------------------------------------

static void change_to(Mode wanted) {
    mode = wanted;
    apply(wanted);
}

bool Terminal::present() {
    return isatty(STDIN_FILENO) && (isatty(STDOUT_FILENO) || isatty(STDERR_FILENO));
}

Terminal::Terminal() {
    screen = isatty(STDOUT_FILENO) ? STDOUT_FILENO : STDERR_FILENO;
    plain = !obeys_escapes(screen);
    if (tcgetattr(STDIN_FILENO, &found) != 0) fail("no terminal: %s", std::strerror(errno));
    if (pipe(wake_up) != 0) fail("no pipe: %s", std::strerror(errno));
    for (int end : wake_up) {
        fcntl(end, F_SETFL, O_NONBLOCK);
        fcntl(end, F_SETFD, FD_CLOEXEC);
    }
    answering_mode = found;
    answering_mode.c_lflag &= ~tcflag_t(ICANON | ECHO | IEXTEN);
    answering_mode.c_lflag |= ISIG | NOFLSH;            // Ctrl-C drops nothing of what was typed
    answering_mode.c_iflag &= ~tcflag_t(ICRNL | INLCR | ISTRIP);
    answering_mode.c_cc[VMIN] = 1, answering_mode.c_cc[VTIME] = 0;
    typing_mode = answering_mode;
    typing_mode.c_lflag &= ~tcflag_t(ISIG);
    typing_mode.c_iflag &= ~tcflag_t(IXON | BRKINT);
    if (plain) answering_mode = typing_mode = found;
    for (size_t i = 0; i < std::size(handlers); i++) {
        struct sigaction action = {};
        action.sa_flags = SA_RESTART;                   // no write of an answer is cut short
        if (handlers[i].handler) action.sa_handler = handlers[i].handler;
        else action.sa_sigaction = on_death, action.sa_flags |= SA_SIGINFO;
        sigfillset(&action.sa_mask);
        sigaction(handlers[i].number, &action, &handlers_before[i]);
    }
    change_to(Mode::Answering);
}

Terminal::~Terminal() {
    change_to(Mode::Restored);
    for (size_t i = 0; i < std::size(handlers); i++)
        sigaction(handlers[i].number, &handlers_before[i], nullptr);
    for (int& end : wake_up) close(end), end = -1;
}

void Terminal::write(const std::string& text) {
    write_all(screen, text, "the terminal");
}

void Terminal::draw(const Prompt& prompt) {
    winsize size = {};
    bool known = ioctl(screen, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    view.columns = known ? size.ws_col : 80;
    view.lines = known ? size.ws_row : 24;
    write(view.draw(editor, prompt));
}

// Waits for input or a signal, at most so long (−1: for ever), and takes what is there.
bool Terminal::collect(int milliseconds) {
    pollfd sources[] = {{STDIN_FILENO, POLLIN, 0}, {wake_up[0], POLLIN, 0}};
    if (poll(sources, 2, milliseconds) <= 0) return true;
    char bytes[4096];
    if (sources[1].revents)
        while (read(wake_up[0], bytes, sizeof bytes) > 0) {}
    if (!sources[0].revents) return true;
    ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
    if (count < 0) return errno == EINTR || errno == EAGAIN;
    typed.append(bytes, size_t(count));
    return count > 0;
}

// Feeds the editor until an event asks for more than drawing (true) or the bytes are used up.
bool Terminal::process(const Prompt& prompt, LineEditor::Event& event) {
    using Event = LineEditor::Event;
    size_t used = 0;
    std::vector<KeyPress> pressed;
    for (event = Event::Edit; used < typed.size() && event == Event::Edit;) {
        pressed.clear();
        keys.push(static_cast<unsigned char>(typed[used++]), pressed);
        for (KeyPress key : pressed) event = editor.press(key);
    }
    typed.erase(0, used);
    if (interrupt_seen.exchange(false)) event = editor.press({Key::Interrupt});
    switch (event) {
        case Event::Edit: return false;
        case Event::Submit:
        case Event::Leave:
            write(view.finish(editor, prompt));
            return true;
        case Event::Hint:
            write(view.finish(editor, prompt) + "Ctrl-D or /exit leaves\r\n");
            return false;
        case Event::Redraw:
            view.forget();
            write("\033[H\033[2J");
            return false;
        case Event::Suspend:
            write(view.finish(editor, prompt));
            kill(getpid(), SIGTSTP);
            return false;
    }
    return false;
}

// Without escapes: the terminal edits the line itself. A '\' at its end goes on with the next.
bool Terminal::read_plain_line(const Prompt& prompt, std::string& line) {
    interrupt_seen = false;
    line.clear();
    write(prompt.text);
    for (int interrupts = 0;;) {
        size_t end = typed.find('\n');
        if (end != typed.npos) {
            line += typed.substr(0, end);
            typed.erase(0, end + 1);
            if (!line.ends_with('\\')) return true;
            line.back() = '\n';
            write("... ");
        } else if (!collect(-1)) {
            write("\n");
            return false;
        }
        if (interrupt_seen.exchange(false)) {
            line.clear();
            write(++interrupts > 1 ? "\nCtrl-D or /exit leaves\n" : "\n");
            write(prompt.text);
        }
    }
}

bool Terminal::read_line(const Prompt& prompt, std::string& line) {
    if (plain) return read_plain_line(prompt, line);
    change_to(Mode::Typing);
    interrupt_seen = false;
    view.forget();
    bool more = true;
    LineEditor::Event event = LineEditor::Event::Edit;
    for (bool done = false; !done;) {
        done = process(prompt, event);
        if (done) break;
        if (!more) return false;
        if (!typed.empty()) continue;              // an event came between
        draw(prompt);
        size_t before = typed.size();
        more = collect(keys.undecided() ? 100 : -1);
        if (typed.size() == before && keys.undecided()) keys.give_up();
    }
    change_to(Mode::Answering);
    line = editor.take();
    return event == LineEditor::Event::Submit;
}

void Terminal::begin_answer() {
    interrupt_seen = false;
}

bool Terminal::interrupted() {
    collect(0);
    return interrupt_seen.load();
}

}  // namespace stief
