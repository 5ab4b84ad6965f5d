// A token's own row: what attention meets of it on its way into the cache.
#include "backends.h"
#include "cache/kv_cache.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("cache");

TEST_CASE("a token's row met on its way into the cache is the row that it finds there") {
    constexpr int FIRST = 254, STEPS = 5;  // beyond 256 positions a device has them in several pieces
    const struct {
        int H, G, d;
        DType dtype;
    } cases[] = {{4, 2, 64, DType::F16}, {8, 1, 128, DType::BF16}, {3, 3, 128, DType::F16},
                 {9, 1, 64, DType::BF16}, {2, 1, 40, DType::F16}, {2, 2, 64, DType::F32}};
    for (auto [H, G, d, dtype] : cases) {
        CAPTURE(d);
        CAPTURE(H);
        Config config;
        config.L = 1, config.H = H, config.G = G, config.d = d;
        size_t kv = size_t(G * d), width = size_t(H * d), n = FIRST + STEPS;
        Floats q = normals(STEPS * width, 1), k = normals(n * kv, 2), v = normals(n * kv, 3);
        Floats rotation = rotations(int(n), d);
        for (const Variant& variant : groups()) {
            Lab lab(variant);
            CAPTURE(lab.group);
            Backend& ops = *lab.backend;
            const float *angles = lab.in(rotation), *values = lab.in(v);
            auto attended = [&](bool at_once) {
                KvCache cache(ops, config, int(n), dtype, nullptr, FIRST);
                const CacheLayer& layer = cache.layer[0];
                Output queries(lab, STEPS * width, q), keys(lab, n * kv, k), out(lab, STEPS * width);
                Step step{0, FIRST};
                lab.step(step);
                ops.append(layer, keys.data(), values, step);
                for (int i = 0; i < STEPS; i++) {
                    step = {FIRST + i, 1};
                    float *own = queries.data() + size_t(i) * width, *to = out.data() + size_t(i) * width;
                    float* key = keys.data() + size_t(step.pos) * kv;
                    const float* value = values + size_t(step.pos) * kv;
                    lab.step(step);
                    if (at_once) {
                        ops.append_and_attend(to, layer, own, key, value, angles, step);
                    } else {
                        ops.append(layer, own, key, value, angles, step);
                        ops.attend(to, own, angles, layer, step);
                    }
                }
                CHECK(out.guarded());
                cache.used = int(n);
                std::vector<char> rows(cache.snapshot_bytes(int(n)));
                cache.save(rows.data());
                return std::pair(out.values(), rows);
            };
            auto [out, rows] = attended(true);
            auto [want, stored] = attended(false);
            CHECK(rows == stored);
            // The compiler may contract a rotation in another way, before q is rounded.
            CHECK(nmse(out, want) <= (lab.device() ? TOL_F16 : 0));
        }
    }
}

TEST_SUITE_END();
