// stief tokenize: ids of a text, or with --decode the text of ids. Needs only the tokenizer files.
#include "base/file.h"
#include "commands/ids.h"
#include "commands/session.h"
#include "formats/tokenizer.h"

namespace stief {

int tokenize(const Args& args) {
    Tokenizer tokenizer = Tokenizer::open(args.model);
    std::string text = args.rest.empty() ? read_text("-") : args.rest[0];
    if (args.decode) {
        print(tokenizer.decode(parse_ids(text, args.rest.empty() ? "standard input" : "the ids")));
        return 0;
    }
    std::string line;
    for (Token id : tokenizer.encode(text, args.special))
        line += (line.empty() ? "" : " ") + std::to_string(id);
    print(line + "\n");
    return 0;
}

}  // namespace stief
