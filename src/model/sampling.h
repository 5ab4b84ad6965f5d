// How the next token is drawn, as generation_config.json suggests it. Only what draws tokens reads
// this: a folder whose sampling makes no sense can still be inspected and measured.
#pragma once
#include <string>

namespace stief {

struct Sampling {                  // 0 or 1 switches a filter off
    bool greedy = true;            // do_sample false or absent
    double temperature = 1;        // 0: greedy too
    int top_k = 0;                 // 0: all; the file's −1 is that too
    double top_p = 1, min_p = 0;
    std::string ignored = {};      // asked for and not done: "repetition_penalty 1.3"

    // The most likely token, and nothing is drawn.
    bool takes_likeliest() const { return greedy || temperature == 0; }
    // The defaults above where the file is not there. Error where a value makes no sense.
    static Sampling open(const std::string& folder);
};

}  // namespace stief
