// stief generate: continues a text. The prompt comes from -p, -f or standard input; only what the
// model adds goes to stdout (with --echo the prompt as well).
#include "base/descriptors.h"
#include "base/file.h"
#include "commands/session.h"

namespace stief {

static const char* why(Stop stop) {
    return stop == Stop::EndOfText ? "end of text"
           : stop == Stop::Full    ? "context full"
                                   : "-n reached";
}

int generate_text(const Args& args) {
    if (args.prompt && !args.file.empty())
        throw UsageError("-p and -f are two texts; give one of them");
    Tokenizer tokenizer = Tokenizer::open(args.model);
    std::string text =
        args.prompt ? *args.prompt : read_text(args.file.empty() ? "-" : args.file);
    Session session(args);
    const Config& config = session.model.config;

    std::vector<Token> prompt = tokenizer.encode_document(text, args.special);
    // The config's BOS is what a model begins with where it is given nothing (as transformers).
    if (prompt.empty() && config.bos >= 0) prompt.push_back(config.bos);
    check(!prompt.empty(), "nothing to continue: the text is empty and the model has no BOS token");
    check(int(prompt.size()) < session.context,
          "the text has %zu tokens, the context %d: shorten it or use a larger --context",
          prompt.size(), session.context);

    if (args.echo) print(text);
    Sampler sampler = sampler_of(args, config, tokenizer);
    if (std::string seed = drawn_seed(args, sampler); !seed.empty()) status(args, seed);
    Utf8Stream stream;
    Generated done = session.generate(sampler, prompt, args.tokens, ends_of(config, tokenizer),
                                      [&](Token id) {
                                          print(stream.push(tokenizer.bytes(id)));
                                          return true;
                                      });
    print(stream.finish() + "\n");
    status(args, format("%d tokens of prompt (%.0f/s), %d new (%.1f/s), %s", done.prompt_tokens,
                        done.prompt_tokens / done.prompt_seconds, done.tokens,
                        done.tokens / done.seconds, why(done.why)));
    if (session.watch && !session.watch->lost.empty())
        write_stderr("error: " + session.watch->lost + "; the rest was not audited\n");
    else if (session.watch) status(args, watch_line(session.watch.get()));
    return 0;
}

}  // namespace stief
