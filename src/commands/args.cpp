#include "commands/args.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace stief {

static bool lists(const char* words, const std::string& word) {
    std::string padded = " " + std::string(words) + " ";
    return padded == " * " || padded.find(" " + word + " ") != std::string::npos;
}

bool takes(const std::string& verb, const std::string& option) {
    Args unused;
    for (const Flag& flag : flags(unused))
        if (option == flag.name && lists(flag.verbs, verb)) return true;
    return false;
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

// One that the word begins, "--temp", or one that it was meant to be.
static std::string nearest(const std::string& word, const std::vector<std::string>& known) {
    std::string best;
    size_t least = 3;  // further away is no typing error
    for (const std::string& one : known)
        if (word.size() >= 4 && one.starts_with(word)) return ", did you mean " + one + "?";
    for (const std::string& one : known)
        if (distance(word, one) < least) least = distance(word, one), best = one;
    return best.empty() ? "" : ", did you mean " + best + "?";
}

std::string with_usage(const std::string& what, const std::string& verb) {
    if (what.find("\nusage: ") != what.npos) return what;
    const Verb* known = find_verb(verb);
    std::string right = known ? std::string("stief ") + known->name + " " + known->usage
                              : std::string("stief VERB MODEL [options]");
    return what + "\nusage: " + right + "   (stief " + (known ? verb + " " : "") + "--help says more)";
}

[[noreturn]] static void usage_error(const std::string& what, const std::string& verb) {
    throw UsageError(with_usage(what, verb));
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
        usage_error(
            format("%s takes a whole number from 0 to 18446744073709551615, or -1 for one that "
                   "is drawn, not '%s'",
                   flag.name, text.c_str()),
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
    if (auto* i = std::get_if<int*>(&flag.target)) **i = int(parse_count(text, flag, verb));
    if (auto* o = std::get_if<std::optional<int>*>(&flag.target))
        **o = int(parse_count(text, flag, verb));
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

static Flag find_flag(const std::vector<Flag>& table, const std::string& word,
                      const std::string& verb) {
    std::string name = long_name(word.substr(0, word.find('=')));
    std::vector<std::string> names;
    for (const Flag& one : table) {
        if (!lists(one.verbs, verb)) continue;
        if (name == one.name) return one;
        names.push_back(one.name);
    }
    usage_error("unknown option " + word + " of " + verb + nearest(name, names), verb);
}

// Stores the options among words 1 …; the rest are returned in their order.
static std::vector<std::string> take_options(Args& args, const std::vector<std::string>& words) {
    std::vector<Flag> table = flags(args);
    std::vector<std::string> positional;
    bool options_over = false;
    for (size_t i = 1; i < words.size(); i++) {
        const std::string& word = words[i];
        if (options_over || word.size() < 2 || word[0] != '-') {
            positional.push_back(word);
            continue;
        }
        if (word == "--") {
            options_over = true;
            continue;
        }
        Flag flag = find_flag(table, word, args.verb);
        size_t equals = word.starts_with("--") ? word.find('=') : word.npos;
        if (auto* on = std::get_if<bool*>(&flag.target)) {
            if (equals != word.npos) usage_error(format("%s takes no value", flag.name), args.verb);
            **on = true;
        } else if (equals != word.npos) {
            store(flag, word.substr(equals + 1), args.verb);
        } else {
            if (i + 1 == words.size())
                usage_error(format("%s needs %s", flag.name, flag.value), args.verb);
            store(flag, words[++i], args.verb);
        }
    }
    return positional;
}

static const Verb* expect_verb(const std::string& name) {
    if (const Verb* verb = find_verb(name)) return verb;
    std::vector<std::string> names;
    for (const Verb& one : verbs) names.push_back(one.name);
    usage_error("unknown verb '" + name + "'" + nearest(name, names), "");
}

Args parse_args(const std::vector<std::string>& words) {
    Args args;
    if (words.empty()) usage_error("no verb given", "");
    args.verb = words[0];
    if (args.verb == "--help" || args.verb == "-h" || args.verb == "help") {
        args.verb = words.size() > 1 ? words[1] : "";
        if (!args.verb.empty()) expect_verb(args.verb);
        args.help = true;
        return args;
    }
    const Verb* verb = expect_verb(args.verb);
    std::vector<std::string> positional = take_options(args, words);
    if (args.help) return args;
    if (int(positional.size()) < verb->least)
        usage_error(positional.empty() ? "no MODEL given" : "too few arguments", args.verb);
    if (int(positional.size()) > verb->most)
        usage_error("one argument too many: '" + positional[size_t(verb->most)] + "'", args.verb);
    for (size_t i = 0; i < positional.size(); i++)
        if (positional[i].empty()) usage_error(format("argument %zu is empty", i + 1), args.verb);
    args.model = positional[0];
    args.rest.assign(positional.begin() + 1, positional.end());
    return args;
}

std::string help_text(const std::string& name) {
    const Verb* verb = find_verb(name);
    std::string text;
    if (!verb) {
        text = "stief " STIEF_VERSION
               ": opens a Llama folder as Hugging Face publishes it\n\n"
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
