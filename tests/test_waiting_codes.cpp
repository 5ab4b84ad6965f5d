// Codes that a device makes behind a step, of all layers together (cuda/append_later.cu).
#include "backends.h"
#include "cache/kv_cache.h"
#include "matrices.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("cache");

TEST_CASE("codes that wait until a step is through are those that are made at once") {
    constexpr int S = 12, L = 3, H = 4, G = 2;
    for (const Variant& variant : groups()) {
        for (int d : {64, 128})
            for (bool rotated : {true, false}) {
                Lab lab(variant);
                CAPTURE(lab.group);
                CAPTURE(d);
                CAPTURE(rotated);
                Config config;
                config.L = L, config.H = H, config.G = G, config.d = d;
                Bases bases = Bases::identity(config, d);
                Random random(3);
                bases.sinks = 1, bases.recent = 3;
                for (auto& layer : bases.layer) {
                    layer.rotated = rotated;
                    for (auto* side : {&layer.k, &layer.v})
                        for (HeadBasis& head : *side) {
                            Matrix Q = random_orthogonal(size_t(d), random);
                            head.encode = to_floats(Q), head.decode = to_floats(transpose(Q));
                            head.format[0].count = {4, 8, 8, 0, 8, 0, 8, 8};
                            if (side == &layer.k) head.mean = normals(size_t(d), 8);
                        }
                }
                size_t q = size_t(H * d), kv = size_t(G * d);
                const float* rotation = lab.in(normals(size_t(S * d), 9));  // any angles
                Output queries(lab, q), keys(lab, L * kv), values(lab, L * kv), out(lab, q);
                auto rows_after = [&](uint64_t replay) {
                    KvCache cache(*lab.backend, config, S, DType::F16, &bases, 1);
                    for (int s = 0; s < S; s++) {
                        Step step{s, 1};
                        step.replay = replay;
                        Floats x = normals(q + 2 * L * kv, uint64_t(s) + 20);
                        const float* from = x.data();
                        for (Output* to : {&queries, &keys, &values})
                            lab.backend->upload(to->data(), from, to->n * sizeof(float)), from += to->n;
                        if (lab.backend->begin_step(step))
                            for (size_t l = 0; l < L; l++) {
                                const CacheLayer& layer = cache.layer[l];
                                lab.backend->append(layer, queries.data(), keys.data() + l * kv,
                                                    values.data() + l * kv, rotation, step);
                                lab.backend->attend(out.data(), queries.data(), rotation, layer, step);
                            }
                        lab.backend->end_step();
                    }
                    cache.used = S;
                    std::vector<char> rows(cache.snapshot_bytes(S));
                    cache.save(rows.data());
                    return rows;
                };
                CHECK(rows_after(0) == rows_after(5));
            }
    }
}

TEST_SUITE_END();
