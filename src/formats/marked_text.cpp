#include "formats/marked_text.h"

#include <algorithm>

#include "base/check.h"
#include "formats/unicode.h"

namespace stief {

static constexpr std::string_view MARK = "=== ", FIRST = "=== stief text";

static std::string_view next_line(std::string_view& text) {
    size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    return line;
}

bool MarkedText::is_marked(std::string_view text) {
    return next_line(text) == FIRST;
}

namespace {

struct Reader {
    MarkedText all;
    std::string where;
    size_t line = 0;

    [[noreturn]] void refuse(std::string_view mark, const char* why) const {
        fail("%s, line %zu: '%.*s' %s", where.c_str(), line, int(std::min<size_t>(mark.size(), 60)),
             mark.data(), why);
    }
    void turn(std::string_view role, std::string_view mark) {
        if (all.part.empty()) refuse(mark, "before any '=== part NAME'");
        std::vector<MarkedText::Piece>& pieces = all.part.back().piece;
        bool talks = !pieces.empty() && (pieces.back().empty() || !pieces.back()[0].role.empty());
        if (!talks) refuse(mark, "outside of a '=== conversation'");
        MarkedText::Piece& piece = pieces.back();
        if (role == "system" && !piece.empty()) refuse(mark, "after other turns of its conversation");
        piece.push_back({std::string(role), ""});
    }
    void read(std::string_view mark) {
        std::string_view name = mark.substr(MARK.size());
        if (name.starts_with("part ")) {
            all.part.push_back({std::string(strip(name.substr(5))), {}});
            if (all.part.back().name.empty()) refuse(mark, "states no name");
            all.part.back().piece.push_back({{"", ""}});
        } else if (name == "document" || name == "conversation") {
            if (all.part.empty()) refuse(mark, "before any '=== part NAME'");
            all.part.back().piece.emplace_back();
            if (name == "document") all.part.back().piece.back().push_back({"", ""});
        } else if (name == "system" || name == "user" || name == "assistant") {
            turn(name, mark);
        } else {
            refuse(mark, "is no mark (part NAME, document, conversation, system, user, assistant)");
        }
    }
    void add(std::string_view text) {
        if (all.part.empty()) return;
        MarkedText::Piece& piece = all.part.back().piece.back();
        if (piece.empty() && strip(text).empty()) return;
        if (piece.empty()) refuse(text, "stands before the first turn of its conversation");
        piece.back().content += std::string(text) + "\n";
    }
};

}  // namespace

MarkedText MarkedText::parse(std::string_view text, const std::string& where) {
    Reader reader{{}, where};
    while (!text.empty()) {
        std::string_view line = next_line(text);
        if (reader.line++ == 0) continue;  // the first says what this is
        if (line.starts_with(MARK)) reader.read(line);
        else reader.add(line);
    }
    for (Part& part : reader.all.part) {
        for (Piece& piece : part.piece)
            for (Turn& one : piece) one.content = strip(one.content);
        std::erase_if(part.piece, [](const Piece& piece) {
            return piece.empty() || (piece[0].role.empty() && piece[0].content.empty());
        });
        check(!part.piece.empty(), "%s: part %s is empty", where.c_str(), part.name.c_str());
    }
    check(!reader.all.part.empty(), "%s: no '=== part NAME' in it", where.c_str());
    return std::move(reader.all);
}

static std::vector<Token> conversation(const MarkedText::Piece& piece, const ChatTemplate& chat,
                                       const Tokenizer& tokenizer) {
    bool own = piece[0].role == "system";
    std::vector<Token> ids = own ? chat.opening(piece[0].content) : chat.opening();
    if (!chat.form.bos.empty() && !ids.empty() && ids[0] == tokenizer.special(chat.form.bos))
        ids.erase(ids.begin());
    for (size_t i = own; i < piece.size(); i++) {
        std::vector<Token> more = chat.message(piece[i].role, piece[i].content);
        ids.insert(ids.end(), more.begin(), more.end());
    }
    return ids;
}

std::vector<Token> encode_part(const MarkedText::Part& part, const Tokenizer& tokenizer,
                               const ChatTemplate* chat) {
    std::vector<Token> ids;
    for (const MarkedText::Piece& piece : part.piece) {
        std::vector<Token> more;
        if (chat && !piece[0].role.empty()) {
            more = conversation(piece, *chat, tokenizer);
        } else {
            std::string text;
            for (const MarkedText::Turn& one : piece) text += one.content + "\n\n";
            more = tokenizer.encode(text);
        }
        ids.insert(ids.end(), more.begin(), more.end());
    }
    return ids;
}

}  // namespace stief
