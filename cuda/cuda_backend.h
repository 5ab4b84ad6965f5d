// The CUDA backend: the operations of the seam on one NVIDIA GPU. A file that is named as one of
// the CPU's is its twin.
//
// Weights are copied to the device when they are bound. Everything runs on one stream. A step with a
// replay number is issued as any other the first time, captured as a graph the second time, when every
// kernel is loaded and all scratch is there, and replayed from then on. So kernels read the position
// and the tokens from device memory (pos, ids), where begin_step puts them, captured or not, and where pos
// goes on by itself behind a step with a home; of how far the position is they know a bound (reach), and
// each bound has a capture of its own.
#pragma once
#include <climits>
#include <functional>
#include <map>
#include <vector>

#include "backend/backend.h"
#include "cuda.cuh"

namespace stief {

struct HeadsIn;  // append.cuh

struct CudaBackend final : Backend {
    static constexpr int WIDEST_HEAD = 256;  // attention_plain.cuh keeps a row of values in registers
    cudaStream_t queue = nullptr;  // the one stream of everything
    cublasHandle_t cublas = nullptr;
    int multiprocessors = 0;
    size_t shared_limit = 0;       // bytes of shared memory that a block may ask for
    size_t most_expanded = size_t(64) << 20;  // bytes of packed rows that prefill makes whole at once
    size_t most_sums = size_t(16) << 20;  // bytes of a few tokens' sums at once: in the second cache
    const int* pos = nullptr;      // device: position of the step's first token
    const int32_t* ids = nullptr;  // device: its tokens, up to MOST_IDS
    const float* turned = nullptr;  // the q whose latent form append has left in Scratch::Queries

    explicit CudaBackend(const BackendOptions& options);
    ~CudaBackend() override;
    CudaBackend(const CudaBackend&) = delete;

    size_t available() const override;
    void* alloc(size_t bytes, const char* what) override;
    void* alloc_cold(size_t bytes, const char* what, const std::string& path) override;
    void release(void* memory, size_t bytes) override;
    Weight bind(const Tensor& tensor) override;
    void upload(void* to, const void* host, size_t bytes) override;
    void download(void* host, const void* from, size_t bytes) override;
    bool begin_step(const Step& step) override;
    void end_step() override;

    void embed(float* out, const Weight& table, const Step& step) override;
    void rmsnorm(float* out, const float* x, const Weight& w, float eps, int T) override;
    using Backend::matmul;
    void matmul(std::span<const Projection> all, const Input& x, int T, bool add) override;
    void matmul_transposed(float* out, const float* x, const Weight& w, int T) override;
    void rope(float* x, const float* rotation, int heads, int d, const Step& step,
              bool back = false) override;
    void swiglu(float* gate, const float* up, int T, int F) override;
    void gated(Operand gate, float* up, const Input& x, const Weight& w_gate, const Weight& w_up,
               int T) override;
    using Backend::append;
    void append(const CacheLayer& cache, float* q, float* k, const float* v, const float* rotation,
                const Step& step) override;
    void attend(Operand out, const float* q, const float* rotation, const CacheLayer& cache,
                const Step& step) override;
    void append_and_attend(Operand out, const CacheLayer& cache, float* q, float* k, const float* v,
                           const float* rotation, const Step& step) override;
    std::string plain_attention(const CacheLayer& cache) const override;
    void argmax(int32_t* out, const float* x, int T, int V) override;
    void score(RowScore* out, const float* logits, const float* full, const int32_t* next, int rows,
               int V) override;
    uint64_t stream(const void* memory, size_t bytes) override;

    // Positions up to which a step at this one may be replayed: few need few blocks of attention.
    static int reach(const Step& step) {
        int S = step.pos + step.T;
        return S <= 256 ? 256 : S <= 1024 ? 1024 : INT_MAX;
    }
    // Whether products of T tokens with weights of that dtype take x in bf16. An Operand that meets
    // them is kept so: the bf16 of a token at the beginning of its K floats.
    bool rounds(DType weights, int T) const {
        return !exact && !singly && T > 1 && weights == DType::BF16;
    }
    // rmsnorm, rounded; out (T, D)
    void norm_rounded(bf16* out, const float* x, const Weight& w, float eps, int T);
    // swiglu, rounded: gate (T, F) becomes an Operand that is kept in bf16.
    void swiglu_rounded(float* gate, const float* up, int T, int F);

    // Device memory that operations use within one call, Waiting to the end of a step: a block for each
    // purpose, which grows and is not moved under a captured graph (outgrown blocks live as long as the
    // backend).
    enum class Scratch { Activations, Weights, Partials, Queries, Rows, Scores, Waiting, Reduction, Count };
    void* scratch(Scratch purpose, size_t bytes);

    // What kernels of such a layer know ahead of a step, in memory of its own; where that is new `describe`
    // makes it, and it is whole. It lives until the memory at cache.rows is written or released; seen_rows,
    // the bases, and the angles of a rotation that it was made with, stay as they are.
    void* described(const CacheLayer& cache, const float* rotation, size_t bytes,
                    const std::function<void(void*)>& describe);

  private:
    void drop_capture();
    // f(step of token t alone, t) for each token of a step that goes singly, at its own position.
    void each_alone(const Step& step, const std::function<void(const Step&, size_t)>& f);
    // cold_rows.cu: a layer whose rows lie in the host's memory, with those of positions below `stored` on
    // the device, until the next is brought; and its rows from there on, T of them, back home.
    bool lies_cold(const CacheLayer& cache) const;
    const CacheLayer& bring_cold(const CacheLayer& cache, int stored);
    void send_cold(const CacheLayer& cache, const Step& step);
    void bring_home(const int32_t* from);
    // append_later.cu: where to leave what a token's codes are made of, if they may wait for the end of a
    // step, or null; and what waits.
    float* wait_with_codes(const CacheLayer& cache, const HeadsIn& in);
    void append_waiting();
    struct Impl;
    std::unique_ptr<Impl> impl;
};

// The backend, or an Error: no device, a driver older than the toolkit. Declared again in
// select.cpp, which no CUDA header reaches.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace stief
