#include "backend/cpu/angles.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace stief {

// Of each cosine and sine: 8 roundings of f32 near 1.
static constexpr double TOLERANCE = 0x1p-21;

// A polynomial through Chebyshev's nodes, at whole positions.
struct Interpolation {
    std::vector<int> at;             // (nodes)
    std::vector<double> share;       // ℓ_k(s), (nodes, SPAN)

    explicit Interpolation(int nodes) {
        constexpr int SPAN = Angles::SPAN;
        for (int k = 0; k < nodes; k++) {
            double x = std::cos(std::numbers::pi * (2 * k + 1) / (2 * nodes));
            at.push_back(int(std::lround((SPAN - 1) / 2.0 * (1 - x))));
        }
        for (int k = 0; k < nodes; k++)
            for (int s = 0; s < SPAN; s++) {
                double l = 1;
                for (int i = 0; i < nodes; i++)
                    if (i != k) l *= double(s - at[size_t(i)]) / (at[size_t(k)] - at[size_t(i)]);
                share.push_back(l);
            }
    }

    // Of one column of a table whose rows have `width` elements.
    double error(const float* column, size_t width) const {
        double worst = 0;
        for (size_t s = 0; s < Angles::SPAN; s++) {
            double sum = 0;
            for (size_t k = 0; k < at.size(); k++)
                sum += share[k * Angles::SPAN + s] * double(column[size_t(at[k]) * width]);
            worst = std::max(worst, std::abs(sum - double(column[s * width])));
        }
        return worst;
    }
};

// Pairs from which on all are slow enough.
static int fast_pairs(const Interpolation& between, const float* rotation, int half) {
    int fast = half;
    auto slow = [&](int j) {
        size_t width = size_t(2 * half);
        return between.error(rotation + j, width) <= TOLERANCE &&
               between.error(rotation + half + j, width) <= TOLERANCE;
    };
    while (fast > 0 && slow(fast - 1)) fast--;
    return fast;
}

const Angles& AngleTable::of(const float* rotation, int half) {
    constexpr size_t SPAN = Angles::SPAN, NODES = Angles::NODES, PIECE = Angles::PIECE;
    size_t width = size_t(2 * half), last = (SPAN - 1) * width;
    const float *one = rotation + width, *end = rotation + last;
    if (known.size() == 2 * width && std::equal(one, one + width, known.begin()) &&
        std::equal(end, end + width, known.begin() + ptrdiff_t(width)))
        return angles;
    known.assign(one, one + width);
    known.insert(known.end(), end, end + width);

    angles = {half, half, 0, nullptr, nullptr};
    Interpolation best(0);
    for (int nodes = 4; nodes <= int(NODES); nodes++) {
        Interpolation between(nodes);
        int fast = fast_pairs(between, rotation, half);
        if (2 * fast + nodes >= 2 * angles.fast + angles.nodes) continue;
        angles.fast = fast, angles.nodes = nodes, best = between;
    }
    columns.clear();
    for (size_t j0 = 0, fast = size_t(angles.fast); j0 < fast; j0 += PIECE)
        for (size_t side = 0; side < 2; side++)
            for (size_t j = j0; j < std::min(fast, j0 + PIECE); j++)
                for (size_t s = 0; s < SPAN; s++)
                    columns.push_back(rotation[s * width + side * size_t(half) + j]);
    for (double share : best.share) columns.push_back(float(share));
    at_nodes.clear();
    for (size_t side = 0; side < 2; side++)
        for (size_t j = size_t(angles.fast); j < size_t(half); j++)
            for (size_t k = 0; k < NODES; k++)
                at_nodes.push_back(k < best.at.size()
                                       ? rotation[size_t(best.at[k]) * width + side * size_t(half) + j]
                                       : 0.0f);
    angles.column = columns.data(), angles.node = at_nodes.data();
    return angles;
}

}  // namespace stief
