// Greedy allocation against exact dynamic programming and brute force, on random small instances.
#include "calibrate/allocation.h"

#include <algorithm>
#include <limits>

#include "base/random.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

using Curve = std::vector<RankPoint>;

// A curve that falls from 1 to 0 on the whole; noise makes it rise here and there.
Curve random_curve(Random& random, int d, int spacing, double noise) {
    Curve curve;
    double decay = 1 + 8 * random.uniform();
    for (int r = 0; r <= d; r += spacing) {
        double error = std::exp(-decay * r / d) - std::exp(-decay);
        curve.push_back({r, std::max(0.0, error + noise * (random.uniform() - 0.5))});
    }
    return curve;
}

// A list of choices whose error falls as bytes rise, not convex in general.
Choices some_choices(Random& random) {
    Choices all = {{0, 10 + 10 * random.uniform(), {}}};
    for (int n = 0; n < 4; n++)
        all.push_back({all.back().bytes + 1 + random.below(4),
                       all.back().error * (0.3 + 0.7 * random.uniform()),
                       {}});
    return all;
}

struct Sum {
    size_t bytes = 0;
    double error = 0;
};
Sum sum_of(const std::vector<Choices>& hulls, const std::vector<size_t>& at) {
    Sum sum;
    for (size_t u = 0; u < hulls.size(); u++)
        sum.bytes += hulls[u][at[u]].bytes, sum.error += hulls[u][at[u]].error;
    return sum;
}

// Exact: best[b] = least Σ error with at most b bytes, unit after unit.
double dynamic_programming(const std::vector<Choices>& hulls, size_t budget) {
    std::vector<double> best(budget + 1, 0.0);
    for (const Choices& unit : hulls) {
        std::vector<double> next(best.size(), double(INFINITY));
        for (const Choice& one : unit)
            for (size_t b = one.bytes; b < best.size(); b++)
                next[b] = std::min(next[b], best[b - one.bytes] + one.error);
        best = next;
    }
    return best.back();
}

double largest_step(const std::vector<Choices>& hulls) {
    double step = 0;
    for (const Choices& hull : hulls)
        for (size_t i = 1; i < hull.size(); i++)
            step = std::max(step, hull[i - 1].error - hull[i].error);
    return step;
}

double error_at(const Choices& choices, int rank) {
    for (const Choice& one : choices)
        if (one.format.kept() == rank) return one.error;
    return NaN;
}

}  // namespace

TEST_SUITE_BEGIN("calibrate");

TEST_CASE("greedy is within one step of exact dynamic programming, and never over budget") {
    Random random(1);
    bool within = true, affordable = true;
    for (int instance = 0; instance < 300; instance++) {
        std::vector<Choices> ranks, formats;
        for (size_t n = 1 + random.below(6), u = 0; u < n; u++) {
            double weight = 0.2 + random.uniform();
            ranks.push_back(rank_choices(random_curve(random, 64, 8, 0.1), weight, DType::F16));
            formats.push_back(lower_hull(some_choices(random)));
        }
        for (const auto& hulls : {ranks, formats})
            for (int trial = 0; trial < 4; trial++) {
                size_t full = 0;
                for (const Choices& hull : hulls) full += hull.back().bytes;
                size_t budget = random.below(full + 1);
                Sum got = sum_of(hulls, choose_within(hulls, budget));
                affordable &= got.bytes <= budget;
                double best = dynamic_programming(hulls, budget);
                within &= got.error <= best + largest_step(hulls) + 1e-12;
            }
    }
    CHECK(within);
    CHECK(affordable);
}

TEST_CASE("greedy is the optimum on the hulls where all steps cost the same") {
    Random random(2);
    for (int instance = 0; instance < 50; instance++) {
        std::vector<Choices> hulls;
        for (int u = 0; u < 4; u++)
            hulls.push_back(rank_choices(random_curve(random, 16, 2, 0.2), 1, DType::F16));
        for (size_t budget = 0; budget <= 4 * 16 * 2; budget += 8) {
            CAPTURE(instance);
            CAPTURE(budget);
            double got = sum_of(hulls, choose_within(hulls, budget)).error;
            CHECK(std::abs(got - dynamic_programming(hulls, budget)) <= 1e-12);
        }
    }
}

TEST_CASE("more bytes never take anything from a unit where all steps cost the same") {
    Random random(3);
    std::vector<Choices> hulls;
    for (int u = 0; u < 8; u++)
        hulls.push_back(rank_choices(random_curve(random, 64, 8, 0.3), 1, DType::F16));
    std::vector<size_t> before = choose_within(hulls, 0);
    CHECK(before == std::vector<size_t>(8, 0));
    for (size_t budget = 0; budget <= 8 * 64 * 2; budget += 8) {
        std::vector<size_t> at = choose_within(hulls, budget);
        for (size_t u = 0; u < 8; u++) CHECK(at[u] >= before[u]);
        before = at;
    }
    for (size_t u = 0; u < 8; u++) CHECK(hulls[u][before[u]].format.kept() == 64);
}

TEST_CASE("budgets at both ends: nothing, too little, everything, more") {
    Random random(4);
    Choices one = rank_choices(random_curve(random, 16, 4, 0), 1, DType::F16);
    std::vector<Choices> hulls = {one, one};
    CHECK(choose_within(hulls, 0) == std::vector<size_t>{0, 0});
    CHECK(choose_within(hulls, 7) == std::vector<size_t>{0, 0});  // a step costs 8
    CHECK(choose_within(hulls, 64) == std::vector<size_t>{4, 4});
    CHECK(choose_within(hulls, size_t(1) << 60) == std::vector<size_t>{4, 4});
    CHECK(choose_within({}, 10).empty());
}

TEST_CASE("the hull is convex, falls, lies below the curve and touches its ends") {
    Random random(5);
    for (int spacing : {1, 2, 4, 8, 16}) {
        CAPTURE(spacing);
        Curve curve = random_curve(random, 64, spacing, 0.4);
        Choices hull = rank_choices(curve, 1, DType::F16);
        REQUIRE(hull.size() == 17);
        CHECK(hull[0].error == curve[0].error);
        double lowest = INFINITY, slope = INFINITY;
        for (RankPoint p : curve) {
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
    Choices hull = rank_choices({{0, 1.0}, {3, 0.4}, {9, 0.1}, {18, 0.0}}, 1, DType::F16);
    std::vector<int> ranks;
    for (const Choice& one : hull) ranks.push_back(one.format.kept());
    CHECK(ranks == std::vector<int>{0, 4, 8, 12, 16, 18});
    CHECK(std::abs(error_at(hull, 4) - 0.35) <= 1e-15);
    CHECK(std::abs(error_at(hull, 12) - 0.1 * 6 / 9) <= 1e-15);
    CHECK(error_at(hull, 18) == 0);
}

TEST_CASE("flat curves wait for the end; equal units grow in turn; what no one needs waits") {
    auto choices = [](double last, double weight) {
        return rank_choices({{0, last + 0.5}, {8, last}}, weight, DType::F16);
    };
    Choices flat = rank_choices({{0, 0.5}, {8, 0.5}}, 1, DType::F16), steep = choices(0, 1);
    std::vector<Choices> hulls = {flat, steep, steep};
    CHECK(choose_within(hulls, 8) == std::vector<size_t>{0, 1, 0});
    CHECK(choose_within(hulls, 16) == std::vector<size_t>{0, 1, 1});
    CHECK(choose_within(hulls, 32) == std::vector<size_t>{0, 2, 2});
    CHECK(choose_within(hulls, 48) == std::vector<size_t>{2, 2, 2});
    hulls[1] = choices(0, 0);
    CHECK(choose_within(hulls, 16) == std::vector<size_t>{0, 0, 2});
    CHECK(rank_choices({{0, 0.3}}, 1, DType::F16).size() == 1);
}

TEST_CASE("a malformed curve is an error that says what is wrong") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const struct {
        Curve curve;
        const char* message;
    } cases[] = {{{{0, 1.0}, {8, nan}}, "error nan at rank 8"},
                 {{{0, INFINITY}, {8, 0}}, "error inf at rank 0"},
                 {{{0, 1.0}, {8, -0.1}}, "error -0.1 at rank 8"},
                 {{{4, 1.0}, {8, 0.1}}, "does not begin at rank 0"},
                 {{}, "does not begin at rank 0"},
                 {{{0, 1.0}, {8, 0.5}, {8, 0.4}}, "rank 8 does not ascend"}};
    for (const auto& c : cases) {
        CAPTURE(c.message);
        CHECK_THROWS_WITH_AS(rank_choices(c.curve, 1, DType::F16), doctest::Contains(c.message),
                             Error);
    }
}

TEST_SUITE_END();
