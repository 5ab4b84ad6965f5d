// The dialogue behind the screen: what the cache holds is always a whole number of messages in the
// model's template, BOS once, each with one end of turn. Whatever ends an answer (an end id, the
// caller, the limit), the template's end of turn follows it; whatever fails or is stopped before an
// answer began leaves the dialogue as it was.
#pragma once
#include <functional>
#include <string>

#include "commands/conversation.h"
#include "commands/session.h"
#include "formats/chat.h"
#include "forward/generate.h"

namespace stief {

struct Pace {
    int prompt_tokens = 0, tokens = 0;
    double prompt_seconds = 0, seconds = 0;
};

struct Dialogue {
    enum class End { Turn, Stopped, Full, Unsent };

    Session& session;
    const Tokenizer& tokenizer;
    ChatTemplate form;
    Sampler sampler;
    Conversation talk;
    std::optional<std::string> system; // what clear() begins with; none: the template's own, if any
    std::vector<Token> ends;           // what ends an answer
    Pace last, all;                    // of the last answer, of all since the start

    std::function<bool()> stop;                        // asked often: should the answer end here?
    std::function<void(std::string_view)> show;        // the bytes of the answer, token by token

    Dialogue(Session& owner, const Tokenizer& words, const Args& args);

    int left() const { return session.context - session.cache->used; }
    void clear();    // Error where its system message does not fit
    // At the start of a dialogue its system message; later a further one, that holds from there on.
    void set_system(const std::string& text);
    // Error where the message and a short answer do not fit any more.
    End say(const std::string& text);

    void save(const std::string& path);
    // Error where it is no conversation of this model, form and cache: then all is as it was.
    void load(const std::string& path);

  private:
    Conversation loaded(const std::string& path);    // the caches hold it then, or what they held
    void undo(int used);
    void read_again();
    void require_room(size_t tokens, int answer, const char* what) const;
    bool feed(std::span<const Token> ids, bool stoppable);
    End answer(const std::vector<Token>& ids, std::string& text);
};

}  // namespace stief
