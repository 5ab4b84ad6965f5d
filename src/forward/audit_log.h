// What audits of a text found: the divergence KL(full ‖ compressed) of blocks of its tokens, as a
// sample of the whole text's; and what is usual, from blocks of text that calibration held out.
//
// And which tokens it would not have written itself: greedy, those that are not its most likely. Many
// of these are near ties, which fall either way. Flagged are those whose swing (RowScore) exceeds that
// of one in a hundred of calibration's held-out tokens, or half a nat where that is less: there the
// compression moved the token's odds against what the full cache likes best by a factor of 1.65. A text
// has too many where as many would have a probability below 2 % (binomial) at the held-out rate.
//
// A level is an order statistic of M usual blocks' means, which asks nothing of their distribution:
// another usual block exceeds the largest with a probability of 1 / (M + 1), the upper decile with
// one of a tenth. There are two for each length of blocks, as short ones spread more. A text is said
// to leave its level where as many blocks as do exceed either would have a probability below 1 %
// (binomial) if all were usual: by a few blocks that lose much, or by many that lose more.
#pragma once
#include <map>
#include <span>
#include <string>
#include <vector>

namespace stief {

struct AuditedBlock {
    int first = 0, tokens = 0;    // positions whose predictions were compared
    double mean = 0;              // of KL, nats
    int same_top = 0;             // predictions where both like the same token best
    int written = 0;              // predictions that a token was drawn from
};

struct RiskLevel {
    int block = 0;                // tokens
    int blocks = 0;               // M
    double decile = 0, largest = 0;    // of the blocks' means
};
struct FlagLevel {
    double swing = 0.5;           // nats: what is beyond is flagged
    double rate = 0.01;           // of usual tokens that are; assumed where nothing is stored
};
struct FlagLevels {
    static constexpr int ONE_IN = 100;
    int tokens = 0;               // that calibration held out; 0: nothing is stored
    FlagLevel greedy, drawn;      // where the most likely token is taken, and where one is drawn
    const FlagLevel& of(bool is_greedy) const { return is_greedy ? greedy : drawn; }
};
struct RiskLevels {
    std::vector<RiskLevel> blocks;    // by tokens, ascending; empty: nothing is known
    FlagLevels flags;
};

struct Departure {                // a token that the full cache would not have written there
    int position = 0;
    int32_t given = -1, full = -1;    // ids: what was written, and what the full cache likes best
    double swing = 0;             // nats
    bool flagged = false;
};

struct AuditLog {
    enum class Verdict { NoLevel, Usual, Above };
    RiskLevels levels;
    std::vector<AuditedBlock> blocks;
    bool greedy = true;           // how tokens are drawn
    std::vector<Departure> departures;    // in order of positions
    int positions = 0;            // that were fed, audited or not

    int audited() const;
    int written(int from = 0) const;    // tokens that were looked at, of positions >= from
    double mean() const;          // over audited positions
    double standard_error() const;    // from the spread of blocks; 0 of fewer than two
    double same_top() const;
    const AuditedBlock* worst() const;
    // Of the longest stored block that is no longer: its level holds for longer ones too, whose means
    // spread less. Null where there is none.
    const RiskLevel* level_of(const AuditedBlock& one) const;
    bool above(const AuditedBlock& one) const;    // the largest; false where there is no level
    int count_above() const;
    // A token that a prediction of the last block gave. full: what the full cache likes best there.
    void look_at(int position, int32_t given, int32_t full, double swing);
    int flagged(int from = 0) const;    // of positions >= from
    const Departure* worst_flagged(int from = 0) const;    // null: there is none
    bool too_many_flagged(int from = 0) const;
    Verdict verdict() const;
    std::string line() const;     // all of it, for a person
    void take_back(int positions);    // forgets what lies behind them, and blocks that begin before it
};

// The levels that a bases file carries in its metadata, under "risk_levels":
//     {"1": [blocks, decile, largest], "2": …, "128": …}
// divergence: of each held-out position, in order; stretch: positions that follow one another.
std::string risk_levels(std::span<const float> divergence, size_t stretch);
// Under "risk_flags", {"tokens": n, "greedy": [swing, flagged], "drawn": [swing, flagged]}, of held-out
// tokens. swing: of what greedy decoding would write; drawn: of the text's own, which are as if drawn.
std::string risk_flags(std::span<const float> swing, std::span<const float> drawn);
// Empty where nothing is stored. Error where it is damaged.
RiskLevels risk_levels(const std::map<std::string, std::string>& metadata);

}  // namespace stief
