// Folders as people bring them, through the program: what ends a conversation, whose headers it
// has, what a text begins with. Each is the model that ships with one of its files changed.
#include <fstream>

#include "base/json.h"
#include "program.h"
#include "testing.h"

namespace stief::testing {

namespace {

bool can_run() {
    if (!std::filesystem::exists(program())) return skip("no stief beside the test program"), false;
    if (run("--version").status != 0) return skip("stief does not run here by itself"), false;
    return true;
}

struct Copy {
    Scratch scratch;
    std::string path = scratch.path("model");

    Copy() { std::filesystem::copy("models/parlour", path); }
    void put(const std::string& name, const std::string& text) const {
        std::ofstream(path + "/" + name, std::ios::binary) << text;
    }
    // The first of it; the file must have it.
    void change(const std::string& name, const std::string& from, const std::string& to) const {
        std::string text = read_text(path + "/" + name);
        size_t at = text.find(from);
        REQUIRE(at != text.npos);
        put(name, text.replace(at, from.size(), to));
    }
};

const std::string HELLO = "Hello\n";

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("a conversation ends at its own end of turn, whatever the config lists") {
    if (!can_run()) return;
    Copy copy;
    std::string options = " --greedy --context 100 --quiet";
    Ran want = run("chat models/parlour" + options, HELLO);
    std::filesystem::remove(copy.path + "/generation_config.json");
    for (const char* eos : {"4081", "null"}) {
        std::filesystem::copy_file("models/parlour/config.json", copy.path + "/config.json",
                                   std::filesystem::copy_options::overwrite_existing);
        std::string config = read_text(copy.path + "/config.json");
        size_t begin = config.find("[", config.find("eos_token_id")), end = config.find("]", begin);
        copy.put("config.json", config.replace(begin, end + 1 - begin, eos));
        Ran got = run("chat '" + copy.path + "'" + options, HELLO);
        CAPTURE(got.err);
        CHECK(got.status == 0);
        CHECK(got.out == want.out);
        CHECK(got.out.find("<|") == got.out.npos);
    }
}

TEST_CASE("a folder without a known template is refused, and talks where one is named") {
    if (!can_run()) return;
    Copy copy;
    const std::string chat = "chat '" + copy.path + "' --greedy --context 100 --quiet";
    Ran want = run("chat models/parlour --greedy --context 100 --quiet", HELLO);
    copy.put("tokenizer_config.json", "{\"bos_token\": \"<|begin_of_text|>\"}");
    Ran none = run(chat, HELLO);
    CHECK(none.status == 1);
    CHECK(none.out.empty());
    CHECK(none.err.find("states no chat template") != none.err.npos);
    CHECK(run(chat + " --template llama3", HELLO).out == want.out);
    Ran missing = run(chat + " --template chatml", HELLO);
    CHECK(missing.status == 1);
    CHECK(missing.err.find("<|im_start|>") != missing.err.npos);
    copy.put("chat_template.jinja", "[INST] {{ messages[0].content }} [/INST]");
    Ran other = run(chat, HELLO);
    CHECK(other.status == 1);
    CHECK(other.err.find("chat_template.jinja states a chat template that is not known") !=
          other.err.npos);
    CHECK(run(chat + " --template vicuna", HELLO).status == 2);
    CHECK(run("chat models/parlour --date '1 Jan 2030'", HELLO).err.find("state no date") !=
          std::string::npos);
}

TEST_CASE("a saved conversation goes on in its own form only") {
    if (!can_run()) return;
    Copy copy;
    std::string talk = copy.scratch.path("talk"),
                chat = "chat '" + copy.path + "' --greedy --quiet --commands";
    REQUIRE(run(chat, HELLO + "/save " + talk + "\n").status == 0);
    Ran other = run(chat + " --template llama3.1 --date '1 Jan 2030'", "/load " + talk + "\n");
    CHECK(other.status == 1);
    CHECK(other.err.find("written in the form llama3,") != other.err.npos);
    CHECK(run(chat + " --template llama3", "/load " + talk + "\n").status == 0);
}

TEST_CASE("ChatML begins with its own system message, and is saved and goes on") {
    if (!can_run()) return;
    Copy copy;
    copy.change("tokenizer.json", "<|reserved_special_token_0|>", "<|im_start|>");
    copy.change("tokenizer.json", "<|reserved_special_token_1|>", "<|im_end|>");
    copy.put("tokenizer_config.json", "{}");
    copy.put("chat_template.jinja",
             "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>"
             "system\nYou are Kit.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + m['role'] + '\n' + "
             "m['content'] + '<|im_end|>' + '\n'}}{% endfor %}{{ '<|im_start|>assistant\n' }}");
    std::string chat = "chat '" + copy.path + "' --greedy --context 160 --commands";
    std::string talk = copy.scratch.path("t");
    // The model has not learnt to end these turns: an answer fills the context.
    Ran both = run(chat, "/system\n/system Be brief.\n/save " + talk + "\nWho are you?\n");
    CHECK(both.status == 0);
    CHECK(both.err.find("You are Kit. (the model's own)") != both.err.npos);
    Ran loaded = run(chat, "/load " + talk + "\nWho are you?\n");
    CHECK(loaded.status == 0);
    CHECK(loaded.out.size() > 1);
    CHECK(both.out == loaded.out);
    // An empty system message is one: the model's own is not there.
    CHECK(run(chat + " --system ''", HELLO).out != run(chat, HELLO).out);
}

TEST_CASE("an empty prompt is a text, an empty name is none") {
    if (!can_run()) return;
    std::string generate = "generate models/parlour --greedy -n 4 --quiet";
    Ran piped = run(generate, "");
    CHECK(piped.status == 0);
    CHECK(run(generate + " -p ''", "not read").out == piped.out);
    CHECK(run(generate + " --prompt=", "not read").out == piped.out);
    Ran name = run(generate + " --file=", "not read");
    CHECK(name.status == 2);
    CHECK(name.err.find("--file needs FILE") != name.err.npos);
    CHECK(run(generate + " -p x --bases ''").status == 2);
}

TEST_CASE("BOS comes from the tokenizer, and a prompt may spell it") {
    if (!can_run()) return;
    Copy copy;
    std::filesystem::remove(copy.path + "/generation_config.json");
    copy.change("config.json", "\"bos_token_id\": 4080,", "");
    std::string text = copy.scratch.path("text");
    std::ofstream(text) << std::string(4000, 'a') + " word.\n";
    for (const char* how :
         {" --context 32 --chunks 2", " --protocol llama.cpp --context 32 --chunks 2"}) {
        auto measured = [&](const std::string& model) {
            std::string words = "perplexity '" + model + "' '" + text + "' --quiet --json" + how;
            std::string json = run(words).out;
            return Json::parse(json, "stdout").find("perplexity")->number("perplexity");
        };
        CHECK(measured(copy.path) == measured("models/parlour"));
    }
    std::string generate = "generate models/parlour --greedy -n 4 --quiet --special -p ";
    CHECK(run(generate + "'<|begin_of_text|>The'").out == run(generate + "The").out);
    Ran spelt = run("generate models/parlour --greedy -n 30 --quiet --special",
                    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n");
    CHECK(spelt.out == run("chat models/parlour --greedy --quiet", HELLO).out);
}

TEST_SUITE_END();

}  // namespace stief::testing
