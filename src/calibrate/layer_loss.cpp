// The way there. Queries of one kv head's group lie together, (T, m, d), so that a block of them is
// one matrix of (tokens · m) rows; of the scores only the blocks below the diagonal are computed.
#include "calibrate/layer_loss.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/arena.h"

namespace stief {

Cut cut_to_rank(const Matrix& Q, const Metric& metric, size_t r) {
    if (r >= Q.cols) return {};
    return {to_floats(encode(Q, metric)), to_floats(decode(Q, metric)), {},
            {RowFormat::whole(int(r))}};
}

LayerGradient::LayerGradient(const Config& c, bool joint)
    : k(size_t(c.G), Matrix(size_t(c.d), size_t(c.d))), v(k), stored_k(k) {
    if (joint) v = {Matrix(size_t(c.G * c.d), size_t(c.G * c.d))};
    stored_v = v;
}

// Angles in double: at position 131,071 a float angle is off by 4e-3.
std::vector<float> rotation_table(const Config& config, int positions) {
    std::vector<double> frequencies = rope_frequencies(config);
    std::vector<float> table;
    table.reserve(size_t(positions) * size_t(config.d));
    for (int pos = 0; pos < positions; pos++) {
        for (double theta : frequencies) table.push_back(float(std::cos(double(pos) * theta)));
        for (double theta : frequencies) table.push_back(float(std::sin(double(pos) * theta)));
    }
    return table;
}

size_t LayerKept::place(const Config& c, int most, float* first) {
    Arena arena(first);
    size_t t = size_t(most), Gd = t * size_t(c.G) * size_t(c.d);
    q = arena.take<float>(t * size_t(c.H) * size_t(c.d));
    k = arena.take<float>(Gd), v = arena.take<float>(Gd);
    x1 = arena.take<float>(t * size_t(c.D));
    gate = arena.take<float>(t * size_t(c.F)), up = arena.take<float>(t * size_t(c.F));
    return arena.used / sizeof(float);
}

size_t LayerArrays::place(const Config& c, int most, float* first) {
    size_t kept = LayerKept::place(c, most, first);
    Arena arena(first ? first + kept : nullptr);
    size_t t = size_t(most), D = size_t(c.D), F = size_t(c.F);
    size_t Hd = t * size_t(c.H) * size_t(c.d), Gd = t * size_t(c.G) * size_t(c.d);
    int m = c.H / c.G;
    auto take = [&](size_t n, std::initializer_list<float**> arrays) {
        for (float** one : arrays) *one = arena.take<float>(n);
    };
    take(Hd, {&heads, &att, &datt, &dheads});
    take(Gd, {&k_rotated, &k_cut, &v_cut, &dk, &dv});
    take(2 * Gd, {&dkv});
    take(t * size_t(c.d), {&latent, &centred});
    take(t * D, {&out, &xn, &dy, &dxn});
    take(t * F, {&h, &dh, &dgate, &dup});
    take(size_t(c.G) * block_floats(most, m), {&p});
    take(size_t(BLOCK) * size_t(m) * t, {&dp});
    take(std::max(BLOCK * m, c.G * c.d) * t, {&part});
    return kept + arena.used / sizeof(float);
}

// Of the widest basis, that of joint values.
static size_t basis_floats(const Config& c) {
    return size_t(c.G * c.d) * size_t(c.G * c.d);
}

// All that learning of sequences of that many tokens takes of the backend beside the weights: the
// arrays, what is staged, end_to_end.h's rows, and logits, its two and model_backward.h's. Rotations of
// every position go along.
static size_t bytes_for(const Model& model, size_t positions, int most) {
    const Config& c = model.config;
    size_t rows = size_t(most) * size_t(c.D), logits = 3 * rows_together(c, size_t(most)) * size_t(c.V);
    size_t bases = model.backend->copies_weights ? 2 * basis_floats(c) : 0;
    return (LayerArrays().place(c, most, nullptr) + 5 * rows + positions * size_t(c.d) + bases + logits) *
           sizeof(float);
}

static void require_memory(const Model& model, size_t positions, int most) {
    constexpr double GIB = 1 << 30;
    const Config& c = model.config;
    size_t needed = bytes_for(model, positions, most), available = model.backend->available();
    if (needed <= available) return;
    constexpr int STEP = 64;
    int fits = 0, high = most / STEP + 1;  // the largest multiple that fits is in [fits, high)
    while (high - fits > 1) {
        int middle = (fits + high) / 2;
        (bytes_for(model, positions, middle * STEP) <= available ? fits : high) = middle;
    }
    std::string advice = fits > 0 ? format("--context %d fits", fits * STEP) : "give --backend cpu";
    fail("%s: a layer over sequences of %d tokens needs %.2f GiB, %.2f GiB are available; %s",
         c.folder.c_str(), most, double(needed) / GIB, double(available) / GIB, advice.c_str());
}

LayerPass::LayerPass(Model& owner, int tokens, const std::vector<float>& table)
    : model(owner),
      c(owner.config),
      threads(*owner.threads),
      ops_back(make_backward(*owner.backend)),
      T(tokens),
      rotation(table.data()),
      m(c.H / c.G),
      most(tokens) {
    Backend& ops = *model.backend;
    size_t rows = size_t(most) * size_t(c.D);
    require_memory(model, table.size() / size_t(c.d), most);
    arena = Buffer(ops, place(c, most, nullptr) * sizeof(float), "a layer's activations");
    place(c, most, arena.f32());
    own = *this;
    x_staged = Staged(ops, rows, "a layer's inputs");
    y_staged = Staged(ops, rows, "a layer's outputs");
    cut_staged = Staged(ops, basis_floats(c), "a basis");
    decode_staged = Staged(ops, basis_floats(c), "a basis");
    mean_staged = Staged(ops, size_t(c.d), "a head's mean");
    rotation_staged = Staged(ops, table.size(), "the rotations of all positions");
    turns = rotation_staged.read(table.data(), table.size());
}

// Rows first … first + count − 1 of a weight matrix.
static Weight rows_of(const Weight& w, int first, int count) {
    const char* from =
        static_cast<const char*>(w.data) + size_t(first) * size_t(w.K) * size_of(w.dtype);
    return {from, w.dtype, count, w.K};
}

void LayerPass::begin(int layer, const float* input, const Step& step) {
    begin_on_backend(layer, x_staged.read(input, size_t(step.T) * size_t(c.D)), step);
}

void LayerPass::begin_on_backend(int layer, const float* input, const Step& step) {
    place_at(layer, input, step);
    model.backend->begin_step(at);
    project();
    rotate_keys();
    model.backend->end_step();
}

void LayerPass::place_at(int layer, const float* input, const Step& step) {
    l = layer, x = input, at = step, T = step.T, y_host = nullptr;
}

void LayerPass::keep_in(const LayerKept* elsewhere) {
    static_cast<LayerKept&>(*this) = elsewhere ? *elsewhere : own;
}

// q, k and v from the layer's input.
void LayerPass::project() {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    size_t d = size_t(c.d), t = size_t(T);
    ops.rmsnorm(xn, x, w.attn_norm, c.norm_eps, T);
    std::vector<Projection> all;  // (G) of (T, m, d), (T, d) ×2
    for (int g = 0; g < c.G; g++) {
        size_t side = size_t(g) * t * d;
        all.push_back({q + side * size_t(m), rows_of(w.wq, g * m * c.d, m * c.d)});
        all.push_back({k + side, rows_of(w.wk, g * c.d, c.d)});
        all.push_back({v + side, rows_of(w.wv, g * c.d, c.d)});
    }
    ops.matmul(all, xn, T, false);
    for (size_t g = 0; g < size_t(c.G); g++)
        ops.rope(q + g * t * size_t(m) * d, turns, m, c.d, at);
}

void LayerPass::rotate_keys() {
    size_t each = size_t(T) * size_t(c.d);
    ops_back->copy(k_rotated, k, size_t(c.G) * each);
    for (size_t g = 0; g < size_t(c.G); g++)
        model.backend->rope(k_rotated + g * each, turns, 1, c.d, at);
}

// centred (T, d) ← μ, or where keys are cut after rotation R_s μ.
void LayerPass::repeat_mean(const Cut& cut, bool rotated) {
    size_t d = size_t(c.d);
    ops_back->copy_rows(centred, d, mean_staged.read(cut.mean.data(), d), 0, size_t(T), d);
    if (rotated) model.backend->rope(centred, turns, 1, c.d, at);
}

// from − μ, in `centred`; from itself where there is no mean.
const float* LayerPass::less_mean(const float* from, const Cut& cut, bool rotated) {
    if (cut.mean.empty()) return from;
    repeat_mean(cut, rotated);
    ops_back->scaled_difference(centred, from, centred, 1, size_t(T) * size_t(c.d));
    return centred;
}

void LayerPass::add_mean(float* to, const Cut& cut, bool rotated) {
    if (cut.mean.empty()) return;
    repeat_mean(cut, rotated);
    ops_back->add(to, centred, size_t(T) * size_t(c.d));
}

// latents (T, width) ← unpack(pack((from − μ) E))
void LayerPass::store(float* latents, const float* from, const Cut& cut, const RowFormat& format,
                      const LayerCuts& cuts, int width) {
    size_t d = size_t(width);
    int whole = std::min(T, cuts.sinks);
    Weight E{cut_staged.read(cut.encode.data(), d * d), DType::F32, width, width};
    model.backend->matmul_transposed(latents, less_mean(from, cut, cuts.rotated), E, T);
    ops_back->round_rows(latents, nullptr, RowFormat::whole(width), cuts.dtype, whole, width);
    ops_back->round_rows(latents + size_t(whole) * d, cut.weight.empty() ? nullptr : cut.weight.data(),
                         format, cuts.dtype, T - whole, width);
}

// to ← μ + unpack(pack((from − μ) E)) D, or with R_s μ
void LayerPass::cut_side(float* to, const float* from, const Cut& cut, const RowFormat* format,
                         const LayerCuts& cuts) {
    size_t d = size_t(c.d);
    Backend& ops = *model.backend;
    if (cut.nothing()) return ops_back->copy(to, from, size_t(T) * d);
    if (!format && !cut.lossless) return ops_back->copy(to, from, size_t(T) * d);
    store(latent, from, cut, format ? *format : RowFormat::whole(c.d), cuts, c.d);
    Weight D{decode_staged.read(cut.decode.data(), d * d), DType::F32, c.d, c.d};
    ops.matmul_transposed(to, latent, D, T);
    add_mean(to, cut, cuts.rotated);
    if (!cut.lossless) ops_back->copy(to, from, size_t(std::min(T, cuts.sinks)) * d);
}

// Rows of head g at an age; −1: whole.
void LayerPass::cut_to(float* to_k, float* to_v, const LayerCuts& cuts, int g, int age) {
    size_t side = size_t(g) * size_t(T) * size_t(c.d);
    auto format = [&](const Cut& cut) {
        return age < 0 || cut.nothing() ? nullptr : &cut.format[size_t(age)];
    };
    const Cut &cut_k = cuts.k[size_t(g)], &cut_v = cuts.of_values(g);
    bool before = !cuts.rotated && !cut_k.nothing();  // cut, then rotated
    cut_side(to_k + side, (before ? k : k_rotated) + side, cut_k, format(cut_k), cuts);
    if (before) model.backend->rope(to_k + side, turns, 1, c.d, at);
    if (!cuts.joint) cut_side(to_v + side, v + side, cut_v, format(cut_v), cuts);
}

void LayerPass::cut_head(const LayerCuts& cuts, int g) {
    for (const Cut* cut : {&cuts.k[size_t(g)], &cuts.of_values(g)})
        assert(cut->nothing() || cut->format.size() == ages());
    cut_to(k_cut, v_cut, cuts, g, int(ages()) - 1);
    for (size_t i = 0; has_near(cuts, g) && i < near.size(); i++)
        cut_to(near[i].k, near[i].v, cuts, g, int(i) - 1);
}

// From the heads into the MLP.
void LayerPass::to_gate_and_up() {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    ops_back->copy(x1, x, size_t(T) * size_t(c.D));
    ops.matmul(x1, att, w.wo, T, true);  // x1 = x + att Woᵀ

    Projection gate_and_up[] = {{gate, w.w_gate}, {up, w.w_up}};
    ops.rmsnorm(xn, x1, w.ffn_norm, c.norm_eps, T);
    ops.matmul(gate_and_up, xn, T, false);  // (T, F) ×2
}

// And to the layer's output.
void LayerPass::finish() {
    Backend& ops = *model.backend;
    ops_back->copy(h, gate, size_t(T) * size_t(c.F));
    ops.swiglu(h, up, T, c.F);
    ops_back->copy(out, x1, size_t(T) * size_t(c.D));
    ops.matmul(out, h, model.layer[size_t(l)].w_down, T, true);  // Ŷ = x1 + (silu(gate) ⊙ up) W_downᵀ
}

void LayerPass::attend_all(const LayerCuts& cuts) {
    if (cuts.joint) cut_joint_values(cuts);
    for (int g = 0; g < c.G; g++) {
        cut_head(cuts, g);
        attend(cuts, g);
    }
}

void LayerPass::forward(const LayerCuts& cuts) {
    attend_all(cuts);
    to_gate_and_up();
    finish();
}

void LayerPass::again(int layer, const float* input, const Step& step, const LayerCuts& cuts,
                      bool kept) {
    place_at(layer, input, step);
    model.backend->begin_step(at);
    if (!kept) project();
    rotate_keys();
    model.backend->end_step();
    attend_all(cuts);
    if (!kept) to_gate_and_up();
}

void LayerPass::change(const LayerCuts& cuts, int g) {
    assert(!cuts.joint);
    cut_head(cuts, g);
    attend(cuts, g);
    to_gate_and_up();
    finish();
}

// Y on the backend, brought there once for all that is asked of one sequence.
const float* LayerPass::target(const float* Y) {
    if (Y != y_host) y = y_staged.read(Y, size_t(T) * size_t(c.D)), y_host = Y;
    return y;
}

double LayerPass::squared_error(const float* Y) {
    return ops_back->squared_distance(out, target(Y), size_t(T) * size_t(c.D));
}

}  // namespace stief
