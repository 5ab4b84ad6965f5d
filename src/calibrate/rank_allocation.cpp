// Convex hulls and the greedy path along them: README.md §5.
#include "calibrate/rank_allocation.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <queue>

#include "base/check.h"

namespace stief {

namespace {

void check_unit(const RankUnit& unit) {
    const char* name = unit.name.c_str();
    check(unit.bytes_per_rank > 0, "%s: %lld bytes a rank, expected more than 0", name,
          (long long)unit.bytes_per_rank);
    check(unit.weight >= 0 && std::isfinite(unit.weight), "%s: weight %g, expected a number >= 0",
          name, unit.weight);
    check(!unit.curve.empty() && unit.curve[0].rank == 0, "%s: its curve does not begin at rank 0",
          name);
    for (size_t i = 0; i < unit.curve.size(); i++) {
        const RankPoint& p = unit.curve[i];
        check(i == 0 || p.rank > unit.curve[i - 1].rank, "%s: rank %d does not ascend", name,
              p.rank);
        check(p.error >= 0 && std::isfinite(p.error),
              "%s: error %g at rank %d, expected a number >= 0", name, p.error, p.rank);
    }
}

// The corners of the hull (Andrew 1979, the lower chain).
std::vector<RankPoint> corners(const std::vector<RankPoint>& curve) {
    std::vector<RankPoint> hull;
    double lowest = curve[0].error;
    for (RankPoint p : curve) {
        p.error = lowest = std::min(lowest, p.error);
        while (hull.size() >= 2) {
            const RankPoint &a = hull[hull.size() - 2], &b = hull.back();
            bool below =
                (b.error - a.error) * (p.rank - a.rank) < (p.error - a.error) * (b.rank - a.rank);
            if (below) break;
            hull.pop_back();
        }
        hull.push_back(p);
    }
    return hull;
}

// A piece of a hull between two allowed ranks.
struct HullStep {
    int rank;      // after it
    double error;  // after it
    double slope;  // drop of error a rank; the same double along one edge, so that ties are ties
};

std::vector<HullStep> hull_steps(const RankUnit& unit) {
    std::vector<RankPoint> hull = corners(unit.curve);
    std::vector<HullStep> steps;
    RankPoint from = hull[0];
    size_t edge = 0;  // hull[edge] … hull[edge + 1]
    for (int last = hull.back().rank; from.rank < last;) {
        int rank = std::min(from.rank + RANK_STEP, last);
        bool whole = rank <= hull[edge + 1].rank;  // both ends on one edge
        while (hull[edge + 1].rank < rank) edge++;
        const RankPoint &a = hull[edge], &b = hull[edge + 1];
        double slope = (a.error - b.error) / (b.rank - a.rank);
        double along = double(rank - a.rank) / (b.rank - a.rank);
        double error = (1 - along) * a.error + along * b.error;  // ≥ 0 in spite of rounding
        if (!whole) slope = (from.error - error) / (rank - from.rank);
        if (!steps.empty()) slope = std::min(slope, steps.back().slope);  // convex, rounding or not
        steps.push_back({rank, error, slope});
        if (rank == b.rank && rank < last) edge++;
        from = {rank, error};
    }
    return steps;
}

// The next step of a unit, as it stands in the queue.
struct Candidate {
    double drop_per_byte;
    int rank, unit;
    bool operator<(const Candidate& other) const {  // the queue's top is the largest
        if (drop_per_byte != other.drop_per_byte) return drop_per_byte < other.drop_per_byte;
        if (rank != other.rank) return rank > other.rank;
        return unit > other.unit;
    }
};

}  // namespace

std::vector<RankPoint> lower_hull(const RankUnit& unit) {
    check_unit(unit);
    std::vector<RankPoint> points = {unit.curve[0]};
    for (const HullStep& step : hull_steps(unit)) points.push_back({step.rank, step.error});
    return points;
}

GreedyPath greedy_path(const std::vector<RankUnit>& units) {
    GreedyPath path;
    path.units = units.size();
    std::vector<std::vector<HullStep>> steps;
    std::priority_queue<Candidate> queue;
    auto offer = [&](int u, size_t next) {
        if (next == steps[size_t(u)].size()) return;
        const RankUnit& unit = units[size_t(u)];
        const HullStep& step = steps[size_t(u)][next];
        queue.push({unit.weight * step.slope / double(unit.bytes_per_rank), step.rank, u});
    };
    for (const RankUnit& unit : units) {
        check_unit(unit);
        steps.push_back(hull_steps(unit));
        path.error_at_zero += unit.weight * unit.curve[0].error;
        offer(int(steps.size()) - 1, 0);
    }

    std::vector<size_t> taken(units.size());
    int64_t bytes = 0;
    double error = path.error_at_zero;
    while (!queue.empty()) {
        int u = queue.top().unit;
        queue.pop();
        const RankUnit& unit = units[size_t(u)];
        size_t next = taken[size_t(u)]++;
        const HullStep& step = steps[size_t(u)][next];
        RankPoint before = {0, unit.curve[0].error};
        if (next > 0) before = {steps[size_t(u)][next - 1].rank, steps[size_t(u)][next - 1].error};
        bytes += (step.rank - before.rank) * unit.bytes_per_rank;
        error = std::max(0.0, error - unit.weight * (before.error - step.error));
        path.steps.push_back({u, step.rank, bytes, error});
        offer(u, next + 1);
    }
    return path;
}

size_t steps_within(const GreedyPath& path, int64_t budget) {
    check(budget >= 0, "budget: %lld bytes, expected at least 0", (long long)budget);
    auto fits = [&](const GreedyStep& step) { return step.bytes <= budget; };
    auto end = std::partition_point(path.steps.begin(), path.steps.end(), fits);
    return size_t(end - path.steps.begin());
}

std::vector<int> ranks_after(const GreedyPath& path, size_t steps) {
    assert(steps <= path.steps.size());
    std::vector<int> ranks(path.units);
    for (size_t i = 0; i < steps; i++) ranks[size_t(path.steps[i].unit)] = path.steps[i].rank;
    return ranks;
}

std::vector<int> allocate_ranks(const std::vector<RankUnit>& units, int64_t budget) {
    GreedyPath path = greedy_path(units);
    return ranks_after(path, steps_within(path, budget));
}

}  // namespace stief
