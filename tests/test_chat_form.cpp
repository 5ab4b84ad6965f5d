// Conversations in the form that a folder states. Truth: the template written out as text by hand,
// tokenised with its special tokens; for real folders the ids that transformers 5.24 gives.
#include <algorithm>
#include <ctime>
#include <fstream>
#include <sstream>

#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "formats/chat.h"
#include "formats/tokenizer_config.h"
#include "testing.h"
#include "tokenizer_files.h"

TEST_SUITE_BEGIN("formats");
using namespace stief;
using namespace stief::testing;

namespace {

const std::string PARLOUR = "models/parlour";

const std::string LLAMA3 =
    R"({% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n')"
    R"(+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + )"
    R"(content %}{% endif %}{{ content }}{% endfor %})"
    R"({{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }})";

std::string llama31(const std::string& date_of) {
    return "{{- bos_token }}{#- A comment's \"words\" #}" + date_of +
           R"({%- set system_message = "" %}{{- "<|start_header_id|>system<|end_header_id|>\n\n" }})"
           R"({{- "Cutting Knowledge Date: May 2031\n" }}{{- "Today Date: " + date_string + "\n\n" }})"
           R"({{- system_message }}{{- "<|eot_id|>" }}{%- for m in messages %})"
           R"({{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'+ m['content'] | trim )"
           R"(+ '<|eot_id|>' }}{%- endfor %})"
           R"({{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }})";
}

std::string chatml(const std::string& before, const std::string& content = "m['content']") {
    return before + "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + " + content +
           " + '<|im_end|>' + '\n'}}{% endfor %}{{ '<|im_start|>assistant\n' }}";
}

const std::string OWN =
    "{% if loop.first %}{{ '<|im_start|>system\nYou are Kit.<|im_end|>\n' }}{% endif %}";

// A folder whose tokenizer has the names of both families, and its template.
struct Folder {
    Scratch scratch;
    std::string path = scratch.folder.string();

    explicit Folder(const std::string& jinja) {
        std::string added;
        int id = 260;                                     // behind 256 bytes and 4 merges
        for (const char* name : {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                 "<|eot_id|>", "<|im_start|>", "<|im_end|>"})
            added += format("%s{\"id\": %d, \"content\": \"%s\", \"special\": true}",
                            added.empty() ? "" : ", ", id++, name);
        JsonOptions options;
        options.added = "[" + added + "]";
        put("tokenizer.json", tokenizer_json({{"s", "y"}, {"\n", "\n"}, {" ", "a"}, {".", "\n"}},
                                             options));
        put("tokenizer_config.json", "{\"bos_token\": \"<|begin_of_text|>\", \"chat_template\": " +
                                         quote(jinja) + "}");
    }
    void put(const std::string& name, const std::string& text) const {
        std::ofstream(scratch.path(name), std::ios::binary) << text;
    }
    ChatForm form(const std::string& name = "", const std::string& date = "") const {
        return chat_form(path, Tokenizer::open(path), name, date);
    }
};

using Messages = std::vector<std::pair<std::string, std::string>>;

std::vector<Token> ids_of(const ChatTemplate& chat, const Messages& messages) {
    std::vector<Token> ids;
    auto add = [&](const std::vector<Token>& more) {
        ids.insert(ids.end(), more.begin(), more.end());
    };
    bool own = !messages.empty() && messages[0].first == "system";
    add(own ? chat.opening(messages[0].second) : chat.opening());
    for (size_t i = own; i < messages.size(); i++)
        add(chat.message(messages[i].first, messages[i].second));
    add(chat.answer_header());
    return ids;
}

std::string stripped(const std::string& text) {
    size_t first = text.find_first_not_of(" \n"), last = text.find_last_not_of(" \n");
    return first == text.npos ? "" : text.substr(first, last - first + 1);
}

// The text that each family's template gives.
std::string written(const ChatForm& form, const Messages& messages) {
    std::string text = form.bos;
    auto turn = [&](const std::string& role, const std::string& content) {
        text += form.name == "chatml" ? "<|im_start|>" + role + "\n" + content + "<|im_end|>\n"
                                      : "<|start_header_id|>" + role + "<|end_header_id|>\n\n" +
                                            content + "<|eot_id|>";
    };
    bool own = !messages.empty() && messages[0].first == "system", dated = form.name == "llama3.1";
    std::string dates = "Cutting Knowledge Date: May 2031\nToday Date: 4 Jul 2032\n\n";
    if (dated) turn("system", dates + (own ? stripped(messages[0].second) : ""));
    if (!own && form.default_system) turn("system", "You are Kit.");
    for (size_t i = own && dated; i < messages.size(); i++)
        turn(messages[i].first, form.strips ? stripped(messages[i].second) : messages[i].second);
    return text + (form.name == "chatml" ? "<|im_start|>assistant\n"
                                         : "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

}  // namespace

TEST_CASE("a template is recognised by what it writes") {
    const std::string fixed = "{%- set date_string = \"26 Jul 2024\" %}";
    const struct {
        std::string jinja, name, bos, date;
        bool strips;
        const char* system;
    } cases[] = {
        {LLAMA3, "llama3", "<s>", "", true, nullptr},
        {llama31(fixed), "llama3.1", "<s>", "26 Jul 2024", true, nullptr},
        {chatml(""), "chatml", "", "", false, nullptr},
        {chatml("{{ bos_token }}", "m['content'] | trim"), "chatml", "<s>", "", true, nullptr},
        {chatml(OWN), "chatml", "", "", false, "You are Kit."},
        {"{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
         "chatml", "", "", false, nullptr}};
    for (const auto& c : cases) {
        CAPTURE(c.jinja);
        std::optional<ChatForm> form = recognise(c.jinja, "<s>");
        REQUIRE(form.has_value());
        CHECK(form->name == c.name);
        CHECK(form->bos == c.bos);
        CHECK(form->strips == c.strips);
        CHECK(form->date == c.date);
        CHECK(form->default_system.has_value() == (c.system != nullptr));
        if (c.system) CHECK(form->default_system == c.system);
    }
}

TEST_CASE("a template that states more than a family does is none of it") {
    const std::string others[] = {
        "",
        "{{ bos_token }}",
        "{% for m in messages %}<|User|>{{ m['content'] }}{% endfor %}<|Assistant|>",
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
        chatml("{% set system_message = 'You are Kit.' %}"),
        chatml("{{ '<|im_start|>system\n' + default_system + '<|im_end|>\n' }}"),
        chatml("{{ \"<|im_start|>system\nYou're Kit.<|im_end|>\n\" }}"),
        chatml("") + "<think>",
        chatml("{{ strftime_now('%Y') }}"),
        chatml(LLAMA3),
        "{{ '<|im_start|>assistant' }}<|im_end|>",
        "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + default_system + '<|eot_id|>' }}" +
            LLAMA3,
        llama31(""),
        "{# unclosed"};
    for (const std::string& jinja : others) {
        CAPTURE(jinja);
        CHECK(!recognise(jinja, "<s>").has_value());
    }
}

TEST_CASE("a conversation's ids are those of its template written out") {
    const std::string dated = llama31("{%- set date_string = strftime_now(\"%d %b %Y\") %}");
    const struct { std::string jinja, date; } forms[] = {
        {LLAMA3, ""}, {dated, "4 Jul 2032"}, {chatml(""), ""}, {chatml(OWN), ""},
        {chatml("{{bos_token}}" + OWN, "m['content']|trim"), ""}};
    Random random(5);
    for (const auto& f : forms) {
        Folder folder(f.jinja);
        Tokenizer tokenizer = Tokenizer::open(folder.path);
        ChatTemplate chat(tokenizer, folder.form("", f.date));
        for (int i = 0; i < 60; i++) {
            Messages messages;
            auto say = [&](const char* role) {
                std::string text;
                for (size_t n = random.below(12); n > 0; n--) text += " \n.asy1'"[random.below(8)];
                messages.emplace_back(role, text);
            };
            if (random.below(2)) say("system");
            for (size_t n = random.below(3); n > 0; n--) say("user"), say("assistant");
            say("user");
            if (random.below(5) == 0) say("system"), say("user");
            CAPTURE(f.jinja);
            REQUIRE(ids_of(chat, messages) == tokenizer.encode(written(chat.form, messages), true));
        }
        std::vector<Token> spelt = chat.message("user", "<|eot_id|><|im_end|>");
        CHECK(std::count(spelt.begin(), spelt.end(), chat.end_of_turn) == 1);
    }
}

TEST_CASE("a folder that states no form, or another, is told what can be done") {
    using doctest::Contains;
    Folder folder("[INST]");
    CHECK_THROWS_WITH_AS(folder.form(), Contains("not known here (llama3, llama3.1, chatml"),
                         Error);
    CHECK(folder.form("chatml").name == "chatml");
    CHECK(folder.form("llama3").strips);
    CHECK(!folder.form("chatml").default_system);
    folder.put("tokenizer_config.json", R"({"chat_template": null})");
    CHECK_THROWS_WITH_AS(folder.form(), Contains("states no chat template"), Error);
    std::filesystem::remove(folder.path + "/tokenizer_config.json");
    CHECK_THROWS_WITH_AS(folder.form(), Contains("--template NAME"), Error);
    folder.put("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "x"},
        {"name": "default", "template": )" + quote(LLAMA3) + "}]}");
    CHECK(folder.form().name == "llama3");
    folder.put("chat_template.jinja", "\xef\xbb\xbf" + chatml(""));  // overrules the other file
    CHECK(folder.form().name == "chatml");
    CHECK_THROWS_WITH_AS(folder.form("", "4 Jul 2032"), Contains("state no date"), Error);

    Tokenizer plain = Tokenizer::from_json(tokenizer_json({}), "test");
    CHECK_THROWS_WITH_AS(ChatTemplate(plain, folder.form()), Contains("<|im_start|>"), Error);
}

TEST_CASE("a date is today's unless one is given or the template states it") {
    Folder folder(llama31("{%- set date_string = strftime_now(\"%d %b %Y\") %}"));
    auto today = [] {
        std::time_t seconds = std::time(nullptr);
        std::tm local{};
        localtime_r(&seconds, &local);
        char text[32];
        return std::string(text, std::strftime(text, sizeof text, "%d %b %Y", &local));
    };
    std::string before = today(), got = folder.form().date, after = today();
    CHECK((got == before || got == after));                           // midnight may be between
    CHECK(folder.form("", "4 Jul 2032").dates() ==
          "Cutting Knowledge Date: May 2031\nToday Date: 4 Jul 2032\n\n");
    CHECK(folder.form("llama3.1", "x").cutoff == "December 2023");
}

TEST_CASE("the model that ships has the ids of its conversation") {
    Tokenizer tokenizer = Tokenizer::open(PARLOUR);
    ChatTemplate chat(tokenizer, chat_form(PARLOUR, tokenizer, "", ""));
    std::vector<Token> ids = ids_of(chat, {{"system", "\n You are a kind old sailor.\u3000\x1f"},
                                           {"user", "Good evening! Shall we go out? "}});
    CHECK(ids == std::vector<Token>{4080, 4086, 115,  121,  317,  440,  4087, 264,  556,  493,
                                    258,  888,  643,  361,  393,  284,  46,   4089, 4086, 443,
                                    269,  4087, 264,  71,   431,  1403, 33,   372,  2096, 351,
                                    497,  479,  63,   4089, 4086, 581,  492,  436,  4087, 264});
    CHECK(chat.answer_end() == std::vector<Token>{4089});
    CHECK(end_tokens(tokenizer) == std::vector<Token>{4089, 4088, 4081});
}

TEST_CASE("Llama's own folders state Llama 3 and Llama 3.1") {
    std::string configs = shared("data/llama3/configs");
    if (configs.empty()) return skip("needs ../shared/data/llama3");
    auto form = [&](const char* name) {
        TokenizerConfig config = TokenizerConfig::open(configs + "/" + name);
        REQUIRE(config.chat_template.has_value());
        return recognise(*config.chat_template, config.bos_token);
    };
    std::optional<ChatForm> first = form("llama3-8B-instruct");
    REQUIRE(first.has_value());
    CHECK(first->name == "llama3");
    CHECK(first->strips);
    for (const char* name : {"Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct"}) {
        std::optional<ChatForm> one = form(name);
        REQUIRE(one.has_value());
        CHECK(one->name == "llama3.1");
        CHECK(one->bos == "<|begin_of_text|>");
        CHECK(one->cutoff == "December 2023");
    }
    CHECK(!TokenizerConfig::open(configs + "/Llama-3.2-1B").chat_template.has_value());
}

TEST_CASE("SmolLM2's folder gives the reference ids of texts and of a conversation") {
    std::string folder = smollm2(), vectors = shared("models/smollm2/tokenizer_vectors.jsonl");
    if (folder.empty()) return skip("needs SmolLM2-135M-Instruct: --smollm2=FOLDER");
    Tokenizer tokenizer = Tokenizer::open(folder);
    ChatTemplate chat(tokenizer, chat_form(folder, tokenizer, "", ""));
    CHECK(tokenizer.size() == 49152);
    CHECK(tokenizer.bos() == -1);
    CHECK(tokenizer.encode("a\x04").size() == 1);                      // no such byte
    CHECK(tokenizer.decode(ids_of(chat, {{"user", " Hi\n"}})) ==
          "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
          "Face<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n");
    CHECK(ids_of(chat, {{"user", "Hello, world!"}}) ==
          std::vector<Token>{1,    9690, 198, 2683,  359,   253, 5356, 5646, 11173, 3365, 3511, 308,
                             34519, 28,  7018, 411,  407,   19712, 8182, 2, 198,  1,    4093, 198,
                             19556, 28,  905,  17,   2,     198,   1,    520, 9531, 198});
    if (vectors.empty()) return skip("needs ../shared/models/smollm2");
    std::istringstream lines(read_text(vectors));
    size_t count = 0;
    for (std::string line; std::getline(lines, line); count++) {
        Json json = Json::parse(line, vectors);
        std::vector<Token> want;
        for (const Json& id : json.find("ids")->items)
            want.push_back(Token(id.integer("ids", 0, 1 << 20)));
        CAPTURE(line);
        CHECK(tokenizer.encode(json.find("text")->text) == want);
    }
    CHECK(count == 11);
}

TEST_SUITE_END();
