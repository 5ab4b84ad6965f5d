// Greedy allocation against exact dynamic programming and brute force, on random small instances.
#include <algorithm>
#include <limits>

#include "base/random.h"
#include "calibrate/rank_allocation.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// A curve that falls from 1 to 0 on the whole; noise makes it rise here and there.
RankUnit random_unit(Random& random, int d, int spacing, double noise, int64_t bytes_per_rank) {
    RankUnit unit = {"unit", {}, 0.2 + random.uniform(), bytes_per_rank};
    double decay = 1 + 8 * random.uniform();
    for (int r = 0; r <= d; r += spacing) {
        double error = std::exp(-decay * r / d) - std::exp(-decay);
        unit.curve.push_back({r, std::max(0.0, error + noise * (random.uniform() - 0.5))});
    }
    return unit;
}

int64_t bytes_of(const std::vector<RankUnit>& units, const std::vector<int>& ranks) {
    int64_t bytes = 0;
    for (size_t u = 0; u < units.size(); u++) bytes += units[u].bytes_per_rank * ranks[u];
    return bytes;
}

double error_at(const std::vector<RankPoint>& points, int rank) {
    for (RankPoint p : points)
        if (p.rank == rank) return p.error;
    return NaN;
}

// Σ w Δ on the hulls
double error_of(const std::vector<RankUnit>& units, const std::vector<int>& ranks) {
    double sum = 0;
    for (size_t u = 0; u < units.size(); u++)
        sum += units[u].weight * error_at(lower_hull(units[u]), ranks[u]);
    return sum;
}

// Exact: best[b] = least Σ w Δ with at most b bytes, unit after unit, each at one of its points.
double dynamic_programming(const std::vector<RankUnit>& units, int64_t budget, bool on_hull) {
    std::vector<double> best(size_t(budget) + 1, 0.0);
    for (const RankUnit& unit : units) {
        std::vector<double> next(best.size(), double(INFINITY));
        for (RankPoint p : on_hull ? lower_hull(unit) : unit.curve) {
            size_t cost = size_t(p.rank * unit.bytes_per_rank);
            for (size_t b = cost; b < best.size(); b++)
                next[b] = std::min(next[b], best[b - cost] + unit.weight * p.error);
        }
        best = next;
    }
    return best.back();
}

double brute_force(const std::vector<RankUnit>& units, size_t u, int64_t budget) {
    if (budget < 0) return INFINITY;
    if (u == units.size()) return 0;
    double least = INFINITY;
    for (RankPoint p : lower_hull(units[u]))
        least = std::min(least,
                         units[u].weight * p.error +
                             brute_force(units, u + 1, budget - p.rank * units[u].bytes_per_rank));
    return least;
}

}  // namespace

TEST_SUITE_BEGIN("calibrate");

TEST_CASE("greedy is within one step of exact dynamic programming, and never over budget") {
    Random random(1);
    double worst = 0;  // of (greedy − exact) / step that did not fit
    bool within = true, affordable = true, exact_on_path = true;
    for (int instance = 0; instance < 300; instance++) {
        std::vector<RankUnit> units;
        for (size_t n = 1 + random.below(6), u = 0; u < n; u++)
            units.push_back(random_unit(random, 64, 8, 0.1, int64_t(1 + random.below(5))));
        GreedyPath path = greedy_path(units);
        int64_t full = path.steps.back().bytes;
        for (int trial = 0; trial < 4; trial++) {
            int64_t budget = int64_t(random.below(uint64_t(full) + 1));
            std::vector<int> ranks = allocate_ranks(units, budget);
            size_t n = steps_within(path, budget);
            double got = error_of(units, ranks), step = 0;
            if (n < path.steps.size())
                step = (n ? path.steps[n - 1].error : path.error_at_zero) - path.steps[n].error;
            double gap = got - dynamic_programming(units, budget, true);
            affordable &= bytes_of(units, ranks) <= budget;
            within &= gap <= step + 1e-12;
            within &= got <= dynamic_programming(units, budget, false) + step + 1e-12;
            if (step > 0) worst = std::max(worst, gap / step);
            if (n == 0) continue;
            int64_t spent = path.steps[n - 1].bytes;  // a budget that is used up
            exact_on_path &= std::abs(got - dynamic_programming(units, spent, true)) <= 1e-12;
        }
    }
    CHECK(within);
    CHECK(affordable);
    CHECK(exact_on_path);
    CHECK(worst <= 1);
    MESSAGE("largest gap to the optimum, in steps: " << worst);
}

TEST_CASE("greedy is brute force on the hull where all steps cost the same") {
    Random random(2);
    for (int instance = 0; instance < 50; instance++) {
        std::vector<RankUnit> units;
        for (int u = 0; u < 4; u++) units.push_back(random_unit(random, 16, 2, 0.2, 3));
        for (int64_t budget = 0; budget <= 4 * 16 * 3; budget += 8) {
            CAPTURE(instance);
            CAPTURE(budget);
            double got = error_of(units, allocate_ranks(units, budget));
            CHECK(std::abs(got - brute_force(units, 0, budget)) <= 1e-12);
        }
    }
}

TEST_CASE("ranks nest along the path, and its bytes and errors are those of its ranks") {
    Random random(3);
    std::vector<RankUnit> units;
    for (int u = 0; u < 8; u++) units.push_back(random_unit(random, 64, 8, 0.3, 1 + u % 3));
    GreedyPath path = greedy_path(units);
    std::vector<int> before = ranks_after(path, 0);
    CHECK(before == std::vector<int>(8, 0));
    double error = path.error_at_zero;
    for (size_t n = 1; n <= path.steps.size(); n++) {
        CAPTURE(n);
        std::vector<int> ranks = ranks_after(path, n);
        size_t grown = 0;
        for (size_t u = 0; u < 8; u++) {
            grown += ranks[u] > before[u];
            CHECK(ranks[u] >= before[u]);
            CHECK(ranks[u] % RANK_STEP == 0);
        }
        CHECK(grown == 1);
        CHECK(path.steps[n - 1].bytes == bytes_of(units, ranks));
        CHECK(std::abs(path.steps[n - 1].error - error_of(units, ranks)) <= 1e-12);
        CHECK(path.steps[n - 1].error <= error + 1e-15);
        error = path.steps[n - 1].error;
        before = ranks;
    }
    CHECK(before == std::vector<int>(8, 64));
}

TEST_CASE("budgets at both ends: nothing, too little, everything, more; below zero is an error") {
    Random random(4);
    std::vector<RankUnit> units = {random_unit(random, 16, 4, 0, 2),
                                   random_unit(random, 16, 4, 0, 2)};
    CHECK(allocate_ranks(units, 0) == std::vector<int>{0, 0});
    CHECK(allocate_ranks(units, 7) == std::vector<int>{0, 0});  // a step costs 8
    CHECK(allocate_ranks(units, 64) == std::vector<int>{16, 16});
    CHECK(allocate_ranks(units, int64_t(1) << 60) == std::vector<int>{16, 16});
    CHECK(allocate_ranks({}, 10).empty());
    CHECK_THROWS_WITH_AS(allocate_ranks(units, -1), doctest::Contains("expected at least 0"),
                         Error);
}

TEST_CASE("the hull is convex, falls, lies below the curve and touches its ends") {
    Random random(5);
    for (int spacing : {1, 2, 4, 8, 16}) {
        CAPTURE(spacing);
        RankUnit unit = random_unit(random, 64, spacing, 0.4, 1);
        std::vector<RankPoint> hull = lower_hull(unit);
        REQUIRE(hull.size() == 17);
        CHECK(hull[0].error == unit.curve[0].error);
        double lowest = INFINITY, slope = INFINITY;
        for (RankPoint p : unit.curve) {
            lowest = std::min(lowest, p.error);
            if (p.rank % RANK_STEP == 0) CHECK(error_at(hull, p.rank) <= p.error + 1e-12);
        }
        CHECK(std::abs(hull.back().error - lowest) <= 1e-15);
        for (size_t i = 1; i < hull.size(); i++) {
            CHECK(hull[i].error <= hull[i - 1].error + 1e-15);
            CHECK(hull[i - 1].error - hull[i].error <= slope + 1e-12);
            slope = hull[i - 1].error - hull[i].error;
        }
    }
}

TEST_CASE("grids and widths that are no multiples of 4 still end at the full rank") {
    RankUnit unit = {"odd", {{0, 1.0}, {3, 0.4}, {9, 0.1}, {18, 0.0}}, 1, 1};
    std::vector<RankPoint> hull = lower_hull(unit);
    std::vector<int> ranks;
    for (RankPoint p : hull) ranks.push_back(p.rank);
    CHECK(ranks == std::vector<int>{0, 4, 8, 12, 16, 18});
    CHECK(std::abs(error_at(hull, 4) - 0.35) <= 1e-15);
    CHECK(std::abs(error_at(hull, 12) - 0.1 * 6 / 9) <= 1e-15);
    CHECK(error_at(hull, 18) == 0);
}

TEST_CASE("flat curves wait for the end; equal units grow in turn") {
    RankUnit flat = {"flat", {{0, 0.5}, {8, 0.5}}, 1, 1},
             steep = {"steep", {{0, 1.0}, {8, 0.0}}, 1, 1};
    std::vector<RankUnit> units = {flat, steep, steep};
    GreedyPath path = greedy_path(units);
    const std::vector<int> order = {1, 2, 1, 2, 0, 0};
    REQUIRE(path.steps.size() == order.size());
    for (size_t i = 0; i < order.size(); i++) CHECK(path.steps[i].unit == order[i]);
    units[1].weight = 0;  // what no one needs waits as well
    CHECK(allocate_ranks(units, 8) == std::vector<int>{0, 0, 8});
    CHECK(lower_hull({"one point", {{0, 0.3}}, 1, 1}).size() == 1);
}

TEST_CASE("the path does not depend on anything but its input") {
    Random random(6);
    std::vector<RankUnit> units;
    for (int u = 0; u < 20; u++) units.push_back(random_unit(random, 64, 8, 0, 2));
    for (int u = 0; u < 20; u++) units.push_back(units[size_t(u)]);  // every step has an equal
    GreedyPath a = greedy_path(units), b = greedy_path(units);
    REQUIRE(a.steps.size() == b.steps.size());
    bool same = true, twins = true;
    for (size_t i = 0; i < a.steps.size(); i++) {
        same &= a.steps[i].unit == b.steps[i].unit && a.steps[i].error == b.steps[i].error;
        if (i % 2) twins &= a.steps[i].unit == a.steps[i - 1].unit + 20;  // the lower unit first
    }
    CHECK(same);
    CHECK(twins);
}

TEST_CASE("a malformed unit is an error that names it") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const struct {
        RankUnit unit;
        const char* message;
        const char* why;
    } cases[] = {{{"u", {{0, 1.0}, {8, nan}}, 1, 1}, "u: error nan at rank 8", "NaN"},
                 {{"u", {{0, INFINITY}, {8, 0}}, 1, 1}, "u: error inf at rank 0", "infinity"},
                 {{"u", {{0, 1.0}, {8, -0.1}}, 1, 1}, "u: error -0.1 at rank 8", "negative"},
                 {{"u", {{4, 1.0}, {8, 0.1}}, 1, 1}, "does not begin at rank 0", "no rank 0"},
                 {{"u", {}, 1, 1}, "does not begin at rank 0", "empty"},
                 {{"u", {{0, 1.0}, {8, 0.5}, {8, 0.4}}, 1, 1}, "rank 8 does not ascend", "twice"},
                 {{"u", {{0, 1.0}}, nan, 1}, "u: weight nan", "weight NaN"},
                 {{"u", {{0, 1.0}}, -1, 1}, "u: weight -1", "weight negative"},
                 {{"u", {{0, 1.0}}, 1, 0}, "u: 0 bytes a rank", "free"}};
    for (const auto& c : cases) {
        CAPTURE(c.why);
        CHECK_THROWS_WITH_AS(greedy_path({c.unit}), doctest::Contains(c.message), Error);
        CHECK_THROWS_WITH_AS(lower_hull(c.unit), doctest::Contains(c.message), Error);
    }
}

TEST_SUITE_END();
