#include "calibrate/allocation.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "base/check.h"

namespace stief {

static double drop_a_byte(const Choice& from, const Choice& to) {
    return (from.error - to.error) / double(to.bytes - from.bytes);
}

Choices lower_hull(const Choices& choices) {
    Choices hull;
    for (const Choice& one : choices) {
        check(std::isfinite(one.error),
              "the price of a format is not finite: the checkpoint is "
              "damaged, or the text has nothing to learn from");
        if (!hull.empty() && one.error >= hull.back().error) continue;
        while (hull.size() > 1 &&
               drop_a_byte(hull.back(), one) >= drop_a_byte(hull[hull.size() - 2], hull.back()))
            hull.pop_back();
        hull.push_back(one);
    }
    return hull;
}

Choices rank_choices(const std::vector<RankPoint>& curve, double weight, DType dtype) {
    check(!curve.empty() && curve[0].rank == 0, "a curve of errors does not begin at rank 0");
    Choices points;  // of the running minimum
    double lowest = INFINITY;
    for (const RankPoint& p : curve) {
        check(std::isfinite(p.error) && p.error >= 0, "error %g at rank %d, expected a number >= 0",
              p.error, p.rank);
        check(points.empty() || p.rank > points.back().format.kept(),
              "a curve of errors: rank %d does not ascend", p.rank);
        lowest = std::min(lowest, p.error);
        RowFormat format = RowFormat::whole(p.rank);
        points.push_back({format.bytes(dtype), lowest, format});
    }
    Choices hull = lower_hull(points), all;
    if (hull.back().format.kept() < curve.back().rank) hull.push_back(points.back());  // flat
    size_t edge = 0;  // hull[edge] … hull[edge + 1]
    for (int rank = 0, last = curve.back().rank;; rank = std::min(rank + RANK_STEP, last)) {
        while (edge + 1 < hull.size() && hull[edge + 1].format.kept() < rank) edge++;
        double error = hull[0].error;
        if (rank > 0) {
            const Choice &a = hull[edge], &b = hull[edge + 1];
            double along = double(rank - a.format.kept()) / (b.format.kept() - a.format.kept());
            error = (1 - along) * a.error + along * b.error;  // ≥ 0 in spite of rounding
        }
        RowFormat format = RowFormat::whole(rank);
        all.push_back({format.bytes(dtype), weight * error, format});
        if (rank == last) return all;
    }
}

std::vector<size_t> choose_within(const std::vector<Choices>& hulls, size_t budget) {
    std::vector<size_t> at(hulls.size());
    size_t bytes = 0;
    struct Step {
        double drop;
        size_t bytes, unit;  // of the unit before the step
        bool operator<(const Step& other) const {  // the queue's top is the largest
            if (drop != other.drop) return drop < other.drop;
            return std::pair(bytes, unit) > std::pair(other.bytes, other.unit);
        }
    };
    std::priority_queue<Step> steps;
    auto offer = [&](size_t u) {
        if (at[u] + 1 < hulls[u].size())
            steps.push({drop_a_byte(hulls[u][at[u]], hulls[u][at[u] + 1]), hulls[u][at[u]].bytes, u});
    };
    for (size_t u = 0; u < hulls.size(); u++) bytes += hulls[u][0].bytes, offer(u);
    while (!steps.empty()) {
        size_t u = steps.top().unit;
        steps.pop();
        size_t more = hulls[u][at[u] + 1].bytes - hulls[u][at[u]].bytes;
        if (bytes + more > budget) continue;  // a smaller step of another unit may still fit
        bytes += more, at[u]++;
        offer(u);
    }
    return at;
}

}  // namespace stief
