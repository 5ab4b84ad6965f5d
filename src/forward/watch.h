// A compressed cache with the whole rows of the same tokens beside it: what the compression loses on
// this context is measured on this context, or is not lost.
//
//   audit   the compressed cache writes; behind the prompt and after every `block` tokens these go
//           through the model once more over whole rows, as one batch: KL(full ‖ compressed) of each
//           step. The whole rows lag behind by up to a block, and are read once a block.
//   exact   the compressed cache drafts up to `block` tokens, one batch over the whole rows verifies
//           them, and both are taken back behind the first that the full cache would not have drawn
//           (speculative decoding: Leviathan et al. 2023). What is given out is drawn from the full
//           cache's logits, computed in the arithmetic of single steps (Transformer::singly): greedy
//           or sampled, the text is what the full cache alone would have written from the same seed.
//
// Rows of the compressed cache stay as the draft wrote them where a draft was right.
#pragma once
#include <memory>

#include "forward/audit_log.h"
#include "forward/generate.h"

namespace stief {

struct WatchOptions {
    bool exact = false;           // else: audit
    int block = 0;                // tokens a block; 0: 32, or, exact, what agreement and times suggest
    enum Cold { Ram, File, Reread } cold = Ram;    // Reread: no rows are kept, audits read the text anew
    std::string file;             // of File
};

struct Drafting {                 // of exact
    int drafted = 0, accepted = 0, rejected = 0;    // the first wrong guess of a draft is rejected
    int verifications = 0, given = 0;               // what lies behind it is neither
    double draft_seconds = 0;
    // Of verifications of T tokens in s seconds, the last ones weighing most: Σ1, ΣT, ΣT², Σs, ΣTs.
    double n = 0, T = 0, TT = 0, s = 0, Ts = 0;
    void add_verification(int tokens, double seconds);
    // Of a draft: what gives most tokens a second, 1 … most. together: Backend::singly_together.
    int best_length(int most, int together = 1) const;
    double agreement() const {
        return accepted + rejected ? double(accepted) / (accepted + rejected) : 1;
    }
};

struct Watch {
    // Tokens of a draft at most, and of a block without --audit. One more are verified, behind the last
    // that was given, in one pass (Backend::most_singly).
    static constexpr int MOST = 32;

    Transformer& transformer;
    KvCache& cache;               // the compressed one
    WatchOptions options;         // exact and block may change between calls where whole rows are kept;
                                  // exact drafts no more than MOST, whatever block says
    AuditLog log;                 // of audit
    Drafting drafting;            // of exact
    std::vector<Token> ids;       // (cache.used)  what the caches hold
    std::unique_ptr<KvCache> whole;    // the whole rows; null between audits where they are not kept
    std::string lost;             // why there are no whole rows any more; "": there are. Then there is
                                  // nothing to audit with, and the watch is to be left alone

    // Error where the whole rows do not fit. usual: of the compressed cache's bases.
    Watch(Transformer& pass, KvCache& compressed, const WatchOptions& how, RiskLevels usual);

    // The part of a prompt that is not its end: into the caches, nothing is asked.
    void feed(std::span<const Token> more);
    // As generate() has it. Error where exact loses its whole rows: what was given out is the full
    // cache's, what follows could not be verified. An audit goes on writing, and says no more.
    Generated generate(Sampler& sampler, std::span<const Token> prompt, int limit,
                       std::span<const Token> ends, const std::function<bool(Token)>& sink);
    // The cache holds these now: it was taken back, emptied or loaded.
    void hold(std::span<const Token> now);

    // The whole rows hold these now, and the compressed cache reads them.
    void hold_whole(std::span<const Token> now);

    size_t whole_bytes() const;   // of the whole rows, as they are kept
    // What a block's logits need beside a session without a watch; the whole rows come on top.
    static size_t logits_bytes_for(const Config& config, const WatchOptions& how);

  private:
    Buffer drafted, full;              // (block, V), full of exact (block + 1, V): logits over compressed
                                       // and over whole rows
    // Of exact, for each row of `full`: which token it makes most likely, on the backend and here; or, where
    // tokens are drawn, the rows themselves.
    Buffer likeliest;                  // (block + 1)
    std::vector<Token> found;          // (block + 1)
    std::vector<float> rows;           // (block + 1, V)

    int block() const;
    bool lose_rows();             // notices whether they are lost
    void expect_rows();           // Error where they are
    int suggested() const;
    void make_verified(bool greedy);
    void make_logits();
    void make_room(Buffer& buffer, size_t bytes, const char* what);
    void make_whole();
    void catch_up(int until);
    void audit(int first, std::span<const Token> drawn);
    Generated generate_audited(Sampler& sampler, std::span<const Token> prompt, int limit,
                               std::span<const Token> ends, const std::function<bool(Token)>& sink);
    Generated generate_exact(Sampler& sampler, std::span<const Token> prompt, int limit,
                             std::span<const Token> ends, const std::function<bool(Token)>& sink);
    std::vector<Token> draft(const Sampler& sampler, int most, std::span<const Token> ends);
    std::vector<Token> draft_drawn(const Sampler& sampler, int most, std::span<const Token> ends);
    std::vector<Token> draft_greedy(int most, std::span<const Token> ends);
    void verify(const std::vector<Token>& guesses, bool greedy);
    void feed_whole(std::span<const Token> more, int wanted, bool greedy);
    Token next(Sampler& sampler, size_t at);
    Token pick(Sampler& sampler, std::span<float> logits, const KvCache& from);
};

}  // namespace stief
