#include "calibrate/allocation.h"

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

std::vector<size_t> choose_within(const std::vector<Choices>& hulls, size_t budget) {
    std::vector<size_t> at(hulls.size());
    size_t bytes = 0;
    struct Step {
        double drop;
        size_t unit;
        bool operator<(const Step& other) const {
            return drop != other.drop ? drop < other.drop : unit > other.unit;
        }
    };
    std::priority_queue<Step> steps;
    auto offer = [&](size_t u) {
        if (at[u] + 1 < hulls[u].size())
            steps.push({drop_a_byte(hulls[u][at[u]], hulls[u][at[u] + 1]), u});
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
