// stief logits: raw little-endian float32 logits (T, V) of given ids, to compare with another
// implementation. Works in a folder without a tokenizer.
#include <algorithm>
#include <cmath>

#include "base/file.h"
#include "commands/ids.h"
#include "commands/outputs.h"
#include "commands/session.h"
#include "forward/finite.h"

namespace stief {

int logits(const Args& args) {
    if (args.ids.empty() == args.ids_file.empty()) throw UsageError("give --ids or --ids-file");
    if (args.output.empty()) throw UsageError("-o OUT is missing: where the logits go");
    check_outputs({{{"-o", args.output}, Output::Numbers}},
                  {{"--ids-file", args.ids_file}, {"--bases", args.bases}}, args.model);
    std::vector<Token> ids = args.ids.empty() ? parse_ids(read_text(args.ids_file), args.ids_file)
                                              : parse_ids(args.ids, "--ids");
    check(!ids.empty(), "there are no token ids");
    Session session(args);
    check(int(ids.size()) <= session.context,
          "%zu tokens do not fit a context of %d; use --context", ids.size(), session.context);

    size_t V = size_t(session.model.config.V);
    size_t piece = rows_together(session.model.config, ids.size());
    std::vector<float> rows(piece * V);
    AtomicFile out(args.output);
    for (size_t at = 0; at < ids.size(); at += piece) {
        size_t n = std::min(piece, ids.size() - at);
        session.transformer->forward(*session.cache, {ids.data() + at, n}, rows.data(), int(n));
        bool nan = std::any_of(rows.begin(), rows.begin() + ptrdiff_t(n * V),
                               [](float z) { return std::isnan(z); });
        if (nan) throw Error(why_not_finite(session.model, *session.cache));
        out.write(rows.data(), n * V * sizeof(float));
    }
    expect_rows_that_fit(session.model, *session.cache);
    session.model.weights.files.check_unchanged();
    out.commit();
    status(args, format("%s: %zu x %zu float32", args.output.c_str(), ids.size(), V));
    return 0;
}

}  // namespace stief
