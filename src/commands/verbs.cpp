// The verbs, in the order of --help.
#include "commands/session.h"

namespace stief {

const std::vector<Verb> verbs = {
    {"chat", "MODEL [--message TEXT | < lines] [options]", "a conversation in the terminal", 1, 1,
     chat},
    {"generate", "MODEL [-p TEXT | -f FILE | < text] [-n N] [options]", "continues a text", 1, 1,
     generate_text},
    {"perplexity", "MODEL FILE [options]", "perplexity of a text, and what a cache costs", 2, 2,
     perplexity},
    {"risk", "MODEL FILE --bases BASES [options]", "what a cache loses, window by window of a text",
     2, 2, risk},
    {"needle", "MODEL [--bases BASES] [options]", "what can still be found in a long context", 1, 1,
     needle},
    {"calibrate", "MODEL [TEXT...] -o BASES [options]",
     "learns a cache from texts, or from models/calibration.txt: coordinates, and bits for each", 1,
     1000000, calibrate_bases},
    {"bench", "MODEL [options]", "speed of prefill and decode, as shares of the memory's", 1, 1,
     bench},
    {"inspect", "MODEL|BASES [options]", "what a folder or a file of bases holds", 1, 1, inspect},
    {"tokenize", "MODEL [TEXT | < text] [--decode] [--special]",
     "ids of a text, or the text of ids", 1, 2, tokenize},
    {"logits", "MODEL --ids \"1 2 3\" | --ids-file FILE  -o OUT", "raw float32 logits (T, V)", 1, 1,
     logits},
};

}  // namespace stief
