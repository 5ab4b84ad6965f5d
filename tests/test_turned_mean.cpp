// Keys stored after rotation less their mean, which turns with them: calibrate/README.md (22).
#include "backend/cpu/kernels.h"
#include "backends.h"
#include "cache/kv_cache.h"
#include "reference.h"

using namespace stief;
using namespace stief::testing;

namespace {

// (positions, 2, d/2)
Floats slow_rotations(int positions, int d, double slower = 0.8) {
    Floats table;
    for (int s = 0; s < positions; s++)
        for (bool sine : {false, true})
            for (int j = 0; j < d / 2; j++) {
                double angle = s * std::pow(slower, j);
                table.push_back(float(sine ? std::sin(angle) : std::cos(angle)));
            }
    return table;
}

Floats turned(const float* x, const float* angle, size_t d) {
    Floats out(d);
    for (size_t j = 0; j < d / 2; j++) {
        out[j] = x[j] * angle[j] - x[j + d / 2] * angle[j + d / 2];
        out[j + d / 2] = x[j + d / 2] * angle[j] + x[j] * angle[j + d / 2];
    }
    return out;
}

}  // namespace

TEST_SUITE_BEGIN("cache");

TEST_CASE("sums over the angles of positions are added, the same whatever else is asked") {
    constexpr int POSITIONS = 420;
    for (const std::string& isa : cpu_isas())
        for (int half : {1, 4, 32, 70, 128, 300})    // 300: more than PIECE fast pairs
            for (int m : {1, 2, 3, 7, 8}) {
                const Kernels* kernels = &choose_kernels(isa.c_str());
                CAPTURE(isa);
                CAPTURE(half);
                CAPTURE(m);
                size_t d = size_t(2 * half);
                Floats w = normals(size_t(m) * d, 81);
                Floats rotation = slow_rotations(POSITIONS, 2 * half, half > 128 ? 0.97 : 0.8);
                AngleTable table;
                const Angles& angles = table.of(rotation.data(), half);
                Floats all(size_t(m) * POSITIONS, 0.0f);
                auto add = [&](Floats& out, int first, int count) {
                    kernels->add_angles(out.data() + first, POSITIONS, w.data(), d, angles,
                                        rotation.data(), first, count, m, size_t(half));
                };
                add(all, 0, POSITIONS);
                Doubles want;
                for (int h = 0; h < m; h++)
                    for (int s = 0; s < POSITIONS; s++) {
                        double sum = 0;
                        for (size_t j = 0; j < d; j++)
                            sum += double(w[size_t(h) * d + j]) * double(rotation[size_t(s) * d + j]);
                        want.push_back(sum);
                    }
                CHECK(nmse(all.data(), want.data(), want.size()) <= TOL_F32);
                Floats parts(all.size(), 0.0f);
                int ends[] = {0, 1, 31, 127, 129, 200, 257, POSITIONS};
                for (int i = 1; i < 8; i++) add(parts, ends[i - 1], ends[i] - ends[i - 1]);
                CHECK(same_bits(parts, all));
            }
}

// Codes of 8 bits are off by 8.8e-5 of what they stand for; with μ left where it is, turned the wrong way
// or added twice, keys are off by more than they are.
TEST_CASE("what append takes off keys that it rotates attention gives back, whole rows beside codes") {
    constexpr int H = 6, G = 2, d = 64, S = 90;
    constexpr size_t kv = G * d, width = H * d;
    Config config;
    config.L = 1, config.H = H, config.G = G, config.d = d;
    Floats rotation = slow_rotations(S, d), q = normals(S * width, 1), v = normals(S * kv, 3);
    for (float size : {0.0f, 3.0f})
        for (int piece : {1, 7, 40}) {
            CAPTURE(size);
            CAPTURE(piece);
            Bases bases = Bases::uniform(config, {20}, {8, 8});
            bases.sinks = 3, bases.recent = 9;
            Floats mean = normals(d, 17), k = normals(S * kv, 2);
            for (float& x : mean) x *= size;
            for (size_t i = 0; i < k.size(); i++) k[i] += mean[i % d];
            for (HeadBasis& head : bases.layer[0].k)
                if (size > 0) head.mean = mean;
            Doubles want;
            for (size_t t = 0; t < S; t++)
                for (size_t h = 0; h < H; h++) {
                    Doubles keys, values;
                    for (size_t s = 0; s <= t; s++) {
                        size_t at = s * kv + h / (H / G) * d;
                        Floats key = turned(&k[at], &rotation[s * d], d);
                        keys.insert(keys.end(), key.begin(), key.end());
                        values.insert(values.end(), &v[at], &v[at] + d);
                    }
                    Floats query = turned(&q[t * width + h * d], &rotation[t * d], d);
                    reference::attend_head(want, query.data(), keys, values, int(t) + 1, d, d, d);
                }
            check_everywhere(want, 1e-3, {}, [&](Lab& lab, float* out) {
                KvCache cache(*lab.backend, config, S, DType::F16, &bases, piece);
                Output queries(lab, S * width, q), keys(lab, S * kv, k);
                const float *values = lab.in(v), *angles = lab.in(rotation);
                for (int pos = 0; pos < S; pos += piece) {
                    Step step{pos, std::min(piece, S - pos)};
                    float* own = queries.data() + size_t(pos) * width;
                    size_t from = size_t(pos) * kv;
                    lab.step(step);
                    lab.backend->append(cache.layer[0], own, keys.data() + from, values + from, angles,
                                        step);
                    lab.backend->attend(out + size_t(pos) * width, own, angles, cache.layer[0], step);
                }
            });
        }
}

TEST_SUITE_END();
