// What surrounds a run: descriptors that are closed or do not block, signals, full disks, files
// that change while they are read.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "base/descriptors.h"
#include "program.h"

using namespace stief;
using namespace stief::testing;

namespace {

const char MODEL[] = "models/parlour";

// A line for the shell, which can close what run() opens; $S is the program.
Ran shell(const std::string& line, const Scratch& scratch) {
    std::string command = "S='" + program() + "'; { " + line + "; } > '" + scratch.path("out") +
                          "' 2> '" + scratch.path("err") + "'";
    std::ofstream(scratch.path("out")), std::ofstream(scratch.path("err"));
    int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            read_text(scratch.path("out")), read_text(scratch.path("err"))};
}

std::vector<std::string> list(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        names.push_back(entry.path().filename().string());
    return names;
}

// A program that is at work: started with words, its standard error in a file.
struct Running {
    pid_t child;
    explicit Running(std::vector<std::string> words, const std::string& err,
                     const std::function<void()>& prepare = [] {}) {
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        std::string path = program();
        child = fork();
        if (child != 0) return;
        int file = open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(file, 2), dup2(file, 1);
        prepare();
        execv(path.c_str(), arguments.data());
        _exit(127);
    }
    bool wait_until(const std::function<bool()>& there) const {
        for (int i = 0; i < 1200 && !there(); i++) {
            if (waitpid(child, nullptr, WNOHANG) != 0) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
        return there();
    }
    int wait() const {
        int status = -1;
        waitpid(child, &status, 0);
        return status;
    }
};

// Ids enough for minutes of work.
void put_ids(const std::string& path) {
    std::ofstream file(path);
    for (int i = 0; i < 2000; i++) file << 1 + i << ' ';
}

bool has_temporary(const std::string& folder) {
    for (const std::string& name : list(folder))
        if (name.starts_with(".stief-")) return true;
    return false;
}

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("a closed descriptor is said to be, and no file takes its place") {
    Scratch scratch;
    const std::string model = MODEL;
    for (const char* verb : {"tokenize", "generate", "chat"}) {
        CAPTURE(std::string(verb));
        Ran ran = shell("$S " + std::string(verb) + " " + model + " <&-", scratch);
        CHECK(ran.status == 1);
        CHECK(ran.out == "");
        CHECK(ran.err == "error: standard input is closed\n");
    }
    Ran no_output = shell("$S tokenize " + model + " hello >&-", scratch);
    CHECK(no_output.status == 1);
    CHECK(no_output.err == "error: standard output is closed\n");
    Ran no_errors = shell("$S tokenize " + model + " hello 2>&- <&-", scratch);
    CHECK(no_errors.status == 0);
    CHECK(no_errors.out == run("tokenize " + model + " hello").out);
    CHECK(shell("$S inspect no/such 2>&-", scratch).status == 1);
}

TEST_CASE("a pipe that does not block is waited for, at both ends") {
    int in[2], out[2];
    REQUIRE(pipe(in) == 0);
    REQUIRE(pipe(out) == 0);
    fcntl(in[0], F_SETFL, O_NONBLOCK), fcntl(out[1], F_SETFL, O_NONBLOCK);
    Scratch scratch;
    Running tokenize({"stief", "tokenize", MODEL}, scratch.path("err"), [&] {
        dup2(in[0], 0), dup2(out[1], 1);
        for (int fd : {in[0], in[1], out[0], out[1]}) close(fd);
    });
    close(in[0]), close(out[1]);
    std::string text, got(65536, '\0');
    for (int i = 0; i < 20000; i++) text += "hello there ";
    std::thread writer([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));   // it finds nothing first
        write_all(in[1], text, "the pipe");
        close(in[1]);
    });
    writer.join();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));       // and then no room
    std::string all;
    while (size_t n = read_some(out[0], got.data(), got.size(), "the pipe")) all.append(got, 0, n);
    close(out[0]);
    CHECK(tokenize.wait() == 0);
    CHECK(read_text(scratch.path("err")) == "");
    CHECK(all == run(std::string("tokenize ") + MODEL, text).out);
}

TEST_CASE("a signal leaves no temporary file, and ends the program as that signal does") {
    Scratch scratch, place;
    put_ids(scratch.path("ids"));
    for (int number : {SIGTERM, SIGINT, SIGHUP}) {
        CAPTURE(number);
        Running logits({"stief", "logits", MODEL, "--exact", "--threads", "1", "--ids-file",
                        scratch.path("ids"), "-o", place.path("o")},
                       scratch.path("err"), [&] { signal(number, SIG_DFL); });
        bool began = logits.wait_until([&] { return has_temporary(place.folder.string()); });
        kill(logits.child, number);
        int status = logits.wait();
        REQUIRE(began);
        CHECK(WIFSIGNALED(status));
        CHECK(WTERMSIG(status) == number);
        CHECK(list(place.folder.string()).empty());
    }
}

TEST_CASE("a calibration that is stopped says how it goes on") {
    Scratch scratch;
    std::string text = "the cache keeps what the model looks at. ", bases = scratch.path("b"), all;
    while (all.size() < 8000) all += text + std::to_string(all.size()) + "\n";
    std::ofstream(scratch.path("t")) << all;
    Running stopped({"stief", "calibrate", MODEL, scratch.path("t"), "-o", bases, "--objective",
                     "layer", "--tokens", "512", "--context", "128", "--steps", "400"},
                    scratch.path("err"));
    bool began = stopped.wait_until(
        [&] { return std::filesystem::exists(bases + ".partial/layers.1"); });
    kill(stopped.child, SIGINT);
    int status = stopped.wait();
    REQUIRE(began);
    CHECK(WIFSIGNALED(status));
    CHECK(read_text(scratch.path("err")).find("--resume goes on") != std::string::npos);
    CHECK(!std::filesystem::exists(bases));
}

TEST_CASE("a file that may not grow further is one error line, and nothing is left") {
    Scratch scratch, place;
    Ran ran = shell("ulimit -f 8; $S logits " + std::string(MODEL) + " --ids '1 2 3 4' -o " +
                        place.path("o"),
                    scratch);
    CHECK(ran.status == 1);
    CHECK(ran.err == "error: cannot write " + place.path("o") + ": File too large\n");
    CHECK(list(place.folder.string()).empty());
}

TEST_CASE("a model that is cut short or written to while it is measured is an error") {
    Scratch scratch;
    std::string model = scratch.path("m"), weights = model + "/model.safetensors";
    std::filesystem::copy(MODEL, model, std::filesystem::copy_options::recursive);
    std::filesystem::permissions(weights, std::filesystem::perms::owner_all);
    put_ids(scratch.path("ids"));
    auto begin = [&](const std::string& out) {
        return Running({"stief", "logits", model, "--exact", "--backend", "cpu", "--threads", "1",
                        "--ids-file", scratch.path("ids"), "-o", out},
                       scratch.path("err"));
    };
    Running written = begin(scratch.path("o"));
    bool began = written.wait_until([&] { return has_temporary(scratch.folder.string()); });
    char first = read_text(weights)[4'000'000];
    std::fstream(weights, std::ios::in | std::ios::out | std::ios::binary)
        .seekp(4'000'000)
        .put(first);
    int status = written.wait();
    REQUIRE(began);
    CHECK(WEXITSTATUS(status) == 1);
    std::string said = read_text(scratch.path("err"));
    CHECK(said.find("error: " + weights + " was written to") == 0);
    CHECK(!file_exists(scratch.path("o")));

    Running cut = begin(scratch.path("o"));
    began = cut.wait_until([&] { return has_temporary(scratch.folder.string()); });
    std::filesystem::resize_file(weights, 1'000'000);
    status = cut.wait();
    REQUIRE(began);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 1);
    said = read_text(scratch.path("err"));
    CHECK(said.find("error: " + weights + ": it was cut short") == 0);
    CHECK(std::count(said.begin(), said.end(), '\n') == 1);
    CHECK(!has_temporary(scratch.folder.string()));
}

TEST_SUITE_END();
