// What a user reads when the device is missing, too old, too small or lost; and that a step which was
// captured once is replayed at other positions.
#include "backend/buffer.h"
#include "backends.h"
#include "forward/generate.h"
#include "device_memory.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("failures");

namespace {

std::unique_ptr<Backend> open_device() {
    static Threads threads(1);
    return make_backend({.name = "cuda"}, threads);
}

}  // namespace

TEST_CASE("no driver, an old one, no device, an old device: one line each, and auto takes the CPU") {
    const struct {
        const char* says;
        void (*damage)(simt::Machine&);
    } cases[] = {
        {"no NVIDIA driver is loaded; use --backend cpu", [](simt::Machine& m) { m.driver = 0; }},
        {"the driver knows CUDA 11.8, this build needs 13.0; update the driver",
         [](simt::Machine& m) { m.driver = 11080; }},
        {"no CUDA device", [](simt::Machine& m) { m.devices = 0; }},
        {"compute capability 7.5, expected 8.0 or later",
         [](simt::Machine& m) { m.major = 7, m.minor = 5; }},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.says));
        simt::Restore restore;
        c.damage(simt::machine);
        CHECK_THROWS_WITH_AS(open_device(), doctest::Contains(c.says), Error);
        Threads threads(1);
        CHECK(make_backend({}, threads)->name == "cpu");
    }
    CHECK(open_device()->name == "cuda");
}

TEST_CASE("heads wider than attention covers are refused where a model is opened, and by attend") {
    const int widest = open_device()->widest_head;
    for (int d : {widest, widest + 2}) {
        Scratch scratch;
        write_tiny_model({.why = "", .L = 1, .H = 1, .G = 1, .d = d}, scratch.folder.string());
        CHECK_NOTHROW(Model::open(scratch.folder.string(), {.name = "cpu"}, 1));
        if (d <= widest)
            CHECK_NOTHROW(Model::open(scratch.folder.string(), {.name = "cuda"}, 1));
        else
            CHECK_THROWS_WITH_AS(Model::open(scratch.folder.string(), {.name = "cuda"}, 1),
                                 doctest::Contains("covers 256 at most; use --backend cpu"), Error);
    }
    CacheLayer wide;
    wide.d = widest + 2, wide.H = wide.G = 1;
    for (int T : {1, 2})
        CHECK_THROWS_WITH_AS(open_device()->attend(nullptr, nullptr, nullptr, wide, {0, T}),
                             doctest::Contains("heads of 258 coordinates, expected at most 256"),
                             Error);
}

TEST_CASE("weights that do not fit are refused before any is copied") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    simt::Restore restore;
    simt::machine.memory = size_t(256 << 20) + (2 << 20);   // what is left free, and the step's ids
    size_t before = simt::allocated(simt::Kind::Device);
    write_tiny_model({.why = "", .D = 512, .F = 1024, .V = 4096}, scratch.folder.string());
    CHECK_THROWS_WITH_AS(Model::open(scratch.folder.string(), {.name = "cuda"}, 1),
                         doctest::Contains("of the device's memory are free; use --backend cpu"),
                         Error);
    CHECK(simt::allocated(simt::Kind::Device) == before);
}

TEST_CASE("a lost device is one error that names the call, wherever it is noticed") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    for (simt::Call call : {simt::Call::Launch, simt::Call::Synchronize, simt::Call::Copy}) {
        CAPTURE(int(call));
        simt::Restore restore;
        Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
        KvCache cache(*model.backend, model.config, 32, DType::F16);
        Transformer transformer(model, 32);
        std::vector<Token> ids = {1, 2, 3};
        std::vector<float> logits(size_t(model.config.V));
        transformer.forward(cache, ids, logits.data(), 1);
        simt::fail_at(call, cudaErrorUnknown, 1, true);
        auto go_on = [&] {
            for (int i = 0; i < 9; i++) transformer.forward(cache, {&ids[0], 1}, logits.data(), 1);
        };
        CHECK_THROWS_WITH_AS(go_on(), doctest::Contains("CUDA: "), Error);
    }
    simt::Restore restore;
    Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
    KvCache cache(*model.backend, model.config, 32, DType::F16);
    Transformer transformer(model, 32);
    std::vector<Token> ids = {1, 2, 3};
    simt::fail_at(simt::Call::Gemm, cudaErrorUnknown);
    CHECK_THROWS_WITH_AS(transformer.forward(cache, ids, nullptr, 0), doctest::Contains("cuBLAS: "),
                         Error);
}

TEST_CASE("a step that fails while it is captured leaves the device as it was") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
    KvCache cache(*model.backend, model.config, 32, DType::F32);
    Transformer transformer(model, 32);
    transformer.exact = true;
    size_t V = size_t(model.config.V);
    std::vector<float> want(V, NaN), got(V, NaN);
    Token ids[] = {3, 8, 21};
    for (Token id : ids) transformer.forward(cache, {&id, 1}, want.data(), 1);

    KvCache again(*model.backend, model.config, 32, DType::F32);
    transformer.forward(again, {&ids[0], 1}, got.data(), 1);
    for (int after : {1, 9}) {  // the second step is captured: two of its launches fail, in turn
        simt::Restore restore;
        simt::fail_at(simt::Call::Launch, cudaErrorUnknown, after);
        CHECK_THROWS_AS(transformer.forward(again, {&ids[1], 1}, got.data(), 1), Error);
        CHECK(again.used == 1);
    }
    for (int i : {1, 2}) transformer.forward(again, {&ids[i], 1}, got.data(), 1);
    CHECK(same_bits(got, want));
}

TEST_CASE("one step is captured for each cache and use, and replayed as if it were issued") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
    std::vector<Token> ids = {1, 9, 33, 5, 60, 2, 7};
    size_t V = size_t(model.config.V);
    KvCache one(*model.backend, model.config, 32, DType::F32);
    KvCache other(*model.backend, model.config, 32, DType::F32);
    Transformer transformer(model, 32);
    transformer.exact = true;
    std::vector<float> together(ids.size() * V, NaN), alone(V, NaN);
    transformer.forward(one, ids, together.data(), int(ids.size()));
    one.used = 0;
    for (size_t i = 0; i < ids.size(); i++)
        for (KvCache* cache : {&one, &other}) {   // two caches in turn
            transformer.forward(*cache, {&ids[i], 1}, alone.data(), 1);
            CHECK(nmse(alone.data(), together.data() + i * V, V) <= 1e-11);
        }
    one.used = 0;
    for (size_t i = 0; i < ids.size(); i++) {
        transformer.forward_greedy(one, {&ids[i], 1});
        const float* row = together.data() + i * V;
        CHECK(transformer.greedy() == std::max_element(row, row + V) - row);
    }
}

TEST_CASE("a layer is so many launches, and no product of several tokens waits for a conversion") {
    // kernels: of cuda/; the rest are cuBLAS's
    const struct { int T; bool bases, rotated; uint64_t kernels, products; const char* why; } cases[] = {
        {1, false, true, 5, 0, "q k v with the norm; attention, which appends; W_o; gate and up with the "
                               "norm; down"},
        {1, true, true, 7 + 1, 0, "with a basis: turns queries on the way; once, how rows lie"},
        {1, true, false, 7 + 1, 0, "keys before rotation; once, how rows lie"},
        {8, false, true, 5, 7, "norm, append, attention, norm, SwiGLU"},
        {8, true, true, 7, 7, "queries into coordinates, and values out of them"},
        {8, true, false, 7, 7, "keys before rotation, few tokens"},
        {200, true, true, 8, 7, "packed rows made whole"},
        {200, true, false, 9, 7, "and keys rebuilt"},
    };
    for (const auto& c : cases) {
        CAPTURE(std::string(c.why));
        uint64_t kernels[2], products[2];
        for (int more : {0, 1}) {
            Scratch scratch;
            write_tiny_model({.why = "", .L = 1 + more, .D = 64, .F = 64, .d = 64,
                              .dtype = DType::BF16}, scratch.folder.string());
            Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
            Bases bases = Bases::identity(model.config, 64);
            std::vector<float> Q(64 * 64, 0.0f);  // any basis: what it holds does not matter
            for (auto& layer : bases.layer) {
                layer.rotated = c.rotated;
                for (auto* side : {&layer.k, &layer.v})
                    for (HeadBasis& head : *side)
                        head.encode = head.decode = Q, head.format = {{{4, 8, 0, 0, 8, 0, 16, 8}}};
            }
            KvCache cache(*model.backend, model.config, 256, DType::F16, c.bases ? &bases : nullptr);
            Transformer transformer(model, 256);
            std::vector<Token> ids(size_t(c.T), 1);
            kernels[more] = simt::statistics.launches, products[more] = simt::statistics.gemms;
            transformer.forward(cache, ids, nullptr, 0);
            kernels[more] = simt::statistics.launches - kernels[more];
            products[more] = simt::statistics.gemms - products[more];
        }
        CHECK(kernels[1] - kernels[0] == c.kernels);
        CHECK(products[1] - products[0] == c.products);
    }
}

TEST_CASE("a token comes home while the step behind it is still to be done") {
    Scratch scratch;
    write_tiny_model({.why = ""}, scratch.folder.string());
    Model model = Model::open(scratch.folder.string(), {.name = "cuda"}, 1);
    KvCache cache(*model.backend, model.config, 32, DType::F16);
    Transformer transformer(model, 32);
    Token first[] = {3, 8};
    transformer.forward_greedy(cache, first);
    for (int i = 0; i < 5; i++) {  // issued, captured, replayed
        transformer.forward_next(cache);
        uint64_t before = simt::statistics.blocks;
        transformer.greedy();
        uint64_t step = simt::statistics.blocks;
        CHECK(step > before);
        CUDA_CHECK(cudaDeviceSynchronize());
        CHECK(simt::statistics.blocks > step);  // what was issued ahead
        transformer.forward_next(cache);
        before = simt::statistics.blocks;
        transformer.greedy();  // its step was done: nothing of the one behind it is played
        CHECK(simt::statistics.blocks == before);
    }
    CHECK_THROWS_WITH_AS(
        [&] {
            for (int i = 0; i < 2; i++) transformer.forward_next(cache);
        }(),
        doctest::Contains("on their way"), Error);
}

TEST_SUITE_END();
