// The command line: one table of flags (flags.cpp) drives parsing and --help of each verb.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/check.h"

namespace stief {

// --seed: 0 … 2⁶⁴ − 1, or −1 for one that is drawn. Where it is not given, the verb decides.
struct Seed {
    bool given = false, drawn = false;
    uint64_t value = 0;
};

struct Args {
    std::string verb, model;
    std::vector<std::string> rest;             // positional arguments after MODEL

    // common
    std::string backend = "auto", isa = "auto", cache, bases, ages;
    std::vector<int> window;                   // SINKS,RECENT; empty: 4,64, or what the bases say
    int threads = 0, context = 0;
    bool exact = false, quiet = false, json = false, help = false;
    Seed seed;

    // sampling: what generation_config.json says unless given
    std::optional<double> temperature, top_p, min_p;
    std::optional<int> top_k;
    bool greedy = false;

    // one verb each
    std::optional<std::string> prompt, system, message;   // may be given and empty
    std::string file, output, ids, ids_file, protocol = "chunks", compare, chat_form, date;
    bool echo = false, decode = false, special = false, commands = false;
    int tokens = 256, stride = 0, chunks = 0;
    int bench_prompt = 512, bench_generate = 32, repeat = 5;
    std::vector<int> depths = {0};

    // what compression loses
    std::string risk = "off", cold;
    int audit = 0, tries = 4;
    std::vector<int> lengths;
    std::string kind = "all";

    // calibrate
    std::string objective, bits, method, key_basis, value_basis, metric, keys = "pre", holdout, report;
    std::optional<double> keep, error_budget, ppl_budget;
    int calibration_tokens = 0, steps = -1;
    bool resume = false;
};

struct Flag {
    const char* name;                          // "--threads"
    const char* value;                         // "N", or "" for a switch
    const char* help;
    // An optional double that ends at 1 is a share: "25%" is 0.25.
    std::variant<bool*, int*, std::optional<int>*, std::optional<double>*, std::string*,
                 std::optional<std::string>*, std::vector<int>*, Seed*>
        target;
    double low = 0, high = 2147483647;         // of a number
    const char* choices = nullptr;             // of a word: "f16, bf16, f32"; null: any
    const char* verbs = "";                    // "chat generate", or "*"
};
std::vector<Flag> flags(Args& args);
bool takes(const std::string& verb, const std::string& option);   // "chat", "--risk"

struct Verb {
    const char* name;
    const char* usage;                         // "MODEL [-p TEXT | -f FILE]"
    const char* help;
    int least, most;                           // positional arguments, MODEL included
    int (*run)(const Args&);
};
extern const std::vector<Verb> verbs;

// An error's text with the line that would be right, unless it has one.
std::string with_usage(const std::string& what, const std::string& verb);
// Throws UsageError, with that line.
Args parse_args(const std::vector<std::string>& words);
std::string help_text(const std::string& verb);        // "": the list of verbs

}  // namespace stief
