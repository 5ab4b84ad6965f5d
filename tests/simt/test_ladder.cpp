// Every step of tools/ladder computes the same attention, and so do devices with less shared
// memory.
#include "../../tools/ladder/steps.cuh"
#include "backends.h"
#include "base/linalg.h"
#include "cache/kv_cache.h"
#include "simt.h"

using namespace stief;
using namespace stief::testing;

namespace {

constexpr int S = 150, H = 8, G = 2, d = 128;

// One layer in a random orthonormal basis, S tokens in it: attention of all, or of the last one.
struct Scene {
    Config config;
    Bases bases;
    Floats q = normals(S * H * d, 1), k = normals(S * G * d, 2), v = normals(S * G * d, 3),
           rotation;

    Scene(int rank, bool rotated) {
        config.L = 1, config.H = H, config.G = G, config.d = d;
        bases = Bases::identity(config, rank);
        Random random(4);
        Matrix M(d, d);
        for (double& x : M.data) x = random.normal();
        Matrix Q = qr(M).Q;
        for (std::vector<HeadBasis>* side : {&bases.layer[0].k, &bases.layer[0].v})
            for (HeadBasis& head : *side)
                head.encode = to_floats(Q), head.decode = to_floats(transpose(Q));
        bases.layer[0].rotated = rotated, bases.sinks = bases.recent = 0;
        for (int s = 0; s < S; s++)
            for (int j = 0; j < d; j++) {
                double angle = 0.3 * s / (j % (d / 2) + 1);
                rotation.push_back(float(j < d / 2 ? std::cos(angle) : std::sin(angle)));
            }
    }
    Floats attend(const Variant& variant, int T, const ladder::StepOfLadder* how = nullptr) {
        Lab lab(variant);
        lab.backend->exact = !variant.device();   // the CPU is what the others are compared with
        KvCache cache(*lab.backend, config, S, DType::F16, &bases, S);
        const CacheLayer& layer = cache.layer[0];
        Step all{0, S}, last{S - T, T};
        lab.step(all);
        lab.backend->append(layer, lab.in(k), lab.in(v), all);
        lab.step(last);
        Output out(lab, size_t(T * H * d));
        if (how)
            how->run(static_cast<CudaBackend&>(*lab.backend), out.data(), lab.in(q),
                     lab.in(rotation), layer);
        else
            lab.backend->attend(out.data(), lab.in(q), lab.in(rotation), layer, last);
        CHECK(out.guarded());
        return out.values();
    }
};

const Variant CPU{"cpu", {"cpu", "auto"}, 1, {}};

}  // namespace

TEST_SUITE_BEGIN("simt");

TEST_CASE("the steps of the ladder agree with the CPU") {
    for (bool rotated : {true, false}) {
        CAPTURE(rotated);
        Scene scene(36, rotated);
        Floats want = scene.attend(CPU, 1);
        for (const Variant& variant : variants())
            for (const ladder::StepOfLadder& step : ladder::STEPS) {
                CAPTURE(std::string(step.name));
                CHECK(nmse(scene.attend(variant, 1, &step), want) <= 4 * TOL_F16);
            }
    }
}

TEST_CASE("attention fits what shared memory a block of the device has") {
    simt::Restore restore;
    for (bool rotated : {true, false}) {
        Scene scene(d, rotated);
        for (int T : {1, 5}) {
            Floats want = scene.attend(CPU, T);
            for (size_t kilobytes : {99, 72}) {
                CAPTURE(rotated);
                CAPTURE(T);
                CAPTURE(kilobytes);
                simt::machine.shared_bytes = kilobytes << 10;
                CHECK(nmse(scene.attend(variants()[0], T), want) <= 4 * TOL_F16);
            }
        }
    }
}

TEST_CASE("a token's product fits it too, however wide the rows") {
    simt::Restore restore;
    constexpr int N = 11;
    for (int K : {512, 8192, 14336, 40000}) {
        Floats x = normals(size_t(K), 1), w = normals(size_t(N) * size_t(K), 2);
        Elements rows(w, DType::BF16);
        Doubles want(N, 0.0);
        for (size_t i = 0; i < N * size_t(K); i++)
            want[i / size_t(K)] += double(x[i % size_t(K)]) * double(rows.values[i]);
        for (size_t kilobytes : {227, 99, 48}) {
            CAPTURE(K);
            CAPTURE(kilobytes);
            simt::machine.shared_bytes = kilobytes << 10;
            Lab lab(variants()[0]);
            Output out(lab, N);
            lab.backend->matmul(out.data(), lab.in(x), lab.weight(rows, N, K), 1, false);
            CHECK(nmse(out.values(), want) <= TOL_F32);
            CHECK(out.guarded());
        }
    }
}

TEST_SUITE_END();
