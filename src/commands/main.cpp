// stief VERB MODEL [options]. Exit status: 0 done; 1 the input or the machine failed, said in one
// line that begins with "error:"; 2 wrong usage, with the line that would be right.
#include <new>

#include "base/descriptors.h"
#include "base/signals.h"
#include "commands/session.h"

int main(int argc, char** argv) {
    using namespace stief;
    std::string verb;
    try {
        open_standard_streams();
        install_signal_handlers();
        std::vector<std::string> words(argv + 1, argv + argc);
        if (words.size() == 1 && words[0] == "--version") {
            print("stief " STIEF_VERSION "\n");
            return 0;
        }
        Args args = parse_args(words);
        if (args.help) {
            print(help_text(args.verb));
            return 0;
        }
        verb = args.verb;
        for (const Verb& one : verbs)
            if (verb == one.name) return one.run(args);
        return 2;
    } catch (const UsageError& error) {
        write_stderr(format("error: %s\n", with_usage(error.what(), verb).c_str()));
        return 2;
    } catch (const std::bad_alloc&) {
        write_stderr("error: out of memory\n");
        return 1;
    } catch (const std::exception& error) {
        write_stderr(format("error: %s\n", error.what()));
        return 1;
    }
}
