// Every step of tools/ladder computes the same attention.
#include "../../tools/ladder/steps.cuh"
#include "backends.h"
#include "base/linalg.h"
#include "cache/kv_cache.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("simt");

TEST_CASE("the steps of the ladder agree with the CPU") {
    constexpr int S = 150, H = 8, G = 2, d = 128, RANK = 36;
    Config config;
    config.L = 1, config.H = H, config.G = G, config.d = d;
    Floats q = normals(H * d, 1), k = normals(S * G * d, 2), v = normals(S * G * d, 3), rotation;
    for (int s = 0; s < S; s++)
        for (int j = 0; j < d; j++) {
            double angle = 0.3 * s / (j % (d / 2) + 1);
            rotation.push_back(float(j < d / 2 ? std::cos(angle) : std::sin(angle)));
        }
    for (bool rotated : {true, false}) {
        Bases bases = Bases::identity(config, RANK);
        Random random(4);
        Matrix M(d, d);
        for (double& x : M.data) x = random.normal();
        Matrix Q = qr(M).Q;
        for (std::vector<HeadBasis>* side : {&bases.layer[0].k, &bases.layer[0].v})
            for (HeadBasis& head : *side)
                head.encode = to_floats(Q), head.decode = to_floats(transpose(Q));
        bases.layer[0].rotated = rotated, bases.sinks = bases.recent = 0;

        auto attend = [&](Lab& lab, const auto& run) {
            KvCache cache(*lab.backend, config, S, DType::F16, &bases, S);
            Step all{0, S}, last{S - 1, 1};
            lab.step(all);
            lab.backend->append(cache.layer[0], lab.in(k), lab.in(v), all);
            lab.step(last);
            Output out(lab, H * d);
            run(out.data(), lab.in(q), lab.in(rotation), cache.layer[0], last);
            CHECK(out.guarded());
            return out.values();
        };
        Lab cpu(Variant{"cpu", {"cpu", "auto"}, 1, {}});
        Floats want = attend(
            cpu, [&](float* out, const float* x, const float* angles, const CacheLayer& cache,
                     const Step& step) { cpu.backend->attend(out, x, angles, cache, step); });
        for (const Variant& variant : variants())
            for (const ladder::StepOfLadder& step : ladder::STEPS) {
                CAPTURE(std::string(step.name));
                CAPTURE(rotated);
                Lab lab(variant);
                Floats got = attend(lab, [&](float* out, const float* x, const float* angles,
                                             const CacheLayer& cache, const Step&) {
                    step.run(static_cast<CudaBackend&>(*lab.backend), out, x, angles, cache);
                });
                CHECK(nmse(got, want) <= 4 * TOL_F16);
            }
    }
}

TEST_SUITE_END();
