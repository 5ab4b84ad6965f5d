#include "forward/audit_log.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/check.h"
#include "base/json_writer.h"

namespace stief {

int AuditLog::audited() const {
    int sum = 0;
    for (const AuditedBlock& one : blocks) sum += one.tokens;
    return sum;
}

int AuditLog::written(int from) const {
    int sum = 0;
    for (const AuditedBlock& one : blocks)
        if (one.first + one.tokens >= from) sum += one.written;
    return sum;
}

double AuditLog::mean() const {
    double sum = 0;
    for (const AuditedBlock& one : blocks) sum += one.mean * one.tokens;
    return blocks.empty() ? 0 : sum / audited();
}

// Steps of one block depend on one another; blocks are taken for independent, weighted by tokens.
double AuditLog::standard_error() const {
    size_t n = blocks.size();
    if (n < 2) return 0;
    double squares = 0, all = audited(), about = mean();
    for (const AuditedBlock& one : blocks) {
        double deviation = one.tokens * (one.mean - about);
        squares += deviation * deviation;
    }
    return std::sqrt(squares * double(n) / double(n - 1)) / all;
}

double AuditLog::same_top() const {
    int same = 0;
    for (const AuditedBlock& one : blocks) same += one.same_top;
    return blocks.empty() ? 1 : double(same) / audited();
}

const AuditedBlock* AuditLog::worst() const {
    auto less = [](const AuditedBlock& a, const AuditedBlock& b) { return a.mean < b.mean; };
    auto found = std::max_element(blocks.begin(), blocks.end(), less);
    return found == blocks.end() ? nullptr : &*found;
}

const RiskLevel* AuditLog::level_of(const AuditedBlock& one) const {
    const RiskLevel* best = nullptr;
    for (const RiskLevel& level : levels.blocks)
        if (level.block <= one.tokens) best = &level;
    return best;
}

bool AuditLog::above(const AuditedBlock& one) const {
    const RiskLevel* level = level_of(one);
    return level && one.mean > level->largest;
}

int AuditLog::count_above() const {
    auto is_above = [&](const AuditedBlock& one) { return above(one); };
    return int(std::count_if(blocks.begin(), blocks.end(), is_above));
}

// P(at least k of n) where each has probability q.
static double binomial_tail(int n, int k, double q) {
    double below = 0, log_term = n * std::log1p(-q);    // of 0; e^ of it may be no number any more
    for (int i = 0; i < k; i++) {
        below += std::exp(log_term);
        log_term += std::log(double(n - i) / double(i + 1) * q / (1 - q));
    }
    return 1 - below;
}

// Ranks of order statistics: the decile is the ⌈0.9 M⌉-th, the largest the M-th.
static int decile_rank(int blocks) {
    return (9 * blocks + 9) / 10;
}

AuditLog::Verdict AuditLog::verdict() const {
    if (levels.blocks.empty()) return Verdict::NoLevel;
    double q_decile = 0, q_largest = 0;    // of the level with the fewest blocks, the least sure
    int n = 0, over_decile = 0;
    for (const AuditedBlock& one : blocks) {
        const RiskLevel* level = level_of(one);
        if (!level) continue;
        n++, over_decile += one.mean > level->decile;
        double M = level->blocks;
        q_decile = std::max(q_decile, (M + 1 - decile_rank(level->blocks)) / (M + 1));
        q_largest = std::max(q_largest, 1 / (M + 1));
    }
    auto improbable = [&](int k, double q) { return k > 0 && binomial_tail(n, k, q) < 0.01; };
    bool left = improbable(count_above(), q_largest) || improbable(over_decile, q_decile) ||
                too_many_flagged();
    return left ? Verdict::Above : Verdict::Usual;
}

void AuditLog::look_at(int position, int32_t given, int32_t full, double swing) {
    blocks.back().written++;
    bool far = swing > levels.flags.of(greedy).swing;
    if (given != full && (greedy || far)) departures.push_back({position, given, full, swing, far});
}

int AuditLog::flagged(int from) const {
    auto counts = [&](const Departure& one) { return one.flagged && one.position >= from; };
    return int(std::count_if(departures.begin(), departures.end(), counts));
}

const Departure* AuditLog::worst_flagged(int from) const {
    const Departure* worst = nullptr;
    for (const Departure& one : departures)
        if (one.flagged && one.position >= from && (!worst || one.swing > worst->swing)) worst = &one;
    return worst;
}

bool AuditLog::too_many_flagged(int from) const {
    int many = flagged(from);
    return many > 0 && binomial_tail(written(from), many, levels.flags.of(greedy).rate) < 0.02;
}

std::string AuditLog::line() const {
    if (blocks.empty()) return format("0 of %d positions audited", positions);
    const AuditedBlock& most = *worst();
    std::string text = format(
        "%d of %d positions audited: KL %.3g ± %.2g nats, worst block %.3g (positions %d to %d), same "
        "top token %.1f%%; ",
        audited(), positions, mean(), standard_error(), most.mean, most.first,
        most.first + most.tokens - 1, 100 * same_top());
    if (written() > 0)
        text += format("of %d tokens %s%d flagged (%.2g%% are usual%s); ", written(),
                       greedy ? format("%zu are not the full cache's, ", departures.size()).c_str() : "",
                       flagged(), 100 * levels.flags.of(greedy).rate,
                       levels.flags.tokens ? "" : ", assumed");
    if (levels.blocks.empty()) return text + "no level stored";
    const char* all = verdict() == Verdict::Above ? "this context loses more than calibration's texts"
                                                  : "as much as calibration's texts";
    return text + format("%d of %zu blocks above all of calibration's; %s", count_above(),
                         blocks.size(), all);
}

void AuditLog::take_back(int used) {
    positions = std::min(positions, used);
    int from = used;    // a block that goes takes what was found in it along, and what it looked at
    for (const AuditedBlock& one : blocks)
        if (one.first + one.tokens > used) from = std::min(from, one.first + 1);
    std::erase_if(blocks, [&](const AuditedBlock& one) { return one.first + one.tokens > used; });
    for (AuditedBlock& one : blocks)    // of what lies at `used` the prediction is left, and no token
        if (one.first + one.tokens == used) one.written = std::min(one.written, one.tokens - 1);
    std::erase_if(departures, [&](const Departure& one) { return one.position >= from; });
}

std::string risk_levels(std::span<const float> divergence, size_t stretch) {
    JsonWriter json;
    json.begin_object();
    for (size_t block = 1; block <= 128 && block <= stretch; block *= 2) {
        std::vector<double> means;
        for (size_t begin = 0; begin < divergence.size(); begin += stretch) {
            size_t end = std::min(begin + stretch, divergence.size());
            for (size_t at = begin; at + block <= end; at += block) {
                double sum = 0;
                for (size_t i = at; i < at + block; i++) sum += double(divergence[i]);
                means.push_back(sum / double(block));
            }
        }
        if (means.empty()) continue;
        std::sort(means.begin(), means.end());
        json.begin_array(std::to_string(block)).add("", means.size());
        json.add("", means[size_t(decile_rank(int(means.size()))) - 1]).add("", means.back());
        json.end_array();
    }
    return json.end_object().text;
}

// [swing, how many of them exceed it]
static void add_flag_level(JsonWriter& json, const char* key, std::vector<float> swings) {
    size_t few = swings.size() / size_t(FlagLevels::ONE_IN);
    std::sort(swings.begin(), swings.end());
    double swing = std::clamp(double(swings[swings.size() - 1 - few]), 0.0, FlagLevel().swing);
    auto flagged = swings.end() - std::upper_bound(swings.begin(), swings.end(), swing);
    json.begin_array(key).add("", swing).add("", size_t(flagged)).end_array();
}

std::string risk_flags(std::span<const float> swing, std::span<const float> drawn) {
    check(!swing.empty() && !drawn.empty(), "no held-out tokens to learn from what is flagged");
    JsonWriter json;
    json.begin_object().add("tokens", swing.size());
    add_flag_level(json, "greedy", {swing.begin(), swing.end()});
    add_flag_level(json, "drawn", {drawn.begin(), drawn.end()});
    return json.end_object().text;
}

static FlagLevels flag_levels(const std::map<std::string, std::string>& metadata) {
    FlagLevels levels;
    auto found = metadata.find("risk_flags");
    if (found == metadata.end()) return levels;
    std::string where = "risk_flags of the bases";
    Json stored = Json::parse(found->second, where);
    const Json* tokens = stored.find("tokens");
    check(tokens, "%s: no \"tokens\"", where.c_str());
    levels.tokens = int(tokens->integer(where, 1, 1 << 30));
    for (bool greedy : {true, false}) {
        const Json* one = stored.find(greedy ? "greedy" : "drawn");
        check(one && one->items.size() == 2, "%s: a level is a swing and a number of tokens",
              where.c_str());
        FlagLevel& level = greedy ? levels.greedy : levels.drawn;
        level.swing = one->items[0].number(where);
        level.rate = double(one->items[1].integer(where, 0, levels.tokens) + 1) / (levels.tokens + 1);
    }
    return levels;
}

RiskLevels risk_levels(const std::map<std::string, std::string>& metadata) {
    RiskLevels levels{{}, flag_levels(metadata)};
    auto found = metadata.find("risk_levels");
    if (found == metadata.end()) return levels;
    std::string where = "risk_levels of the bases";
    Json stored = Json::parse(found->second, where);
    for (const Json::Member& one : stored.members) {
        int tokens = std::atoi(one.key.c_str());
        int last = levels.blocks.empty() ? 0 : levels.blocks.back().block;
        check(tokens > last && one.value.items.size() == 3,
              "%s: \"%.20s\" is no block's level", where.c_str(), one.key.c_str());
        levels.blocks.push_back({tokens, int(one.value.items[0].integer(where, 1, 1 << 30)),
                                 one.value.items[1].number(where), one.value.items[2].number(where)});
    }
    return levels;
}

}  // namespace stief
