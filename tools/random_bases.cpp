// random_bases MODEL OUT --keep F [--keys post|pre] [--window S,R]
// Random orthonormal bases with equal ranks, F of the head width rounded to a multiple of 4: to
// measure the speed and memory of a low-rank cache at shapes that nobody calibrated. They are good
// for nothing else.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/linalg.h"
#include "base/random.h"
#include "cache/basis.h"
#include "model/weights.h"

using namespace stief;

static HeadBasis random_basis(int d, int r, Random& random) {
    Matrix A(static_cast<size_t>(d), static_cast<size_t>(d));
    for (double& x : A.data) x = random.normal();
    Matrix Q = qr(A).Q;
    return HeadBasis::whole(r, to_floats(Q), to_floats(Q), to_floats(transpose(Q)));
}

static void run(int argc, char** argv) {
    const char* usage = "usage: random_bases MODEL OUT --keep F [--keys post|pre] [--window S,R]";
    check(argc >= 5, "%s", usage);
    double keep = 0;
    Bases bases;
    bool rotated = true;
    for (int i = 3; i + 1 < argc; i += 2) {
        std::string flag = argv[i], value = argv[i + 1];
        if (flag == "--keep")
            keep = std::strtod(value.c_str(), nullptr);
        else if (flag == "--keys")
            rotated = value != "pre";
        else if (flag == "--window")
            std::sscanf(value.c_str(), "%d,%d", &bases.sinks, &bases.recent);
        else
            fail("%s: unknown\n%s", flag.c_str(), usage);
    }
    check(keep > 0 && keep <= 1, "--keep takes a number above 0 and up to 1\n%s", usage);
    Config config = Config::open(argv[1]);
    Weights weights = Weights::open(config);
    int rank = int(keep * config.d / 4 + 0.5) * 4;
    Random random(1);
    for (int l = 0; l < config.L; l++) {
        LayerBasis& layer = bases.layer.emplace_back();
        layer.rotated = rotated;
        for (auto* side : {&layer.k, &layer.v})
            for (int g = 0; g < config.G; g++)
                side->push_back(random_basis(config.d, rank, random));
    }
    bases.metadata["method"] = "random: for measuring speed, not for use";
    bases.save(argv[2], weights.fingerprint(config));
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
