// stief chat as a person has it, in a pseudo-terminal, and as a script has it, through pipes.
#include <fstream>
#include <memory>

#include "formats/chat.h"
#include "pseudo_terminal.h"

namespace stief::testing {

namespace {

const char MODEL[] = "models/parlour";

bool can_run() {
    if (!std::filesystem::exists(program())) return skip("no stief beside the test program"), false;
    if (std::system(("'" + program() + "' --version > /dev/null 2>&1").c_str()) != 0)
        return skip("stief does not run here by itself"), false;
    return true;
}

// A session that has shown its prompt; null where there are no pseudo-terminals.
std::unique_ptr<TerminalSession> begin(std::vector<std::string> options) {
    std::vector<std::string> words = {"stief", "chat", MODEL};
    words.insert(words.end(), options.begin(), options.end());
    auto session = std::make_unique<TerminalSession>(words);
    if (session->child < 0) return skip("no pseudo-terminal"), nullptr;
    session->expect("You (0%)> \033[0m");
    return session;
}

struct Result {
    int status;
    std::string out, err;
};
Result run(const std::string& options, const std::string& input, const Scratch& scratch) {
    std::string in = scratch.path("in"), out = scratch.path("out"), err = scratch.path("err");
    std::ofstream(in) << input;
    int status = std::system(("'" + program() + "' chat " + options + " < '" + in + "' > '" + out +
                              "' 2> '" + err + "'").c_str());
    auto text = [](const std::string& path) {
        std::ifstream file(path);
        return std::string(std::istreambuf_iterator<char>(file), {});
    };
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text(out), text(err)};
}

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("a person talks, interrupts, pastes, resizes, saves, loads and leaves") {
    if (!can_run()) return;
    auto session = begin({"--temperature", "3", "--seed", "1"});   // so hot that it hardly ends
    if (!session) return;
    Scratch scratch;
    TerminalSession& s = *session;

    s.send("Good evening, sir.\r");
    s.expect("sir.");
    s.expect("\r\n");
    while (s.seen.size() < 40) REQUIRE(s.read_more(LONG * 1000));   // it streams
    s.send("typed ahead");
    s.send("\x03");
    s.expect("(stopped)");
    s.expect("typed ahead");
    s.send("\x03\x03");
    s.send("\x03");
    s.expect("Ctrl-D or /exit leaves");

    std::string paste;
    for (int i = 0; paste.size() < 10000; i++) paste += "This is line " + std::to_string(i) + ".\n";
    paste.resize(10000, 'x');
    Tokenizer tokenizer = Tokenizer::open(MODEL);
    ChatTemplate form(tokenizer, chat_form(MODEL, tokenizer, "", ""));
    size_t tokens = form.message("user", paste).size() + form.answer_header().size();
    s.send("\033[200~" + paste + "\033[201~\r");
    s.expect("takes " + std::to_string(tokens) + " tokens");        // so all of it has arrived
    s.expect("/clear begins anew");

    s.expect("%)> \033[0m");
    s.send("some words that wrap when the terminal is narrow");
    s.expect("narrow");
    winsize size = {24, 30, 0, 0};
    ioctl(s.screen, TIOCSWINSZ, &size);
    s.expect("words that wrap\r");
    s.send("\x03/bogus\r");
    s.expect("no command");
    s.send("/stats\r");
    s.expect("of 2048 positions used");
    s.expect("allocated");

    std::string file = scratch.path("talk");
    s.send("/save " + file + "\r");
    s.expect("saved in");
    s.send("/clear\r");
    s.expect("You (0%)> \033[0m");
    s.send("/load " + file + "\r");
    s.expect("user: Good evening, sir.");
    s.expect("2 messages");
    s.send("/exit\r");
    CHECK(s.wait() == 0);
    CHECK(s.terminal_restored());
}

TEST_CASE("the terminal is given back when the program is ended or suspended") {
    if (!can_run()) return;
    for (int number : {SIGTERM, SIGHUP}) {
        auto session = begin({});
        if (!session) return;
        CHECK(!session->terminal_restored());
        kill(session->child, number);
        int status = session->wait();
        CHECK(WIFSIGNALED(status));
        CHECK(WTERMSIG(status) == number);
        CHECK(session->terminal_restored());
    }
    auto session = begin({});
    session->send("half a");
    session->expect("half a");
    kill(session->child, SIGSTOP);
    int status = 0;
    REQUIRE(waitpid(session->child, &status, WUNTRACED) == session->child);
    tcsetattr(session->screen, TCSANOW, &session->before);          // as a shell does
    kill(session->child, SIGCONT);
    session->expect("half a");                                      // raw again, and drawn again
    CHECK(!session->terminal_restored());
    session->send("\x15\x04");
    CHECK(session->wait() == 0);
    CHECK(session->terminal_restored());
}

TEST_CASE("a terminal that obeys no escapes gets none, NO_COLOR none that are bold or dim") {
    if (!can_run()) return;
    for (const char* term : {"dumb", ""}) {
        CAPTURE(std::string(term));
        TerminalSession s({"stief", "chat", MODEL, "--temperature", "3", "--seed", "1"}, term);
        if (s.child < 0) return skip("no pseudo-terminal");
        std::string all;
        auto expect = [&](const std::string& text) {
            size_t found;
            while ((found = s.seen.find(text)) == s.seen.npos)
                REQUIRE(s.read_more(LONG * 1000));
            all += s.seen.substr(0, found + text.size());
            s.seen.erase(0, found + text.size());
        };
        expect("You (0%)> ");
        s.send("Good evening,\\\nsir.\n");
        expect("... ");
        while (s.seen.size() < 40) REQUIRE(s.read_more(LONG * 1000));   // it streams
        s.send("\x03");
        expect("(stopped)");
        s.send("/bogus\n");
        expect("no command");
        expect("> ");
        s.send("half a line\x03");
        expect("> ");
        s.send("/stats\n");
        expect("of 2048 positions used");
        expect("> ");
        s.send("\x04");
        CHECK(s.wait() == 0);
        CHECK((all + s.seen).find('\033') == std::string::npos);
        CHECK(s.terminal_restored());
    }
    TerminalSession s({"stief", "chat", MODEL}, "xterm", "1");
    if (s.child < 0) return skip("no pseudo-terminal");
    while (s.seen.find("You (0%)> ") == std::string::npos) REQUIRE(s.read_more(LONG * 1000));
    s.send("/bogus\r");
    while (s.seen.find("no command") == std::string::npos) REQUIRE(s.read_more(LONG * 1000));
    for (const char* style : {"\033[1m", "\033[2m", "\033[0m"})
        CHECK(s.seen.find(style) == std::string::npos);
    s.send("\x04");
    CHECK(s.wait() == 0);
}

TEST_CASE("through pipes every line is a message; a saved conversation goes on in the same words") {
    if (!can_run()) return;
    Scratch scratch;
    std::string options = std::string(MODEL) + " --greedy --commands", file = scratch.path("talk");
    const std::string first = "Good morning, my dear.\n", second = "Where is your brother?\n";
    Result both = run(options, first + "\n" + second, scratch);
    CHECK(both.status == 0);
    CHECK(both.err == "");
    CHECK(both.out.find("You (") == std::string::npos);
    Result saved = run(options, first + "/save " + file, scratch);
    CHECK(saved.status == 0);
    Result loaded = run(options, "/load " + file + "\n" + second, scratch);
    CHECK(loaded.status == 0);
    CHECK(saved.out.size() > 1);
    CHECK(loaded.out.size() > 1);
    CHECK(both.out == saved.out + loaded.out);
}

TEST_CASE("what a person would be told ends a script: status 1 and one line") {
    if (!can_run()) return;
    Scratch scratch;
    std::filesystem::copy(MODEL, scratch.path("base"), std::filesystem::copy_options::recursive);
    std::ifstream file(scratch.path("base/tokenizer.json"));
    std::string json(std::istreambuf_iterator<char>(file), {});
    size_t name = json.find("<|eot_id|>");
    REQUIRE(name != std::string::npos);
    std::ofstream(scratch.path("base/tokenizer.json")) << json.replace(name, 10, "<|nothing|>");
    const std::string model = MODEL + std::string(" --commands");
    const struct { std::string options, input, message; } cases[] = {
        {model, "/what\n", "line 1 of standard input: /what is no command"},
        {model, "\n/load\n", "line 2 of standard input: /load needs"},
        {model, "/save x\n", "nothing has been said"},
        {model, "/load models/parlour/model.safetensors\n", "is no saved conversation"},
        {model + " --context 32", "one two three four five six seven eight nine\n", "--context N"},
        {model + " --context 20 --system 'You are a sailor.'", "", "system message"},
        {scratch.path("base"), "", "<|eot_id|>"},
    };
    for (const auto& c : cases) {
        Result result = run(c.options, c.input, scratch);
        CAPTURE(result.err);
        CHECK(result.status == 1);
        CHECK(result.err.starts_with("error: "));
        CHECK(result.err.find('\n') == result.err.size() - 1);
        CHECK(result.err.find(c.message) != std::string::npos);
    }
}

TEST_CASE("a line of a pipe is a message, also one that begins with a slash") {
    if (!can_run()) return;
    Scratch scratch;
    std::string options = std::string(MODEL) + " --greedy --seed 1";
    Result path = run(options, "/etc/hosts is missing, what now?\n/* c */ int x;\n", scratch);
    CHECK(path.status == 0);
    CHECK(path.err == "");
    CHECK(std::count(path.out.begin(), path.out.end(), '\n') >= 2);
    Result doubled = run(options + " --commands", "//etc/hosts is missing, what now?\n", scratch);
    CHECK(path.out.starts_with(doubled.out));
}

TEST_CASE("--message sends one message, of several lines too, and prints its answer alone") {
    if (!can_run()) return;
    Scratch scratch;
    std::string options = std::string(MODEL) + " --greedy";
    Result given = run(options + " --message 'Good morning, my dear.'", "not read", scratch);
    CHECK(given.status == 0);
    CHECK(given.err == "");
    CHECK(given.out == run(options, "Good morning, my dear.\n", scratch).out);
    CHECK(run(options + " --message -", "Good morning, my dear.\n\n", scratch).out == given.out);
    Result lines = run(options + " --message -", "Answer in one word.\nIs it raining?\n", scratch);
    CHECK(lines.status == 0);
    CHECK(lines.out != run(options, "Answer in one word.\n", scratch).out);
    CHECK(run(options + " --message \"Answer in one word.\nIs it raining?\"", "", scratch).out ==
          lines.out);
    for (const char* empty : {" --message ''", " --message -"}) {
        Result nothing = run(options + empty, "", scratch);
        CHECK(nothing.status == 1);
        CHECK(nothing.err == "error: --message: the message is empty\n");
    }
}

TEST_CASE("a seed that was drawn is said and gives the same answer again") {
    if (!can_run()) return;
    Scratch scratch;
    std::string options = std::string(MODEL) + " --temperature 1 --message Hello";
    for (const char* how : {"", " --seed -1"}) {
        Result drawn = run(options + how, "", scratch);
        CHECK(drawn.status == 0);
        REQUIRE(drawn.err.starts_with("seed "));
        size_t line = drawn.err.find('\n');
        std::string seed = drawn.err.substr(5, line - 5);
        Result again = run(options + " --seed " + seed, "", scratch);
        CHECK(again.err == drawn.err.substr(line + 1));  // it may say that the context was full
        CHECK(again.out == drawn.out);
    }
    CHECK(run(options + " --seed 18446744073709551615", "", scratch).status == 0);
}

TEST_CASE("a special token that is drawn by chance is no text of the answer") {
    if (!can_run()) return;
    Scratch scratch;
    for (int seed : {14, 19, 22, 27, 29, 44}) {  // each draws one, so hot
        Result hot = run(format("%s --temperature 30 --seed %d --context 300", MODEL, seed),
                         "Good evening, sir.\n", scratch);
        CAPTURE(seed);
        CHECK(hot.out.size() > 200);
        CHECK(hot.out.find("<|") == std::string::npos);
    }
}

TEST_CASE("an answer that the context cuts off is said to be, and nothing is forgotten") {
    if (!can_run()) return;
    Scratch scratch;
    std::string options = std::string(MODEL) + " --temperature 3 --seed 2 --context 64 --commands";
    Result result = run(options, "Good morning, my dear.\n/stats\n", scratch);
    CHECK(result.status == 0);
    CHECK(result.err.find("because the context is full") != std::string::npos);
    CHECK(result.err.find("64 of 64 positions used (100%), 0 left") != std::string::npos);
}

TEST_SUITE_END();

}  // namespace stief::testing
