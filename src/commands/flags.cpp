// Every option, by the verbs that take it: name, value, what --help says of it, where it goes, the
// bounds of a number or the words to choose from.
#include "commands/args.h"

namespace stief {
namespace {

constexpr double MOST = 2147483647;

struct Table {
    std::vector<Flag> flags;

    void of(const char* verbs, std::vector<Flag> group) {
        for (Flag& flag : group) {
            flag.verbs = verbs;
            flags.push_back(std::move(flag));
        }
    }
};

void add_texts(Table& table, Args& a) {
    table.of("generate", {
        {"--prompt", "TEXT", "the text to continue (short: -p)", &a.prompt},
        {"--file", "FILE", "read the text from FILE, - for standard input (short: -f)", &a.file},
        {"--tokens", "N", "how many tokens to add (short: -n; default 256)", &a.tokens, 1},
        {"--echo", "", "print the text itself first", &a.echo},
    });
    table.of("tokenize", {
        {"--decode", "", "ids to text", &a.decode},
    });
    table.of("generate tokenize", {
        {"--special", "", "text may spell special tokens", &a.special},
    });
    table.of("chat", {
        {"--system", "TEXT", "the system message", &a.system},
        {"--message", "TEXT",
         "one message and its answer; - takes all of standard input as the message", &a.message},
        {"--commands", "",
         "lines of standard input that begin with / are commands, as they are in a terminal",
         &a.commands},
        {"--date", "DATE", "what a template takes for today, as \"26 Jul 2024\"", &a.date},
    });
    table.of("chat calibrate", {
        {"--template", "NAME",
         "llama3, llama3.1 or chatml, whatever chat template the folder states",
         &a.chat_form, 0, 0, "llama3, llama3.1, chatml"},
    });
    table.of("chat generate", {
        {"--temperature", "X", "0: always the likeliest token", &a.temperature, 0, 100},
        {"--top-k", "N", "only the N likeliest tokens; 0 or -1: all", &a.top_k, -1},
        {"--top-p", "P", "only the likeliest tokens that make up P", &a.top_p, 0, 1},
        {"--min-p", "P", "only tokens with P of the likeliest one's chance", &a.min_p, 0, 1},
        {"--greedy", "", "the same as --temperature 0", &a.greedy},
        {"--seed", "N", "the same seed gives the same text; -1: drawn, and said", &a.seed},
    });
}

void add_measures(Table& table, Args& a) {
    table.of("perplexity", {
        {"--protocol", "NAME", "chunks (default), llama.cpp or strided",
         &a.protocol, 0, 0, "chunks, llama.cpp, strided"},
        {"--stride", "N", "strided: windows begin every N tokens (default: half)", &a.stride, 1},
        {"--compare", "HOW",
         "KL divergence from the model run with HOW: exact (f32 activations and cache), f32, f16, "
         "bf16 (that cache)", &a.compare, 0, 0, "exact, f32, f16, bf16"},
    });
    table.of("perplexity risk", {
        {"--chunks", "N", "at most N windows", &a.chunks, 1},
    });
    table.of("needle", {
        {"--lengths", "N[,N...]",
         "tokens, the answer among them (default: those of 512,2K,8K,32K that fit)",
         &a.lengths, 64, MOST},
        {"--kind", "NAME", "random, paragraph, name, pairs or all (default)",
         &a.kind, 0, 0, "random, paragraph, name, pairs, all"},
        {"--file", "FILE", "the text to hide needles in (default: made sentences)", &a.file},
        {"--tries", "N", "texts of each kind and length, four needles in each (default 4)",
         &a.tries, 1, 10000},
        {"--seed", "N", "of the texts (default 1; -1: drawn)", &a.seed},
    });
    table.of("bench", {
        {"--prompt", "N", "tokens of prefill (default 512)", &a.bench_prompt, 2},
        {"--generate", "N", "tokens of decode at each depth (default 32)", &a.bench_generate, 1},
        {"--depth", "N[,N...]", "tokens already in the cache (default 0)", &a.depths, 0},
        {"--repeat", "N", "runs of each test (default 5)", &a.repeat, 1, 1000},
    });
    table.of("logits", {
        {"--ids", "\"1 2 3\"", "the tokens", &a.ids},
        {"--ids-file", "FILE", "the tokens from FILE, - for standard input", &a.ids_file},
        {"--output", "OUT", "where to write (short: -o)", &a.output},
    });
}

void add_calibrate(Table& table, Args& a) {
    table.of("calibrate", {
        {"--output", "BASES", "the file of bases to write (short: -o)", &a.output},
        {"--objective", "NAME",
         "model (default): prices of the final prediction; layer: each layer's output, by descent, rank "
         "alone (where an option of it is given: that)",
         &a.objective, 0, 0, "model, layer"},
        {"--bits", "HOW", "mixed (default): each coordinate its own width; 16: rank alone",
         &a.bits, 0, 0, "mixed, 16"},
        {"--method", "NAME",
         "objective layer: stiefel (default), learned; eigen: EigenAttention; identity: no change of "
         "coordinates; objective model: star, STAR-KV's thresholds and its codes of 4 and 3 bits",
         &a.method, 0, 0, "stiefel, eigen, identity, star"},
        {"--key-basis", "PER",
         "objective layer: head (default), or one for a layer's keys (eigen: that)",
         &a.key_basis, 0, 0, "head, layer"},
        {"--value-basis", "PER",
         "objective model: head (default), or joint: one for a layer's values, stored once a token "
         "(star: that; on the CPU)",
         &a.value_basis, 0, 0, "head, joint"},
        {"--metric", "NAME", "objective layer: output (default), query or identity (eigen: that)",
         &a.metric, 0, 0, "output, query, identity"},
        {"--keys", "WHEN", "cut pre (default) or post rotation; auto: post where little is lost",
         &a.keys, 0, 0, "pre, post, auto"},
        {"--keep", "F",
         "share of the full cache's bytes, of the last age (default 12.5%; layer: 25%)",
         &a.keep, 0, 1},
        {"--error-budget", "E", "objective layer: relative output error of each layer",
         &a.error_budget, 0, 1},
        {"--ppl-budget", "P%", "rise of the perplexity in per cent", &a.ppl_budget, 0, 1000},
        {"--tokens", "N",
         "tokens to learn from, as many of each text (default 16384; objective layer: 32768)",
         &a.calibration_tokens, 2},
        {"--steps", "N", "of the descent (default: objective layer 150, model 0, of star 60)",
         &a.steps, 0, 1000000},
        {"--holdout", "FILE", "text to measure on (default: the last tenth of each)", &a.holdout},
        {"--resume", "", "continue after the last finished layer or phase", &a.resume},
        {"--seed", "N", "the same seed gives the same bases (default 1; -1: drawn, and said)",
         &a.seed},
    });
    table.of("calibrate", {
        {"--report", "R.html",
         "the picture, one self-contained page; other sizes and methods are measured for it", &a.report},
    });
    table.of("risk", {
        {"--report", "R.html", "the picture, one self-contained page", &a.report},
    });
}

void add_cache(Table& table, Args& a) {
    table.of("chat generate perplexity risk needle bench logits inspect", {
        {"--bases", "FILE", "the cache that stief calibrate learned", &a.bases},
    });
    table.of("chat generate perplexity risk needle bench logits inspect", {
        {"--cache", "TYPE",
         "f16 (default), bf16, f32; q8, q4: rotated, in 8 or 4 bits, without bases",
         &a.cache, 0, 0, "f16, bf16, f32, q8, q4"},
        {"--window", "SINKS,RECENT",
         "whole tokens, first and last (default 4,64, or what the bases say)", &a.window},
    });
    table.of("calibrate", {
        {"--cache", "TYPE", "what whole elements are kept in: f16 (default), bf16, f32",
         &a.cache, 0, 0, "f16, bf16, f32"},
        {"--window", "SINKS,RECENT",
         "whole tokens, first and last (default 4,64; of calibrate with its default --ages 4,32)",
         &a.window},
    });
    table.of("calibrate chat generate perplexity risk needle bench logits inspect", {
        {"--ages", "AGE:BITS,...",
         "tokens younger than AGE in BITS: of calibrate (32:16,256:4, none with --window or a --context "
         "below 512), --cache q8 and q4 (256:8)",
         &a.ages},
    });
    table.of("chat generate bench", {
        {"--risk", "HOW",
         "off (default); audit: measures what the compressed cache loses here; exact: gives the "
         "full cache's answer", &a.risk, 0, 0, "off, audit, exact"},
        {"--cold", "WHERE",
         "where --risk keeps whole rows: ram (default), a new FILE, or reread: nowhere, an audit "
         "reads the text again", &a.cold},
    });
    table.of("chat generate bench", {
        {"--audit", "N", "tokens of a block (default 32; exact: by agreement, at most 32)",
         &a.audit, 1, 4096},
    });
    table.of("risk needle", {
        {"--audit", "N", "tokens of a block, of those that an audit looks at (default 32)",
         &a.audit, 1, 4096},
    });
}

void add_machine(Table& table, Args& a) {
    table.of("chat generate perplexity risk needle bench logits inspect calibrate", {
        {"--backend", "NAME", "auto (default), cpu or cuda", &a.backend, 0, 0, "auto, cpu, cuda"},
        {"--isa", "NAME", "inner products of the CPU: auto, or one that inspect lists", &a.isa},
        {"--threads", "N", "default: all that this process may use", &a.threads, 1, 1024},
        {"--context", "N", "positions (default: the model's, at most 8192; of a window: perplexity 2048, "
         "risk 512; of a sequence: calibrate 1024)",
         &a.context, 1, MOST},
    });
    table.of("chat generate perplexity risk needle bench logits calibrate", {
        {"--exact", "",
         "f32 activations everywhere, and an f32 cache unless --cache says otherwise", &a.exact},
        {"--quiet", "", "no status, no progress", &a.quiet},
    });
    table.of("perplexity risk needle bench inspect calibrate", {
        {"--json", "", "one JSON object on stdout", &a.json},
    });
    table.of("*", {
        {"--help", "", "this list", &a.help},
    });
}

}  // namespace

std::vector<Flag> flags(Args& args) {
    Table table;
    add_texts(table, args);
    add_measures(table, args);
    add_calibrate(table, args);
    add_cache(table, args);
    add_machine(table, args);
    return table.flags;
}

}  // namespace stief
