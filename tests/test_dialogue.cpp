// What fails leaves a dialogue as it was, its rows too: it goes on in the same words.
#include "commands/dialogue.h"
#include "testing.h"

namespace stief::testing {

namespace {

Args args_of(const std::string& risk) {
    Args args;
    args.model = "models/parlour";
    args.backend = "cpu";  // where a row is the same whether it was read alone or with others
    args.quiet = args.greedy = true;
    args.context = 400, args.threads = 2;
    if (risk.empty()) return args;
    args.cache = "q4", args.window = {0, 1}, args.risk = risk;
    return args;
}

struct Talk {
    Tokenizer tokenizer = Tokenizer::open("models/parlour");
    Session session;
    Dialogue dialogue;
    std::string said;

    explicit Talk(const std::string& risk)
        : session(args_of(risk), 400), dialogue(session, tokenizer, args_of(risk)) {
        dialogue.show = [this](std::string_view bytes) { said += bytes; };
    }
    std::string answer(const std::string& text) {
        said.clear();
        dialogue.say(text);
        return said;
    }
    void check_agreement() const {
        CHECK(size_t(session.cache->used) == dialogue.talk.ids.size());
        if (session.watch) CHECK(session.watch->ids == dialogue.talk.ids);
    }
    // As if the backend failed in the middle of what `act` feeds.
    template <class Act>
    void failing(const Act& act) {
        int& context = session.transformer->context;
        int before = std::exchange(context, std::max(session.cache->used, 128) + 4);
        CHECK_THROWS_WITH_AS(act(), doctest::Contains("the context is full"), Error);
        context = before;
    }
};

std::string words(int n) {
    std::string text;
    for (int i = 0; i < n; i++) text += i % 3 ? "the old house " : "that stood there ";
    return text;
}

const char* const FIRST = "Good evening.";
const char* const SECOND = "And who is your friend?";

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("a dialogue whose new beginning fails goes on in the words of one that never tried") {
    for (const std::string risk : {"", "audit", "exact"}) {
        CAPTURE(risk);
        Talk talk(risk), other(risk);
        CHECK(talk.answer(FIRST) == other.answer(FIRST));
        REQUIRE(talk.session.cache->used < 250);
        std::vector<Token> ids = talk.dialogue.talk.ids;
        talk.dialogue.system = words(90);
        REQUIRE(talk.dialogue.form.opening(words(90)).size() > 260);
        talk.failing([&] { talk.dialogue.clear(); });
        CHECK(talk.dialogue.talk.ids == ids);
        CHECK(talk.dialogue.talk.messages.size() == 2);
        talk.check_agreement();
        // And one that does not fit is refused before any row is gone.
        talk.dialogue.system = words(300);
        CHECK_THROWS_WITH_AS(talk.dialogue.clear(), doctest::Contains("the system message takes"), Error);
        talk.check_agreement();
        CHECK(talk.answer(SECOND) == other.answer(SECOND));
        CHECK(talk.dialogue.talk.ids == other.dialogue.talk.ids);
    }
}

TEST_CASE("a conversation that cannot be read anew is not there, and the dialogue goes on") {
    Scratch scratch;
    std::string file = scratch.path("talk");
    Talk long_one("exact"), talk("exact"), other("exact");
    long_one.dialogue.set_system(words(90));
    long_one.dialogue.save(file);
    CHECK(talk.answer(FIRST) == other.answer(FIRST));
    REQUIRE(talk.session.cache->used < 250);
    talk.failing([&] { talk.dialogue.load(file); });
    talk.check_agreement();
    CHECK(talk.answer(SECOND) == other.answer(SECOND));
    CHECK(talk.dialogue.talk.ids == other.dialogue.talk.ids);
    talk.dialogue.load(file);
    talk.check_agreement();
    CHECK(talk.dialogue.talk.ids == long_one.dialogue.talk.ids);
}

TEST_CASE("a conversation is loaded with the system message that held, and is saved again as it was") {
    Scratch scratch;
    std::string first = scratch.path("first"), again = scratch.path("again");
    for (const std::string risk : {"", "exact"}) {
        CAPTURE(risk);
        // Drafts that know nothing of whole rows, and a conversation that has them.
        Args crude = args_of("exact");
        crude.risk = risk.empty() ? "off" : risk;
        Tokenizer tokenizer = Tokenizer::open("models/parlour");
        Session session(crude, 400), drafts(args_of("exact"), 400);
        Dialogue talk(session, tokenizer, crude), other(drafts, tokenizer, args_of("exact"));
        talk.say(FIRST);
        talk.set_system("Be bold.");
        talk.set_system("Be brief.");
        talk.save(first);
        other.load(first);
        CHECK(other.system == "Be brief.");
        other.save(again);
        other.load(again);
        CHECK(talk.talk.ids == other.talk.ids);
        CHECK(other.talk.messages.size() == 4);
        other.clear();
        CHECK(other.talk.messages.size() == 1);
        std::filesystem::remove(first), std::filesystem::remove(again);
    }
}

TEST_SUITE_END();

}  // namespace stief::testing
