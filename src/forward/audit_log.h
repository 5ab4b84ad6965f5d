// What audits of a text found: the divergence KL(full ‖ compressed) of blocks of its tokens, as a
// sample of the whole text's; and what is usual, from blocks of text that calibration held out.
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
    double mean = 0, max = 0;     // of KL, nats
    int same_top = 0;             // predictions where both like the same token best
};

struct RiskLevel {
    int block = 0;                // tokens
    int blocks = 0;               // M
    double decile = 0, largest = 0;    // of the blocks' means
};
using RiskLevels = std::vector<RiskLevel>;    // by tokens, ascending; empty: nothing is known

struct AuditLog {
    enum class Verdict { NoLevel, Usual, Above };
    RiskLevels levels;
    std::vector<AuditedBlock> blocks;
    int positions = 0;            // that were fed, audited or not

    int audited() const;
    double mean() const;          // over audited positions
    double standard_error() const;    // from the spread of blocks; 0 of fewer than two
    double same_top() const;
    const AuditedBlock* worst() const;
    // Of the longest stored block that is no longer: its level holds for longer ones too, whose means
    // spread less. Null where there is none.
    const RiskLevel* level_of(const AuditedBlock& one) const;
    bool above(const AuditedBlock& one) const;    // the largest; false where there is no level
    int count_above() const;
    Verdict verdict() const;
    std::string line() const;     // all of it, for a person
    void take_back(int positions);    // forgets what lies behind them
};

// The levels that a bases file carries in its metadata, under "risk_levels":
//     {"1": [blocks, decile, largest], "2": …, "128": …}
// divergence: of each held-out position, in order; stretch: positions that follow one another.
std::string risk_levels(std::span<const float> divergence, size_t stretch);
// Empty where nothing is stored. Error where it is damaged.
RiskLevels risk_levels(const std::map<std::string, std::string>& metadata);

}  // namespace stief
