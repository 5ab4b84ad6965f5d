// Every operation of the seam but products (test_products.cpp) and attention on every backend that this
// machine runs, against reference.h.
#include <algorithm>

#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

TEST_CASE("embed copies rows of a table in any dtype") {
    int V = 50;
    std::vector<int32_t> ids = {49, 0, 7, 7};
    for (auto [dtype, D] : {std::pair{DType::F32, 37}, {DType::F16, 37}, {DType::BF16, 37},
                            {DType::F32, 1036}, {DType::F16, 1036}, {DType::BF16, 1036}}) {
        CAPTURE(std::string(name_of(dtype)));
        CAPTURE(D);
        Elements table(normals(size_t(V * D), 6), dtype);
        Doubles want;
        for (int32_t id : ids)
            want.insert(want.end(), table.values.begin() + id * D,
                        table.values.begin() + (id + 1) * D);
        check_everywhere(want, 0, {}, [&](Lab& lab, float* out) {
            Step step{0, int(ids.size()), ids.data()};
            lab.step(step);
            lab.backend->embed(out, lab.weight(table, V, D), step);
        });
    }
}

TEST_CASE("rmsnorm divides by the root of the mean square") {
    for (int D : {1, 5, 64, 1500, 2051, 4096, 5000, 9000})
        for (DType dtype : DTYPES)
            for (int T : {1, 13}) {
                CAPTURE(D);
                CAPTURE(std::string(name_of(dtype)));
                Floats x = normals(size_t(T * D), 7);
                Elements w(normals(size_t(D), 8), dtype);
                double eps = double(1e-5f);
                Doubles want;
                for (int t = 0; t < T; t++) {
                    double mean = 0;
                    for (int i = 0; i < D; i++)
                        mean += std::pow(double(x[size_t(t * D + i)]), 2) / D;
                    for (int i = 0; i < D; i++)
                        want.push_back(double(x[size_t(t * D + i)]) * w.values[size_t(i)] /
                                       std::sqrt(mean + eps));
                }
                check_everywhere(want, TOL_F32, {}, [&](Lab& lab, float* out) {
                    lab.backend->rmsnorm(out, lab.in(x), lab.weight(w, D, 1), 1e-5f, T);
                });
            }
}

TEST_CASE("rmsnorm works in place") {
    Floats x = normals(64, 9);
    Elements w(normals(64, 10), DType::BF16);
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Lab lab(variant);
        Output out(lab, 64), same(lab, 64, x);
        lab.backend->rmsnorm(out.data(), lab.in(x), lab.weight(w, 64, 1), 1e-5f, 1);
        lab.backend->rmsnorm(same.data(), same.data(), lab.weight(w, 64, 1), 1e-5f, 1);
        CHECK(same_bits(same.values(), out.values()));
    }
}

TEST_CASE("rope turns pairs (j, j + d/2) by the angle of their position") {
    for (int d : {2, 8, 10, 64, 128})
        for (Step step : {Step{0, 1}, Step{5, 1}, Step{3, 7}}) {
            CAPTURE(d);
            int heads = 3, half = d / 2, context = 10;
            Floats rotation, x = normals(size_t(step.T * heads * d), 11);
            for (int pos = 0; pos < context; pos++) {
                for (int j = 0; j < half; j++)
                    rotation.push_back(float(std::cos(0.37 * (pos * half + j))));
                for (int j = 0; j < half; j++)
                    rotation.push_back(float(std::sin(0.37 * (pos * half + j))));
            }
            Doubles want(x.begin(), x.end());
            for (int row = 0; row < step.T * heads; row++)
                for (int j = 0; j < half; j++) {
                    size_t at = size_t((step.pos + row / heads) * d + j);
                    double cos = double(rotation[at]), sin = double(rotation[at + size_t(half)]);
                    double &a = want[size_t(row * d + j)], &b = want[size_t(row * d + j + half)];
                    double turned = a * cos - b * sin;
                    b = b * cos + a * sin, a = turned;
                }
            check_everywhere(want, TOL_F32, x, [&](Lab& lab, float* out) {
                lab.step(step);
                lab.backend->rope(out, lab.in(rotation), heads, d, step);
            });
            Floats turned;
            for (double one : want) turned.push_back(float(one));
            check_everywhere(Doubles(x.begin(), x.end()), TOL_F32, turned, [&](Lab& lab, float* out) {
                lab.step(step);
                lab.backend->rope(out, lab.in(rotation), heads, d, step, true);
            });
        }
}

TEST_CASE("swiglu is silu(gate) ⊙ up, also far out") {
    for (int T : {1, 7})
        for (int F : {1, 30, 4097}) {
            CAPTURE(F);
            size_t n = size_t(T * F);
            Floats gate = normals(n, 12), up = normals(n, 13);
            for (size_t i = 0; i < n; i += 3) gate[i] *= 100;
            Doubles want;
            for (size_t i = 0; i < n; i++) {
                double z = double(gate[i]);
                want.push_back(z / (1 + std::exp(-z)) * double(up[i]));
            }
            check_everywhere(want, TOL_F32, gate, [&](Lab& lab, float* out) {
                lab.backend->swiglu(out, lab.in(up), T, F);
            });
        }
}

TEST_CASE("argmax finds the first of the largest, and says where a row is damaged") {
    float inf = std::numeric_limits<float>::infinity();
    Floats tail(37, 0);
    tail[36] = 1;
    // Rows that a device takes to pieces, of 16 bytes a load and not.
    Floats equals(9004, -1), damaged(9001, 0), low(9001, -inf), last(9004, 0);
    equals[4095] = equals[4096] = equals[9003] = 2, damaged[4100] = 1, damaged[8999] = NaN, last[9003] = 1;
    const struct { Floats row; int want; const char* why; } cases[] = {
        {{3}, 0, "one element"},
        {{1, 5, 2, 5, 5}, 1, "the first of equals"},
        {{1, 2, 5, NaN, 3}, -1, "NaN after the largest"},
        {{NaN, 1, 2}, -1, "NaN before it"},
        {{NaN, NaN}, -1, "nothing but NaN"},
        {{-inf, -inf}, 0, "nothing but minus infinity"},
        {{-3, -2, -inf}, 1, "all negative"},
        {{1, inf, 2}, 1, "infinity"},
        {tail, 36, "in the tail of a vector"},
        {equals, 4095, "the first of equals in several pieces"},
        {damaged, -1, "NaN in another piece"},
        {low, 0, "pieces of nothing but minus infinity"},
        {last, 9003, "the last of the last piece"},
    };
    for (auto& c : cases)
        for (const Variant& variant : variants()) {
            CAPTURE(c.why);
            CAPTURE(variant.group);
            Lab lab(variant);
            Floats rows = c.row;
            rows.insert(rows.end(), c.row.begin(), c.row.end());
            int32_t found[] = {-7, -7, -7};
            Buffer out(*lab.backend, sizeof found, "indices");
            lab.backend->upload(out.data, found, sizeof found);
            lab.backend->argmax(static_cast<int32_t*>(out.data), lab.in(rows), 2,
                                int(c.row.size()));
            lab.backend->download(found, out.data, sizeof found);
            CHECK(found[0] == c.want);
            CHECK(found[1] == c.want);
            CHECK(found[2] == -7);
        }
}

TEST_CASE("a number comes home as its step left it, though the next step has changed it") {
    constexpr int V = 40, D = 4;
    Floats rows = normals(2 * V, 21);
    Elements table(normals(V * D, 22), DType::F32);
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Lab lab(variant);
        Backend& ops = *lab.backend;
        Buffer found(ops, sizeof(int32_t), "a number");
        int32_t* number = static_cast<int32_t*>(found.data);
        Weight bound = lab.weight(table, V, D);
        const float* x = lab.in(rows);
        Output embedded(lab, D);
        int32_t want[2];
        for (int i = 0; i < 2; i++) {
            Step step{i, 1};
            step.token = i ? number : nullptr, step.home = number;
            ops.begin_step(step);
            if (i) ops.embed(embedded.data(), bound, step);
            ops.argmax(number, x + i * V, 1, V);
            ops.end_step();
            const float* row = rows.data() + i * V;
            want[i] = int32_t(std::max_element(row, row + V) - row);
        }
        REQUIRE(want[0] != want[1]);
        for (int32_t one : want) {
            int32_t got = -7;
            ops.download(&got, number, sizeof got);
            CHECK(got == one);
        }
        const double* row = table.values.data() + want[0] * D;
        CHECK(nmse(embedded.values(), Doubles(row, row + D)) == 0);
    }
}

TEST_CASE("stream reads every byte") {
    for (size_t bytes : {0, 1, 7, 8, 513, 1 << 20, (1 << 20) + 1, (3 << 20) + 77}) {
        CAPTURE(bytes);
        std::vector<char> memory(bytes + 8);
        Random random(14);
        for (char& one : memory) one = char(random.next());
        uint64_t want = 0;
        for (size_t i = 0; i < bytes; i++)
            want += uint64_t(uint8_t(memory[i])) << 8 * (i % 8);
        for (const Variant& variant : variants()) {
            CAPTURE(variant.group);
            Lab lab(variant);
            CHECK(lab.backend->stream(lab.bytes(memory.data(), bytes), bytes) == want);
        }
    }
}

TEST_CASE("memory is zero, and more than there is is refused before it is taken") {
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        Lab lab(variant);
        Backend& backend = *lab.backend;
        Buffer buffer(backend, 1000, "a small block");
        CHECK(lab.floats(buffer.f32(), 250) == Floats(250, 0.0f));
        CHECK(backend.available() > 0);
        CHECK_THROWS_WITH_AS(
            backend.alloc(size_t(1) << 50, "the KV cache of 9 positions"),
            doctest::Contains("the KV cache of 9 positions needs 1048576.00 GiB, "), Error);
        CHECK_THROWS_WITH_AS(backend.alloc(size_t(1) << 50, "it"),
                             doctest::Contains("use a smaller --context"), Error);
    }
}

TEST_CASE("an unknown backend or instruction set is an error that lists the known") {
    Threads threads(1);
    CHECK_THROWS_WITH_AS(make_backend({.name = "tpu"}, threads),
                         doctest::Contains("expected auto, cpu or cuda"), Error);
    CHECK_THROWS_WITH_AS(make_backend({.name = "cpu", .isa = "mmx"}, threads),
                         doctest::Contains(("this machine runs " + cpu_isas().front()).c_str()),
                         Error);
    CHECK(cpu_isas().back() == "portable");
}

TEST_SUITE_END();
