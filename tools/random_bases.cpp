// random_bases MODEL OUT --keep F | --bits B [--ages AGE:B,...] [--keys post|pre] [--window S,R]
//     [--values head|joint]
// Random orthonormal bases of the same format in every head: whole rows of F of the head width, or
// a mixture of widths of B bits a coordinate, scale included, and of others while younger, keys then
// less a random mean. To measure the speed and memory of a compressed cache at shapes that nobody
// calibrated. They are good for nothing else.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/linalg.h"
#include "base/random.h"
#include "cache/basis.h"
#include "model/weights.h"

using namespace stief;

static HeadBasis random_basis(int d, const std::vector<RowFormat>& formats, Random& random) {
    Matrix Q = random_rotation(size_t(d), random);
    HeadBasis basis = HeadBasis::whole(d, to_floats(Q), to_floats(Q), to_floats(transpose(Q)));
    basis.format = formats;
    return basis;
}

// What reverse water-filling gives coordinates whose spreads fall evenly by five octaves: the most
// within `bits` a coordinate.
static RowFormat mixture(int d, double bits) {
    constexpr double OCTAVES = 5;
    RowFormat best;
    for (double top = 0; top <= 8 + OCTAVES; top += 1.0 / 64) {
        RowFormat one;
        for (int i = 0; i + ROW_GROUP <= d; i += ROW_GROUP)
            for (size_t w = 1; w < RowFormat::WIDTHS; w++)
                if (RowFormat::BITS[w] <= top - OCTAVES * i / d) {
                    one.count[w] = uint16_t(one.count[w] + ROW_GROUP);
                    break;
                }
        if (one.bits_per_element(DType::F16, d) <= bits) best = one;
    }
    return best;
}

static void run(int argc, char** argv) {
    const char* usage =
        "usage: random_bases MODEL OUT --keep F | --bits B [--ages AGE:B,...] [--keys post|pre] "
        "[--window S,R] [--values head|joint]";
    check(argc >= 5, "%s", usage);
    Config config = Config::open(argv[1]);
    Weights weights = Weights::open(config);
    double keep = 0, bits = 0;
    Bases bases;
    std::vector<std::pair<int, double>> young;  // ages, and their bits
    bool rotated = true, joint = false;
    for (int i = 3; i + 1 < argc; i += 2) {
        std::string flag = argv[i], value = argv[i + 1];
        if (flag == "--keep")
            keep = std::strtod(value.c_str(), nullptr);
        else if (flag == "--bits")
            bits = std::strtod(value.c_str(), nullptr);
        else if (flag == "--keys")
            rotated = value != "pre";
        else if (flag == "--values")
            joint = value == "joint";
        else if (flag == "--window")
            std::sscanf(value.c_str(), "%d,%d", &bases.sinks, &bases.recent);
        else if (flag == "--ages")
            for (const char* next = value.c_str(); *next;) {
                int age = 0, used = 0;
                double width = 0;
                check(std::sscanf(next, "%d:%lf%n", &age, &width, &used) == 2, "%s", usage);
                young.emplace_back(age, width);
                next += used + (next[used] == ',');
            }
        else
            fail("%s: unknown\n%s", flag.c_str(), usage);
    }
    check((keep > 0 && keep <= 1) != (bits > 0 && bits <= 8),
          "--keep takes a number above 0 and up to 1, --bits one up to 8: one of them\n%s", usage);
    for (auto [age, width] : young) bases.ages.push_back(age);
    auto formats_of = [&](int d) {
        std::vector<RowFormat> all;
        for (auto [age, width] : young) all.push_back(mixture(d, width));
        all.push_back(bits > 0 ? mixture(d, bits) : RowFormat::whole(int(keep * d / 4 + 0.5) * 4));
        return all;
    };
    std::vector<RowFormat> formats = formats_of(config.d), together = formats_of(config.G * config.d);
    Random random(1);
    for (int l = 0; l < config.L; l++) {
        Bases::Layer& layer = bases.layer.emplace_back();
        layer.rotated = rotated, layer.joint = joint;
        if (joint) layer.v = {random_basis(config.G * config.d, together, random)};
        for (auto* side : {&layer.k, &layer.v})
            for (int g = 0; g < config.G && !(joint && side == &layer.v); g++) {
                HeadBasis& basis = side->emplace_back(random_basis(config.d, formats, random));
                if (side == &layer.k && !formats.back().is_whole()) {
                    basis.mean.resize(size_t(config.d));
                    for (float& one : basis.mean) one = random.normal();
                }
            }
    }
    bases.metadata["method"] = "random: for measuring speed, not for use";
    bases.save(argv[2], weights.fingerprint(config));
    std::printf("%.3f bits a coordinate\n", formats.back().bits_per_element(DType::F16, config.d));
}

int main(int argc, char** argv) {
    try {
        run(argc, argv);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
