// Rotated uniform quantisation (QuaRot, Ashkboos et al. 2024): a rotation spreads what few
// coordinates hold over all of them, so that one scale serves a row.
#include <bit>
#include <cmath>

#include "base/random.h"
#include "cache/basis.h"

namespace stief {

Matrix random_rotation(size_t d, Random& random) {
    Matrix Q(d, d);
    if (!std::has_single_bit(d)) {
        for (double& x : Q.data) x = random.normal();
        return qr(Q).Q;
    }
    for (size_t i = 0; i < d; i++) {
        double entry = (random.below(2) ? 1 : -1) / std::sqrt(double(d));
        for (size_t j = 0; j < d; j++) Q(i, j) = std::popcount(i & j) % 2 ? -entry : entry;
    }
    return Q;
}

static RowFormat uniform_format(int d, int bits) {
    RowFormat format;
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        if (RowFormat::BITS[w] == bits) format.count[w] = uint16_t(d);
    check(format.kept() == d, "codes of %d bits: there are widths of 8, 6, 5, 4, 3, 2 and 1", bits);
    return format;
}

Bases Bases::uniform(const Config& config, const std::vector<int>& ages,
                     const std::vector<int>& bits) {
    check(config.d % ROW_GROUP == 0,
          "heads of %d coordinates cannot be stored in codes, which come in groups of %d; use "
          "--cache f16",
          config.d, ROW_GROUP);
    check(config.d <= MOST_KEPT,
          "heads of %d coordinates cannot be stored in codes, which go up to %d; use --cache f16",
          config.d, MOST_KEPT);
    Bases bases;
    bases.ages = ages;
    std::vector<RowFormat> formats;
    for (int b : bits) formats.push_back(uniform_format(config.d, b));
    Random random(1);
    size_t d = size_t(config.d);
    for (int l = 0; l < config.L; l++) {
        Bases::Layer& layer = bases.layer.emplace_back();
        for (std::vector<HeadBasis>* side : {&layer.k, &layer.v})
            for (int g = 0; g < config.G; g++) {
                Matrix Q = random_rotation(d, random);
                std::vector<float> q = to_floats(Q);
                side->push_back(
                    {formats, std::vector<float>(d, 1.0f), q, q, to_floats(transpose(Q))});
            }
    }
    return bases;
}

}  // namespace stief
