#include "commands/args.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace stief {

std::vector<Flag> flags(Args& a) {
    constexpr double MOST = 2147483647;
    return {
        {"--prompt", "TEXT", "generate", "the text to continue (short: -p)", &a.prompt},
        {"--file", "FILE", "generate", "read the text from FILE, - for standard input (short: -f)",
         &a.file},
        {"--tokens", "N", "generate", "how many tokens to add (short: -n; default 256)", &a.tokens,
         1},
        {"--echo", "", "generate", "print the text itself first", &a.echo},
        {"--system", "TEXT", "chat", "the system message", &a.system},
        {"--message", "TEXT", "chat",
         "one message and its answer; - takes all of standard input as the message", &a.message},
        {"--commands", "", "chat",
         "lines of standard input that begin with / are commands, as they are in a terminal",
         &a.commands},
        {"--template", "NAME", "chat calibrate",
         "llama3, llama3.1 or chatml, whatever chat template the folder states", &a.chat_form, 0, 0,
         "llama3, llama3.1, chatml"},
        {"--date", "DATE", "chat", "what a template takes for today, as \"26 Jul 2024\"", &a.date},
        {"--temperature", "X", "chat generate", "0: always the likeliest token", &a.temperature, 0,
         100},
        {"--top-k", "N", "chat generate", "only the N likeliest tokens; 0 or -1: all", &a.top_k,
         -1},
        {"--top-p", "P", "chat generate", "only the likeliest tokens that make up P", &a.top_p, 0,
         1},
        {"--min-p", "P", "chat generate", "only tokens with P of the likeliest one's chance",
         &a.min_p, 0, 1},
        {"--greedy", "", "chat generate", "the same as --temperature 0", &a.greedy},
        {"--seed", "N", "chat generate", "the same seed gives the same text; -1: drawn, and said", &a.seed},
        {"--protocol", "NAME", "perplexity", "chunks (default), llama.cpp or strided", &a.protocol,
         0, 0, "chunks, llama.cpp, strided"},
        {"--stride", "N", "perplexity", "strided: windows begin every N tokens (default: half)",
         &a.stride, 1},
        {"--chunks", "N", "perplexity", "at most N windows", &a.chunks, 1},
        {"--compare", "HOW", "perplexity",
         "KL divergence from the model run with HOW: exact (f32 activations and cache), f32, f16, "
         "bf16 (that cache)",
         &a.compare, 0, 0, "exact, f32, f16, bf16"},
        {"--prompt", "N", "bench", "tokens of prefill (default 512)", &a.bench_prompt, 2},
        {"--generate", "N", "bench", "tokens of decode at each depth (default 32)",
         &a.bench_generate, 1},
        {"--depth", "N[,N...]", "bench", "tokens already in the cache (default 0)", &a.depths, 0},
        {"--repeat", "N", "bench", "runs of each test (default 5)", &a.repeat, 1, 1000},
        {"--ids", "\"1 2 3\"", "logits", "the tokens", &a.ids},
        {"--ids-file", "FILE", "logits", "the tokens from FILE, - for standard input", &a.ids_file},
        {"--output", "OUT", "logits", "where to write (short: -o)", &a.output},
        {"--output", "BASES", "calibrate", "the file of bases to write (short: -o)", &a.output},
        {"--report", "R.html", "calibrate", "the picture, one self-contained page", &a.report},
        {"--objective", "NAME", "calibrate",
         "model (default): prices of the final prediction; layer: each layer's output, by descent",
         &a.objective, 0, 0, "model, layer"},
        {"--bits", "HOW", "calibrate",
         "mixed (default): each coordinate its own width; 16: rank alone", &a.bits, 0, 0,
         "mixed, 16"},
        {"--method", "NAME", "calibrate",
         "stiefel (default): learned; eigen: EigenAttention; identity: no change of coordinates",
         &a.method, 0, 0, "stiefel, eigen, identity"},
        {"--key-basis", "PER", "calibrate",
         "head (default), or one for a layer's keys (eigen: that)", &a.key_basis, 0, 0,
         "head, layer"},
        {"--metric", "NAME", "calibrate", "output (default), query or identity (eigen: that)",
         &a.metric, 0, 0, "output, query, identity"},
        {"--keys", "WHEN", "calibrate",
         "cut pre (default) or post rotation, or auto: what loses less", &a.keys, 0, 0,
         "pre, post, auto"},
        {"--keep", "F", "calibrate", "share of the full cache's bytes (default 25%)", &a.keep, 0,
         1},
        {"--error-budget", "E", "calibrate", "relative output error of each layer", &a.error_budget,
         0, 1},
        {"--ppl-budget", "P%", "calibrate", "rise of the perplexity in per cent", &a.ppl_budget, 0,
         1000},
        {"--tokens", "N", "calibrate",
         "tokens to learn from, as many of each text (default 16384; objective layer: 32768)",
         &a.calibration_tokens, 2},
        {"--steps", "N", "calibrate", "of the descent (default: objective layer 150, model 0)", &a.steps, 0,
         1000000},
        {"--holdout", "FILE", "calibrate", "text to measure on (default: the last tenth of each)",
         &a.holdout},
        {"--resume", "", "calibrate", "continue after the last finished layer or phase",
         &a.resume},
        {"--seed", "N", "calibrate",
         "the same seed gives the same bases (default 1; -1: drawn, and said)", &a.seed},
        {"--risk", "HOW", "chat generate needle",
         "off (default); audit: measures what the compressed cache loses here; exact: gives the "
         "full cache's answer",
         &a.risk, 0, 0, "off, audit, exact"},
        {"--audit", "N", "chat generate risk needle",
         "tokens of a block (default 32; exact: by agreement, at most 32)", &a.audit, 1, 4096},
        {"--cold", "WHERE", "chat generate needle",
         "where --risk keeps whole rows: ram (default), a new FILE, or reread: nowhere, an audit "
         "reads the text again",
         &a.cold},
        {"--report", "R.html", "risk", "the picture, one self-contained page", &a.report},
        {"--lengths", "N[,N...]", "needle",
         "tokens, the answer among them (default: those of 512,2K,8K that fit)", &a.lengths, 64, MOST},
        {"--kind", "NAME", "needle", "random, paragraph, name, pairs or all (default)", &a.kind, 0,
         0, "random, paragraph, name, pairs, all"},
        {"--file", "FILE", "needle", "the text to hide needles in (default: made sentences)", &a.file},
        {"--seed", "N", "needle", "of the texts (default 1; -1: drawn)", &a.seed},
        {"--tries", "N", "needle", "of each kind and length (default 16)", &a.tries, 1, 10000},
        {"--chunks", "N", "risk", "at most N windows", &a.chunks, 1},
        {"--decode", "", "tokenize", "ids to text", &a.decode},
        {"--special", "", "generate tokenize", "text may spell special tokens", &a.special},
        {"--backend", "NAME", "chat generate perplexity risk needle bench logits inspect calibrate",
         "auto (default), cpu or cuda", &a.backend, 0, 0, "auto, cpu, cuda"},
        {"--isa", "NAME", "chat generate perplexity risk needle bench logits inspect calibrate",
         "inner products of the CPU: auto, or one that inspect lists", &a.isa},
        {"--exact", "", "chat generate perplexity risk needle bench logits calibrate",
         "f32 activations everywhere, and an f32 cache unless --cache says otherwise", &a.exact},
        {"--threads", "N", "chat generate perplexity risk needle bench logits inspect calibrate",
         "default: all that this process may use", &a.threads, 1, 1024},
        {"--context", "N", "chat generate perplexity risk needle bench logits inspect calibrate",
         "positions (default: the model's, at most 8192; perplexity: 2048)", &a.context, 1, MOST},
        {"--bases", "FILE", "chat generate perplexity risk needle bench logits inspect",
         "the low-rank cache that stief calibrate made", &a.bases},
        {"--cache", "TYPE", "chat generate perplexity risk needle bench logits inspect calibrate",
         "f16 (default), bf16, f32; q8, q4: rotated, in 8 or 4 bits, without bases", &a.cache, 0, 0,
         "f16, bf16, f32, q8, q4"},
        {"--window", "SINKS,RECENT", "chat generate perplexity risk needle bench logits inspect calibrate",
         "exact tokens, first and last (default 4,64, or what the bases say)", &a.window},
        {"--ages", "AGE:BITS,...",
         "calibrate chat generate perplexity risk needle bench logits inspect",
         "tokens younger than AGE in BITS (32:16,256:4); of calibrate, --cache q8 and q4", &a.ages},
        {"--quiet", "", "chat generate perplexity risk needle bench calibrate logits",
         "no status, no progress",
         &a.quiet},
        {"--json", "", "perplexity risk needle bench inspect calibrate", "one JSON object on stdout",
         &a.json},
        {"--help", "", "*", "this list", &a.help},
    };
}

static bool lists(const char* words, const std::string& word) {
    std::string padded = " " + std::string(words) + " ";
    return padded == " * " || padded.find(" " + word + " ") != std::string::npos;
}

static const Verb* find_verb(const std::string& name) {
    for (const Verb& verb : verbs)
        if (name == verb.name) return &verb;
    return nullptr;
}

// Letters to insert, drop or change to make b of a (Levenshtein).
static size_t distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j < row.size(); j++) row[j] = j;
    for (size_t i = 1; i <= a.size(); i++) {
        size_t diagonal = row[0]++;
        for (size_t j = 1; j < row.size(); j++) {
            size_t change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
        }
    }
    return row.back();
}

static std::string nearest(const std::string& word, const std::vector<std::string>& known) {
    std::string best;
    size_t least = 3;  // further away is no typing error
    for (const std::string& one : known)
        if (distance(word, one) < least) least = distance(word, one), best = one;
    return best.empty() ? "" : ", did you mean " + best + "?";
}

[[noreturn]] static void usage_error(const std::string& what, const std::string& verb) {
    const Verb* known = find_verb(verb);
    std::string right = known ? std::string("stief ") + known->name + " " + known->usage
                              : std::string("stief VERB MODEL [options]");
    throw UsageError(what + "\nusage: " + right + "   (stief " + (known ? verb + " " : "") +
                     "--help says more)");
}

static std::string bounds_of(const Flag& flag, bool integer, bool share) {
    if (share) return "a share from 0 to 1, or from 0% to 100%";
    const char* kind = integer ? "a whole number" : "a number";
    return format("%s from %.0f to %.0f", kind, flag.low, flag.high);
}

static double parse_number(const std::string& text, const Flag& flag, bool integer,
                           const std::string& verb) {
    std::string number = text;
    bool share = !integer && flag.low == 0 && flag.high == 1, percent = number.ends_with('%');
    bool takes_percent = share || std::string(flag.value).ends_with('%');
    if (percent && takes_percent) number.pop_back();
    char* end = nullptr;
    double value = std::strtod(number.c_str(), &end);
    if (share && percent) value /= 100;
    bool whole =
        !number.empty() && *end == 0 && number.find_first_not_of("0123456789+-.eE") == number.npos;
    if (!whole || (integer && value != std::floor(value)) || !(value >= flag.low) ||
        !(value <= flag.high))
        usage_error(format("%s takes %s, not '%s'", flag.name,
                           bounds_of(flag, integer, share).c_str(), text.c_str()),
                    verb);
    return value;
}

// 2K is 2048.
static double parse_count(const std::string& text, const Flag& flag, const std::string& verb) {
    if (!text.ends_with('K') && !text.ends_with('k')) return parse_number(text, flag, true, verb);
    Flag thousands = flag;
    thousands.low = std::ceil(flag.low / 1024), thousands.high = std::floor(flag.high / 1024);
    return 1024 * parse_number(text.substr(0, text.size() - 1), thousands, true, verb);
}

static Seed parse_seed(const std::string& text, const Flag& flag, const std::string& verb) {
    Seed seed{true, text == "-1", 0};
    const char* last = text.data() + text.size();
    auto [end, error] = std::from_chars(text.data(), last, seed.value);
    if ((error != std::errc() || end != last) && !seed.drawn)
        usage_error(format("%s takes a whole number from 0 to 18446744073709551615, or -1 for one that "
                           "is drawn, not '%s'", flag.name, text.c_str()),
                    verb);
    return seed;
}

static bool chooses(const std::string& choices, const std::string& word) {
    return !word.empty() && (", " + choices + ", ").find(", " + word + ", ") != choices.npos;
}

static void store(const Flag& flag, const std::string& text, const std::string& verb) {
    if (flag.choices && !chooses(flag.choices, text))
        usage_error(format("%s takes one of %s, not '%s'", flag.name, flag.choices, text.c_str()),
                    verb);
    if (auto* s = std::get_if<Seed*>(&flag.target)) **s = parse_seed(text, flag, verb);
    if (auto* s = std::get_if<std::string*>(&flag.target)) {
        if (text.empty()) usage_error(format("%s needs %s, not ''", flag.name, flag.value), verb);
        **s = text;
    }
    if (auto* s = std::get_if<std::optional<std::string>*>(&flag.target)) **s = text;
    if (auto* i = std::get_if<int*>(&flag.target)) **i = int(parse_number(text, flag, true, verb));
    if (auto* o = std::get_if<std::optional<int>*>(&flag.target))
        **o = int(parse_number(text, flag, true, verb));
    if (auto* o = std::get_if<std::optional<double>*>(&flag.target))
        **o = parse_number(text, flag, false, verb);
    if (auto* list = std::get_if<std::vector<int>*>(&flag.target)) {
        (*list)->clear();
        for (size_t begin = 0; begin <= text.size();) {
            size_t end = std::min(text.find(',', begin), text.size());
            std::string one = text.substr(begin, end - begin);
            (*list)->push_back(int(parse_count(one, flag, verb)));
            begin = end + 1;
        }
    }
}

static std::string long_name(const std::string& word) {
    if (word == "-p") return "--prompt";
    if (word == "-f") return "--file";
    if (word == "-n") return "--tokens";
    if (word == "-o") return "--output";
    if (word == "-h") return "--help";
    return word;
}

Args parse_args(const std::vector<std::string>& words) {
    Args args;
    if (words.empty()) usage_error("no verb given", "");
    args.verb = words[0];
    if (args.verb == "--help" || args.verb == "-h" || args.verb == "help") {
        args.verb = words.size() > 1 && find_verb(words[1]) ? words[1] : "";
        args.help = true;
        return args;
    }
    const Verb* verb = find_verb(args.verb);
    if (!verb) {
        std::vector<std::string> names;
        for (const Verb& one : verbs) names.push_back(one.name);
        usage_error("unknown verb '" + args.verb + "'" + nearest(args.verb, names), "");
    }

    std::vector<Flag> table = flags(args);
    std::vector<std::string> positional;
    bool options_over = false;
    for (size_t i = 1; i < words.size(); i++) {
        std::string word = words[i];
        if (options_over || word.size() < 2 || word[0] != '-') {
            positional.push_back(word);
            continue;
        }
        if (word == "--") {
            options_over = true;
            continue;
        }
        size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : word.npos;
        std::string name = long_name(word.substr(0, equals));
        auto flag = std::find_if(table.begin(), table.end(), [&](const Flag& one) {
            return name == one.name && lists(one.verbs, args.verb);
        });
        if (flag == table.end()) {
            std::vector<std::string> names;
            for (const Flag& one : table)
                if (lists(one.verbs, args.verb)) names.push_back(one.name);
            usage_error("unknown option " + word + " of " + args.verb + nearest(name, names),
                        args.verb);
        }
        if (auto* on = std::get_if<bool*>(&flag->target)) {
            if (equals != word.npos) usage_error(name + " takes no value", args.verb);
            **on = true;
        } else if (equals != word.npos) {
            store(*flag, word.substr(equals + 1), args.verb);
        } else {
            if (i + 1 == words.size()) usage_error(name + " needs " + flag->value, args.verb);
            store(*flag, words[++i], args.verb);
        }
    }
    if (args.help) return args;
    if (int(positional.size()) < verb->least)
        usage_error(positional.empty() ? "no MODEL given" : "too few arguments", args.verb);
    if (int(positional.size()) > verb->most)
        usage_error("one argument too many: '" + positional[size_t(verb->most)] + "'", args.verb);
    args.model = positional[0];
    args.rest.assign(positional.begin() + 1, positional.end());
    return args;
}

std::string help_text(const std::string& name) {
    const Verb* verb = find_verb(name);
    std::string text;
    if (!verb) {
        text = "stief " STIEF_VERSION
               ": opens a Llama 3 folder as Hugging Face publishes it\n\n"
               "usage: stief VERB MODEL [options]\n\n";
        for (const Verb& one : verbs) text += format("  %-11s %s\n", one.name, one.help);
        return text + "\nstief VERB --help lists the options of a verb; stief --version.\n";
    }
    text = format("usage: stief %s %s\n\n%s\n\n", verb->name, verb->usage, verb->help);
    Args args;
    for (const Flag& flag : flags(args))
        if (lists(flag.verbs, name))
            text += format("  %-22s %s\n", (std::string(flag.name) + " " + flag.value).c_str(),
                           flag.help);
    return text;
}

}  // namespace stief
