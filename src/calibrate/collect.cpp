#include "calibrate/collect.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/limits.h"

namespace stief {

Activations::Activations(size_t floats, const std::string& folder, bool spill)
    : bytes(std::max<size_t>(floats, 1) * sizeof(float)) {
    int file = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    std::string path = join(folder, "activations");
    if (spill) {
        flags = MAP_SHARED;
        file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
        check(file >= 0, "%s: cannot be created: %s", path.c_str(), std::strerror(errno));
        ::unlink(path.c_str());  // gone when the mapping is, also after a kill
        int failed = ::posix_fallocate(file, 0, off_t(bytes));
        if (failed) ::close(file);
        check(!failed, "%s: %zu bytes of activations do not fit: %s", path.c_str(), bytes,
              std::strerror(failed));
    }
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
    int reason = errno;
    if (file >= 0) ::close(file);
    check(memory != MAP_FAILED, "%zu bytes of activations: %s; use fewer --tokens", bytes,
          std::strerror(reason));
    data = static_cast<float*>(memory);
}

Activations::~Activations() {
    if (data) ::munmap(data, bytes);
}

void Activations::swap(Activations& other) {
    std::swap(data, other.data);
    std::swap(bytes, other.bytes);
}

static bool too_large(const Model& model, const Sequences& a, const Sequences& b) {
    size_t rows = (a.count() + b.count()) * size_t(a.T);
    return 2 * rows * size_t(model.config.D) * sizeof(float) > available_memory() / 4;
}

LayerInputs::LayerInputs(Model& model, const Sequences& learning, const Sequences& holding,
                         const std::string& folder)
    : learn(learning),
      held_out(holding),
      x((learn.count() + held_out.count()) * size_t(learn.T) * size_t(model.config.D), folder,
        too_large(model, learning, holding)),
      y(x.bytes / sizeof(float), folder, too_large(model, learning, holding)),
      energy(learn.count() + held_out.count()),
      each(size_t(learn.T) * size_t(model.config.D)) {
    Backend& ops = *model.backend;
    Buffer rows(ops, each * sizeof(float), "a sequence's embeddings");
    float* to = x.data;
    for (const Sequences* part : {&learn, &held_out})
        for (const std::vector<Token>& ids : part->ids) {
            embed_sequence(model, rows.f32(), ids);
            ops.download(to, rows.f32(), each * sizeof(float));
            to += each;
        }
}

void embed_sequence(Model& model, float* out, const std::vector<Token>& ids) {
    Step step{0, int(ids.size()), ids.data()};
    model.backend->begin_step(step);
    model.backend->embed(out, model.embedding, step);
    model.backend->end_step();
}

Moments::Moments(const Config& config)
    : k(size_t(config.G), Matrix(size_t(config.d), size_t(config.d))), k_rotated(k), v(k), q(k) {}

static void add_moments(LayerPass& pass, Moments& moments) {
    const Config& c = pass.c;
    size_t each = size_t(pass.T) * size_t(c.d);
    int m = c.H / c.G;
    std::vector<Gram> all;
    auto add = [&](Matrix& to, const float* from, int rows) {
        all.push_back({&to, from, from, rows, c.d});
    };
    for (size_t g = 0; g < size_t(c.G); g++) {
        add(moments.k[g], pass.k + g * each, pass.T);
        add(moments.k_rotated[g], pass.k_rotated + g * each, pass.T);
        add(moments.v[g], pass.v + g * each, pass.T);
        add(moments.q[g], pass.q + g * each * size_t(m), pass.T * m);
    }
    pass.ops_back->add_grams(all);
}

Moments collect(LayerPass& pass, LayerInputs& inputs, int l) {
    Moments moments(pass.c);
    LayerCuts whole(pass.c, false);
    size_t learning = inputs.learn.count(), all = learning + inputs.held_out.count();
    for (size_t s = 0; s < all; s++) {
        bool learns = s < learning;
        Step step = learns ? inputs.learn.step(s) : inputs.held_out.step(s - learning);
        pass.begin(l, inputs.x.data + s * inputs.floats(), step);
        pass.forward(whole);
        double energy = pass.ops_back->squared_norm(pass.out, inputs.floats());
        check(std::isfinite(energy) && energy > 0,
              "%s: the output of layer %d is %s: the checkpoint is damaged or not trained",
              pass.c.folder.c_str(), l, energy == 0 ? "zero everywhere" : "not finite");
        inputs.energy[s] = energy;
        pass.model.backend->download(inputs.y.data + s * inputs.floats(), pass.out,
                                     inputs.floats() * sizeof(float));
        if (learns) add_moments(pass, moments);
    }
    return moments;
}

}  // namespace stief
