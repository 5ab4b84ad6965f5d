// stief chat: a conversation. In a terminal with a prompt, commands and Ctrl-C; where standard
// input is no terminal, every line is one message (a command only with --commands), and what a
// person would be told ends the program. With --message one message and its answer.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "base/descriptors.h"
#include "base/file.h"
#include "base/progress.h"
#include "base/utf8.h"
#include "commands/char_width.h"
#include "commands/dialogue.h"
#include "commands/outputs.h"
#include "commands/terminal.h"

namespace stief {

static constexpr size_t LONGEST_LINE = size_t(16) << 20;     // bytes of a message that is not typed

struct Chat {
    const Args& args;
    Dialogue& dialogue;
    bool on_screen = isatty(STDOUT_FILENO);
    bool commands = true;                      // lines that begin with / are commands
    bool seed_said = false;
    bool lost_said = false;                    // that there are no audits any more
    bool risk_said = false;                    // that this context loses more than usual
    int before = 0;                            // positions that were used when an answer began
    bool warned = false;                       // that little of the context is left

    bool handle(const std::string& line);      // a message or a command; false: leave
    bool command(const std::string& line);
    void say(const std::string& text);
    void say_seed();
    void after(Dialogue::End end);
    void warn_of_risk(const Watch& watch);
    void show_last() const;
    void show_stats() const;
    int share() const { return 100 * dialogue.session.cache->used / dialogue.session.context; }
};

static void note(const std::string& text) {
    write_stderr(format(styled(STDERR_FILENO) ? "\033[2m%s\033[0m\n" : "%s\n", text.c_str()));
}

// Without what a terminal would obey instead of showing; what is no UTF-8 becomes U+FFFD.
static std::string without_controls(std::string_view text) {
    std::string shown;
    for (size_t i = 0, n; i < text.size(); i += std::max(n, size_t(1))) {
        n = utf8_length(text, i);
        auto byte = static_cast<unsigned char>(text[i]);
        bool c1 = n == 2 && byte == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0;
        if (n == 0) append_utf8(shown, 0xfffd);
        else if (!c1 && (n > 1 || !is_control(byte) || byte == '\n' || byte == '\t'))
            shown += text.substr(i, n);
    }
    return shown;
}

static std::string trimmed(const std::string& text) {
    size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
    return first == text.npos ? "" : text.substr(first, last - first + 1);
}

static const char HELP[] =
    "/help         this list\n"
    "/clear        begins a new conversation; the system message stays\n"
    "/system TEXT  sets the system message, from here on; /system alone shows it\n"
    "/stats        tokens a second, and what the context and the cache hold\n"
    "/save FILE    writes the conversation\n"
    "/load FILE    goes on with it; where answers are drawn they are drawn anew\n"
    "/exit         leaves, as Ctrl-D does\n"
    "//TEXT        sends /TEXT to the model\n"
    "Ctrl-C stops an answer. Alt-Enter, or \\ before Enter, begins another line.";

void Chat::show_stats() const {
    auto rate = [](int tokens, double seconds) {
        bool measured = seconds > 0 && tokens > 0;
        return measured ? format("%.1f tokens/s", tokens / seconds) : std::string("-");
    };
    const KvCache& cache = *dialogue.session.cache;
    const Pace &last = dialogue.last, &all = dialogue.all;
    note(format("last     prompt %d tokens, %s; answer %d tokens, %s", last.prompt_tokens,
                rate(last.prompt_tokens, last.prompt_seconds).c_str(), last.tokens,
                rate(last.tokens, last.seconds).c_str()));
    note(format("all      prompt %d tokens, %s; answer %d tokens, %s", all.prompt_tokens,
                rate(all.prompt_tokens, all.prompt_seconds).c_str(), all.tokens,
                rate(all.tokens, all.seconds).c_str()));
    note(format("context  %d of %d positions used (%d%%), %d left", cache.used,
                dialogue.session.context, share(), dialogue.left()));
    note(format("cache    %s, %s used of %s allocated", name_of(cache.dtype),
                human_bytes(double(cache.snapshot_bytes(cache.used))).c_str(),
                human_bytes(double(cache.bytes())).c_str()));
    if (const Watch* watch = dialogue.session.watch.get())
        note("risk     " + watch_line(watch) +
             format("; whole rows %s allocated", human_bytes(double(watch->whole_bytes())).c_str()));
}

// Where a conversation that was loaded had stopped.
void Chat::show_last() const {
    const std::vector<Message>& messages = dialogue.talk.messages;
    size_t count = messages.size();
    for (size_t i = count - std::min(count, size_t(2)); i < count; i++)
        note(messages[i].role + ": " + without_controls(messages[i].text));
    note(format("%zu messages, %d of %d positions used", count, dialogue.session.cache->used,
                dialogue.session.context));
}

bool Chat::command(const std::string& line) {
    size_t space = std::min(line.find_first_of(" \t\n"), line.size());
    std::string name = line.substr(0, space), rest = trimmed(line.substr(space));
    bool takes_file = name == "/save" || name == "/load", takes_text = name == "/system";
    const char* home = std::getenv("HOME");
    if (takes_file && home && rest.starts_with("~/")) rest = home + rest.substr(1);
    bool known = takes_file || takes_text || name == "/help" || name == "/clear" ||
                 name == "/stats" || name == "/exit";
    if (!known)
        fail("%s is no command; /help lists them, and /%s sends it as a message", name.c_str(),
             name.c_str());
    check(rest.empty() || takes_file || takes_text, "%s takes nothing after it", name.c_str());
    check(!rest.empty() || !takes_file, "%s needs the name of a file: %s talk.stief", name.c_str(),
          name.c_str());

    if (name == "/exit") return false;
    if (name == "/help") note(HELP);
    if (name == "/stats") show_stats();
    if (name == "/clear") {
        dialogue.clear();
        note("a new conversation");
    }
    if (takes_text && rest.empty()) {
        const std::optional<std::string>& own = dialogue.form.form.default_system;
        note(dialogue.system ? without_controls(*dialogue.system)
             : own           ? without_controls(*own) + " (the model's own)"
                             : "no system message");
    }
    if (takes_text && !rest.empty()) {
        dialogue.set_system(rest);
        note("the system message from here on");
    }
    if (name == "/save") {
        check_not_of_model(name, rest, args.model);
        dialogue.save(rest);
        note("saved in " + rest);
    }
    if (name == "/load") {
        dialogue.load(rest);
        show_last();
        if (args.system && dialogue.system != args.system)
            note("(its own system message holds, not --system)");
    }
    warned = dialogue.left() < dialogue.session.context / 10;
    return true;
}

void Chat::after(Dialogue::End end) {
    using End = Dialogue::End;
    if (end == End::Stopped) note("(stopped)");
    if (end == End::Unsent) note("(stopped before the answer: not sent, Up brings it back)");
    const char* ways = "/clear begins anew, /save FILE keeps it";
    if (end == End::Full)
        note(format("(the answer ends here because the context is full: %s)", ways));
    else if (!warned && dialogue.left() < dialogue.session.context / 10)
        note(format("(%d of the context's %d positions are left: %s)", dialogue.left(),
                    dialogue.session.context, ways));
    warned = dialogue.left() < dialogue.session.context / 10;
    if (const Watch* watch = dialogue.session.watch.get()) warn_of_risk(*watch);
}

// One line at most: that this answer has more tokens than usual that the full cache would not have
// written, and where the worst is; or, once, that the whole context loses more.
void Chat::warn_of_risk(const Watch& watch) {
    if (!watch.lost.empty()) {
        if (!lost_said) note("error: " + watch.lost + "; the conversation goes on without --risk");
        lost_said = true;
        return;
    }
    constexpr size_t AROUND = 8;    // tokens
    const AuditLog& log = watch.log;
    bool above = log.verdict() == AuditLog::Verdict::Above;
    const Departure* worst = log.worst_flagged(before);
    if (worst && log.too_many_flagged(before)) {
        size_t at = size_t(worst->position), first = at - std::min(at, AROUND);
        auto words = [&](const std::vector<Token>& ids) {
            std::string text = without_controls(dialogue.tokenizer.decode(ids));
            std::replace(text.begin(), text.end(), '\n', ' ');
            return text;
        };
        std::vector<Token> context(watch.ids.begin() + ptrdiff_t(first),
                                  watch.ids.begin() + ptrdiff_t(at));
        note(format("(%d of this answer's %d tokens may be lost to the compressed cache: after "
                    "\"%s\" the full cache would rather say \"%s\" than \"%s\"; --risk exact loses "
                    "nothing)",
                    log.flagged(before), log.written(before), words(context).c_str(),
                    words({worst->full}).c_str(), words({worst->given}).c_str()));
    } else if (above && !risk_said) {
        note("(this context loses more to the compressed cache than calibration's texts did: "
             "/stats says how much, --risk exact loses nothing)");
    }
    risk_said = above;
}

void Chat::say_seed() {
    std::string seed = drawn_seed(args, dialogue.sampler);
    if (!seed_said && !seed.empty()) status(args, seed);
    seed_said = true;
}

void Chat::say(const std::string& text) {
    Utf8Stream stream;
    auto show = [&](const std::string& part) { print(on_screen ? without_controls(part) : part); };
    dialogue.show = [&](std::string_view bytes) { show(stream.push(bytes)); };
    before = dialogue.session.cache->used;
    Dialogue::End end;
    try {
        end = dialogue.say(text);
    } catch (...) {    // its rows are what may have failed, and that is being said
        const Watch* watch = dialogue.session.watch.get();
        lost_said = watch && !watch->lost.empty();
        throw;
    }
    show(stream.finish());
    say_seed();
    if (end != Dialogue::End::Unsent) print("\n");
    after(end);
}

bool Chat::handle(const std::string& line) {
    std::string text = trimmed(line);
    if (text.empty()) return true;
    bool slash = commands && text[0] == '/';
    if (slash && !text.starts_with("//")) return command(text);
    say(slash ? text.substr(1) : text);
    return true;
}

static void talk(Chat& chat) {
    Terminal terminal;
    chat.dialogue.stop = [&] { return terminal.interrupted(); };
    std::string line;
    for (bool more = true; more;) {
        if (!terminal.read_line({format("You (%d%%)> ", chat.share()), styled(STDERR_FILENO)},
                                line))
            break;
        terminal.begin_answer();
        try {
            more = chat.handle(line);
        } catch (const std::bad_alloc&) {
            note("out of memory; nothing has changed");
        } catch (const Error& error) {
            note(error.what());
        }
        if (more) print("\n");
    }
}

static void answer_lines(Chat& chat) {
    chat.commands = chat.args.commands;
    LineReader reader;
    std::string line;
    for (int number = 1; reader.next(line, LONGEST_LINE); number++) try {
            if (!chat.handle(line)) return;
        } catch (const Error& error) {
            fail("line %d of standard input: %s", number, error.what());
        }
}

// A text as $(command) gives it: without the ends of lines at its end.
static std::string message_of(const Args& args) {
    std::string text = *args.message == "-" ? read_text("-", LONGEST_LINE) : *args.message;
    if (*args.message == "-") text.resize(text.find_last_not_of("\r\n") + 1);
    check(!text.empty(), "--message: the message is empty");
    return text;
}

int chat(const Args& args) {
    if (args.message && args.commands)
        throw UsageError("--commands belongs to lines, not to --message");
    std::string message = args.message ? message_of(args) : "";
    Tokenizer tokenizer = Tokenizer::open(args.model);
    Session session(args);
    Dialogue dialogue(session, tokenizer, args);
    Chat chat{args, dialogue};
    if (args.message) {
        chat.say(message);
        return 0;
    }
    if (!Terminal::present()) {
        answer_lines(chat);
        return 0;
    }
    const Model& model = session.model;
    chat.seed_said = true;
    std::string seed = drawn_seed(args, dialogue.sampler);
    if (!seed.empty()) seed = ", " + seed;
    status(args, format("%s: %.3g million parameters, context %d, %s%s\n"
                        "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves\n",
                        args.model.c_str(), double(model.weights.parameters()) / 1e6,
                        session.context, model.backend->device.c_str(), seed.c_str()));
    talk(chat);
    return 0;
}

}  // namespace stief
