#include "scenes.h"

#include "../../../tools/ladder/steps.cuh"
#include "backend/backward.h"
#include "backends.h"
#include "cache/kv_cache.h"
#include "forward/transformer.h"
#include "matrices.h"
#include "tiny_model.h"

namespace stief::testing {

namespace {

const Variant PLAYED{"cuda, played", {"cuda", "auto"}, 1, {}, true};

// Weights at an aligned address (bind copies them to one).
struct Weights {
    Elements elements;
    Weight weight;
    Weights(Lab& lab, DType dtype, int N, int K, uint64_t seed)
        : elements(normals(size_t(N) * size_t(K), seed), dtype),
          weight(lab.weight(elements, N, K)) {}
};

// ---- operations of one token or a few ----------------------------------------------------------

// K odd: rows are not aligned. N: so many rows, of two warps or more, that a block sums them in two passes.
Floats products(DType dtype, int N, int K) {
    Lab lab(PLAYED);
    Weights a(lab, dtype, N, K, 1), b(lab, dtype, 9, K, 2), c(lab, dtype, 17, K, 3);
    const float* x = lab.in(normals(size_t(3 * K), 4));
    Output out(lab, std::max(size_t(N + 26) * 3, size_t(K)));
    float* to = out.data();
    Projection all[] = {{to, a.weight}, {to + N, b.weight}, {to + N + 9, c.weight}};
    for (bool add : {false, true}) lab.backend->matmul(all, x, 1, add);
    lab.backend->gated(to, to + N, x, a.weight, a.weight, 1);
    lab.backend->gated(to, to + 3 * N / 2, x, b.weight, b.weight, 3);
    lab.backend->matmul(to, x, a.weight, 3, false);
    // Norms on the way, and what goes on in the type of the next product's weights.
    Weights norm(lab, dtype, K, 1, 6), down(lab, dtype, 5, N, 7);
    Output normed(lab, size_t(3 * K)), hidden(lab, size_t(6 * N)), last(lab, 3 * 5);
    for (int T : {1, 3}) {
        Input input(x, norm.weight, 1e-5f, normed.data());
        lab.backend->matmul(all, input, T, false);
        Operand gate(hidden.data(), dtype);
        lab.backend->gated(gate, hidden.data() + 3 * N, input, a.weight, a.weight, T);
        lab.backend->matmul(last.data(), gate, down.weight, T, false);
    }
    // Tokens as if each were alone.
    lab.backend->singly = true;
    for (bool add : {false, true}) lab.backend->matmul(last.data(), hidden.data(), down.weight, 3, add);
    Input input(x, norm.weight, 1e-5f, normed.data());
    Projection apart[] = {{to, a.weight}, {to + 3 * N, b.weight}, {to + 3 * N + 27, c.weight}};
    lab.backend->matmul(apart, input, 3, false);
    lab.backend->gated(hidden.data(), hidden.data() + 3 * N, input, a.weight, a.weight, 3);
    lab.backend->singly = false;
    Floats end = last.values();
    lab.backend->matmul_transposed(to, lab.in(normals(size_t(3 * N), 5)), a.weight, 1);
    Floats all_values = out.values();
    all_values.insert(all_values.end(), end.begin(), end.end());
    return all_values;
}

Floats rows(DType dtype, int D) {
    constexpr int V = 40, T = 3;
    Lab lab(PLAYED);
    Weights norm(lab, dtype, D, 1, 1), table(lab, dtype, V, D, 2);
    const int32_t ids[T] = {7, 0, 39};
    Step step{5, T, ids};
    lab.backend->begin_step(step);
    Output out(lab, size_t(T * D));
    lab.backend->embed(out.data(), table.weight, step);
    lab.backend->rmsnorm(out.data(), lab.in(normals(size_t(T * D), 3)), norm.weight, 1e-5f, T);
    return out.values();
}

Floats elements() {
    constexpr int T = 3, H = 4, G = 2, d = 64, V = 9001;
    Lab lab(PLAYED);
    Step step{5, T};
    lab.backend->begin_step(step);
    Floats table = rotations(8, d);
    Output q(lab, T * H * d, normals(T * H * d, 1)), k(lab, T * G * d, normals(T * G * d, 2));
    lab.backend->rope(q.data(), lab.in(table), H, d, step);
    lab.backend->rope(k.data(), lab.in(table), G, d, step, true);
    lab.backend->rope(q.data(), lab.in(table), 2 * H, 20, step);
    lab.backend->swiglu(q.data(), lab.in(normals(T * H * d, 3)), T, H * d);
    const float* logits = lab.in(normals(T * V, 4));
    Output best(lab, T);
    lab.backend->argmax(reinterpret_cast<int32_t*>(best.data()), logits, T, V);
    lab.backend->stream(logits, T * V * sizeof(float) - 3);
    Floats all = q.values();
    for (Floats more : {k.values(), best.values()}) all.insert(all.end(), more.begin(), more.end());
    return all;
}

// ---- the cache ---------------------------------------------------------------------------------

struct Shape {
    int H, G, d, rank;
    bool rotated;
    int recent;  // of the whole window; 0: there is none
    bool codes = false;  // rows of mixed widths, whatever the rank
    int batch = 170;     // tokens appended together: rings have so many rows more, and come round
    int age = 0;         // tokens that are seen in a format of their own; 0: all are alike
    bool plain = false;  // without bases
    bool means = false;  // keys are less one
    size_t shared = 0;   // bytes that a block may have; 0: as many as ever
    bool joint = false;  // values have one basis
    std::string name() const {
        return format("d %d, %d heads of %d, rank %d%s, keys %s rotation%s, window %d, age %d, by %d%s%s",
                      d, H, G, rank, plain ? ", plain" : codes ? " in codes" : "",
                      rotated ? "after" : "before", means ? " less a mean" : "", recent, age, batch,
                      shared ? ", little shared memory" : "", joint ? ", joint values" : "");
    }
};

Bases bases_of(const Config& config, const Shape& shape) {
    Bases bases = Bases::identity(config, shape.rank);
    Random random(4);
    Matrix Q = random_orthogonal(size_t(shape.d), random);
    for (std::vector<HeadBasis>* side : {&bases.layer[0].k, &bases.layer[0].v})
        for (HeadBasis& head : *side) {
            head.encode = to_floats(Q), head.decode = to_floats(transpose(Q));
            if (shape.codes) head.format[0].count = {4, 8, 8, 0, 8, 0, 8, 8};
            if (shape.age && shape.codes) head.format.push_back({{0, 0, 0, 0, 0, 0, 16, 8}});
            else if (shape.age) head.format.insert(head.format.begin(), RowFormat::whole(12));
        }
    for (HeadBasis& head : bases.layer[0].k)
        if (shape.means) head.mean = normals(size_t(shape.d), 8);
    if (shape.joint) {
        size_t n = size_t(shape.G * shape.d);
        Matrix all = random_orthogonal(n, random);
        HeadBasis& one = bases.layer[0].v[0];
        one.encode = to_floats(all), one.decode = to_floats(transpose(all)), one.weight = Floats(n, 1.0f);
        if (shape.codes) one.format[0].count = {8, 8, 16, 8, 24, 16, 0, 8};
        bases.layer[0].v.resize(1), bases.layer[0].joint = true;
    }
    if (shape.age) bases.ages = {shape.age};
    bases.layer[0].rotated = shape.rotated;
    bases.sinks = shape.recent ? 4 : 0, bases.recent = shape.recent;
    return bases;
}

// Appends S tokens, `batch` together; attends from the last 20, and once more as they are appended
// again; appends and attends from one more.
Floats attention(const Shape& shape, DType dtype, bool ladder) {
    constexpr int S = 170, LAST = 20;
    Lab lab(PLAYED);
    if (shape.shared) static_cast<CudaBackend&>(*lab.backend).shared_limit = shape.shared;
    Config config;
    config.L = 1, config.H = shape.H, config.G = shape.G, config.d = shape.d;
    Bases bases = bases_of(config, shape);
    KvCache cache(*lab.backend, config, S + 1, dtype, shape.plain ? nullptr : &bases, shape.batch);
    const CacheLayer& layer = cache.layer[0];
    size_t d = size_t(shape.d), kv = size_t(shape.G) * d, q = size_t(shape.H) * d;
    // Written by a kernel, as a product does: whoever reads them must have waited for it.
    size_t all_kv = (S + 1) * kv;
    Output all_k(lab, all_kv, normals(all_kv, 1)), all_v(lab, all_kv, normals(all_kv, 2));
    auto ops = make_backward(*lab.backend);
    for (Output* one : {&all_k, &all_v}) ops->add(one->data(), lab.in(Floats(all_kv)), all_kv);
    float *k = all_k.data(), *v = all_v.data();
    Output keys(lab, kv, normals(kv, 5)), queries(lab, LAST * q, normals(LAST * q, 3));
    Floats table = rotations(S + 1, shape.d);
    const float* rotation = lab.in(table);
    Output out(lab, LAST * q), projected(lab, LAST * 7);
    Weights wo(lab, DType::BF16, 7, int(q), 6);
    auto append = [&](const Step& step) {
        lab.step(step);
        size_t from = size_t(step.pos) * kv;
        lab.backend->append(layer, k + from, v + from, step);
    };
    for (int s = 0; s < S; s += shape.batch) append({s, std::min(shape.batch, S - s)});
    Step last{S - LAST, LAST}, one{S, 1};
    lab.step(last);
    Operand heads(out.data(), DType::BF16);
    lab.backend->attend(heads, queries.data(), rotation, layer, last);
    lab.backend->matmul(projected.data(), heads, wo.weight, LAST, false);
    size_t from = size_t(last.pos) * kv;  // once more, their queries on the way
    lab.backend->append(layer, queries.data(), k + from, v + from, rotation, last);
    lab.backend->attend(out.data(), queries.data(), rotation, layer, last);
    lab.step(one);
    lab.backend->append(layer, queries.data(), keys.data(), v + S * kv, rotation, one);
    lab.backend->attend(out.data(), queries.data(), rotation, layer, one);
    Output at_once(lab, q);
    lab.backend->append_and_attend(at_once.data(), layer, queries.data() + q, keys.data(), v + S * kv,
                                   rotation, one);
    for (const ladder::StepOfLadder& step : ladder::STEPS)
        if (ladder)
            step.run(static_cast<CudaBackend&>(*lab.backend), out.data(), queries.data(), rotation,
                     layer);
    Floats all = out.values();
    all.resize(q);  // of one token; what lies behind it is a mixture of types
    for (float x : projected.values()) all.push_back(x);
    for (float x : at_once.values()) all.push_back(x);
    return all;
}

// Whole steps of one token, issued, captured and replayed, behind a prompt; then tokens as if each were
// alone, and the same in a cache that is kept cold.
Floats steps(DType dtype, int d) {
    Scratch scratch;
    TinyModel tiny{.why = "", .L = 1, .D = 64, .F = 64, .V = 40, .H = 4, .G = 2, .d = d, .dtype = dtype};
    write_tiny_model(tiny, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
    Config& config = model.config;
    Bases bases = bases_of(config, {config.H, config.G, d, d / 2, d != 64, 4, d == 128});
    KvCache cache(*model.backend, config, 16, DType::F16, d == 40 ? nullptr : &bases, 8);
    Transformer transformer(model, 16, 8);
    const Token prompt[] = {1, 2, 3};
    transformer.forward_greedy(cache, prompt);
    Floats out(size_t(3 * config.V));
    for (int i = 0; i < 3; i++) transformer.forward_next(cache), transformer.greedy();
    for (int i = 0; i < 3; i++) transformer.forward(cache, {prompt, 1}, out.data(), 1);
    std::string in_memory;
    KvCache cold(*model.backend, config, 16, DType::F16, nullptr, 8, &in_memory);
    transformer.forward(cold, prompt, nullptr, 0);
    Floats all = out;
    Singly alone(transformer);
    for (KvCache* one : {&cache, &cold}) {
        transformer.forward(*one, prompt, out.data(), 3);
        transformer.forward(*one, {prompt, 1}, out.data(), 1);
        all.insert(all.end(), out.begin(), out.end());
    }
    return all;
}

// ---- calibration -------------------------------------------------------------------------------

Floats backward() {
    constexpr int T = 5, m = 2, S = 70, d = 40, F = 96, V = 900;
    Lab lab(PLAYED);
    auto ops = make_backward(*lab.backend);
    auto random = [&](int n, uint64_t seed) { return lab.in(normals(size_t(n), seed)); };
    Output p(lab, T * m * S, normals(T * m * S, 1)), x(lab, T * F), y(lab, T * F);
    ops->causal_softmax(p.data(), T, m, S, S - T, 0.2f);
    const float* dout = random(T * m * d, 3);
    ops->causal_softmax_backward(p.data(), random(T * m * S, 2), dout, dout, T, m, S, S - T, d, 1);
    const float* z = random(T * F, 4);
    ops->swiglu_backward(x.data(), y.data(), z, z, z, T, F);
    for (DType dtype : {DType::F32, DType::F16, DType::BF16}) {
        Weights w(lab, dtype, F, 1, 5);
        ops->rmsnorm_backward(x.data(), z, z, w.weight, 1e-5f, T);
    }
    Step step{2, T};
    lab.step(step);
    Floats angles = rotations(T + 2, d);
    lab.backend->rope(p.data(), lab.in(angles), m, d, step, true);
    ops->add(x.data(), z, T * F);
    ops->scaled_difference(x.data(), z, y.data(), 0.5f, T * F);
    ops->squared_distance(z, y.data(), T * F);
    Matrix sum(d, d), other(d, d);
    Gram grams[] = {{&sum, z, z, T, d}, {&other, random(70 * d, 6), random(70 * d, 7), 70, d}};
    ops->add_grams(grams);
    const float* logits = random(2 * V, 8);
    RowScore scores[2];
    const int32_t next[] = {3, 899};
    lab.backend->score(scores, logits, random(2 * V, 9), next, 2, V);
    Output directions(lab, 2 * V, normals(2 * V, 11)), rows(lab, 3 * d, normals(3 * d, 12));
    ops->score_direction(directions.data(), 5, 2, V);
    ops->divergence_gradient(directions.data(), logits, 2, V);
    ops->copy_rows(rows.data(), d, z, 0, 3, d);
    Output scores_of(lab, T * m * 50, normals(T * m * 50, 13));
    ops->copy_distances({p.data(), 0, S}, {scores_of.data(), 20, 50}, T, m, S - T, 3, 40, true);
    RowFormat format;
    format.count = {4, 8, 0, 0, 0, 8, 0, 8};
    Floats weights(size_t(format.kept()), 0.5f);
    ops->round_rows(rows.data(), weights.data(), format, DType::F16, 3, d);
    Random numbers(10);
    Matrix Q = random_orthogonal(d, numbers), W = random_matrix(d, d, numbers);
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j <= i; j++) W(i, j) = i == j ? 0 : -W(j, i);
    Turn turns[] = {{&Q, &W, 0.1}};
    ops->cayley(turns);
    Floats all = p.values();
    for (Floats more : {x.values(), y.values(), to_floats(sum), to_floats(other), to_floats(Q)})
        all.insert(all.end(), more.begin(), more.end());
    return all;
}

std::vector<Scene> all_scenes() {
    std::vector<Scene> all;
    const DType dtypes[] = {DType::BF16, DType::F16, DType::F32};
    for (DType dtype : dtypes)
        for (auto [N, K] : {std::pair{40, 256}, {40, 77}, {140, 512}, {140, 77}})
            all.push_back({format("products %s, N %d, K %d", name_of(dtype), N, K),
                           [=] { return products(dtype, N, K); }});
    all.push_back({"products bf16, N 4500, K 512",
                   [] { return products(DType::BF16, 4500, 512); }});
    for (DType dtype : {DType::BF16, DType::F16})  // two and eight chunks of x a lane
        for (int K : {9000, 17000})
            all.push_back({format("products %s, N 24, K %d", name_of(dtype), K),
                           [=] { return products(dtype, 24, K); }});
    for (DType dtype : dtypes)
        for (int D : {256, 515, 2048, 4096})
            all.push_back({format("norm and embed %s, D %d", name_of(dtype), D),
                           [=] { return rows(dtype, D); }});
    all.push_back({"rope, swiglu, argmax, stream", elements});
    all.push_back({"calibration", backward});
    for (auto [dtype, d] : {std::pair{DType::BF16, 64}, {DType::F16, 128}, {DType::F32, 40}})
        all.push_back({format("steps of a model %s, d %d", name_of(dtype), d),
                       [=] { return steps(dtype, d); }});
    auto add = [&](DType dtype, const Shape& shape, bool ladder = false) {
        all.push_back({format("attention %s, %s", name_of(dtype), shape.name().c_str()),
                       [=] { return attention(shape, dtype, ladder); }});
    };
    for (bool rotated : {true, false}) {
        // A warp takes several steps with whole rows; without a window several truncated ones.
        add(DType::BF16, {8, 8, 64, 16, rotated, 150});
        add(DType::F16, {8, 8, 64, 16, rotated, 0}, true);
        for (DType dtype : {DType::BF16, DType::F16})
            for (int d : {128, 64})
                for (int H : {8, 20})  // of 2: one tile of query heads, two
                    add(dtype, {H, 2, d, d == 128 ? d / 4 : d / 4 + 4, rotated, H == 8 ? 40 : 0});
        for (DType dtype : dtypes)  // a width of head that tensor cores do not serve
            add(dtype, {6, 2, 40, dtype == DType::F32 ? 40 : 12, rotated, 40});
        add(DType::F16, {6, 2, 64, 44, rotated, 40, true});
        // Codes: tensor cores in both types, a window whose ring comes round, two tiles of heads.
        add(DType::BF16, {8, 2, 128, 44, rotated, 70, true, 40});
        add(DType::F16, {20, 2, 64, 44, rotated, 70, true, 40});
        add(DType::F16, {8, 8, 64, 44, rotated, 0, true, 40, 110});
        add(DType::F16, {8, 8, 64, 44, rotated, 0, false, 20, 110});  // a ring in several stages
    }
    add(DType::F16, {8, 2, 128, 128, true, 0, false, 170, 0, true});
    add(DType::BF16, {8, 8, 64, 64, true, 0, false, 170, 0, true});
    add(DType::F16, {8, 2, 128, 128, true, 0, false, 170, 0, true, false, 99 << 10});
    // Two tiles of queries: packed rows are expanded, of two ages, beside a window's ring.
    add(DType::BF16, {20, 2, 128, 44, true, 70, true, 40});
    add(DType::F16, {20, 2, 64, 44, true, 40, true, 40, 110});
    // What keys are less is given back: on tensor cores, to two tiles of heads, and plain.
    add(DType::BF16, {8, 2, 128, 44, true, 70, true, 40, 0, false, true});
    add(DType::F16, {20, 2, 64, 44, true, 0, true, 40, 110, false, true});
    add(DType::F32, {6, 2, 64, 44, true, 40, true, 40, 0, false, true});
    add(DType::F16, {6, 2, 64, 44, false, 40, true, 40, 0, false, true});
    // Values of all heads together: on tensor cores, by one tile of heads and by several, and plain.
    for (Shape shape : {Shape{8, 2, 128, 44, true, 70, true, 40}, {20, 2, 64, 44, false, 40, true, 40, 110},
                        {6, 2, 64, 44, true, 0, false, 170}}) {
        shape.joint = true;
        add(shape.d == 128 ? DType::BF16 : DType::F16, shape);
        if (!shape.codes) add(DType::F32, shape);
    }
    // Heads wider than 128; joint values of a group of six, and of keys after rotation.
    for (bool rotated : {true, false}) add(DType::F32, {4, 2, 160, 160, rotated, 40, true, 40});
    for (int H : {12, 24}) {
        Shape shape = {H, 2, 64, 44, true, 40, true, 40};
        shape.joint = true;
        add(DType::BF16, shape);
    }
    return all;
}

}  // namespace

const std::vector<Scene>& scenes() {
    static const std::vector<Scene> all = all_scenes();
    return all;
}

}  // namespace stief::testing
