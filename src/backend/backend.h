// The seam: all that running a model asks of a backend. Memory, the begin and end of a step, the
// operations of a decoder block and its cache, the score of its predictions, and what bench reads.
// The passes above it (forward/, calibrate/) are written once for all backends; what learning asks
// besides is in backward.h. Every operation has one test that drives all backends
// (tests/backends.h).
//
// Activations are float32, but for an Operand. Pointers are the backend's own memory (from alloc)
// except where a comment says host. Outputs never overlap inputs unless they are one pointer where
// the equation says so.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/cache_layer.h"
#include "base/tensor.h"
#include "base/threads.h"

namespace stief {

// A weight matrix as the checkpoint stores it, (N, K) row-major: out = x wᵀ. The CPU copies none.
struct Weight {
    const void* data = nullptr;
    DType dtype = DType::F32;
    int N = 0, K = 0;             // a vector (norm weights): N = its length, K = 1
    size_t bytes() const { return size_t(N) * size_t(K) * size_of(dtype); }
};

// out = x wᵀ, one of several products of the same x.
struct Projection {
    float* out;                   // (T, N)
    Weight w;                     // (N, K)
};

// Activations that are only read by products with weights of one dtype, in the same step: a backend
// may keep them as those products take them, rounded once. A float* alone is float32 for anybody.
struct Operand {
    float* data;                  // memory for (T, K) float32 all the same
    DType meets = DType::F32;     // of the weights
    Operand(float* x, DType weights = DType::F32) : data(x), meets(weights) {}
};

// What a product reads, (T, K): float32, an Operand, or the norm of float32,
//     x_t ⊙ w / √(mean(x_t²) + ε)
struct Input {
    const float* x;
    DType meets = DType::F32;     // as the operation that wrote x was told
    const Weight* norm = nullptr; // (K)  w
    float eps = 0;
    float* normed = nullptr;      // (T, K)  scratch for the norm: what it holds afterwards is open
    Input(const float* rows) : x(rows) {}
    Input(const Operand& kept) : x(kept.data), meets(kept.meets) {}
    Input(const float* rows, const Weight& weight, float epsilon, float* scratch)
        : x(rows), norm(&weight), eps(epsilon), normed(scratch) {}
};

// Where a call stands: its T tokens have the positions pos … pos + T − 1. A device reads pos and
// ids from its own memory, where begin_step put them, until the next one, or the end of one with a home.
struct Step {
    int pos = 0, T = 0;
    const int32_t* ids = nullptr; // (T)  host; null where nothing is embedded, or what follows is
    // (1)  the backend's memory: the token of a step of one that the host need not know, as argmax
    // left it. −1, of a row with NaN, is read as 0: who downloads it will see.
    const int32_t* token = nullptr;
    // (1)  the backend's memory: end_step begins to bring it home. The next download of it gives
    // what it held at the end of this step and waits for no later work. Two at most are on their
    // way; another address, or the release of this one, forgets them.
    const int32_t* home = nullptr;
    // Not 0: whenever this number comes again, the operations of the step and all their arguments
    // are the same but for pos and ids, so that a backend may capture them once and replay them.
    uint64_t replay = 0;
};

// What two models make of the token that follows: −ln q(next) and −ln p(next), KL(p ‖ q), and
// whether both think the same token most likely. Without a model to compare with, loss alone.
// A token's swing is by how much q moved its odds against p's most likely token t, in nats,
//     ln p(t)/p(token) − ln q(t)/q(token)
struct RowScore {
    double loss = 0, loss_full = 0, divergence = 0;
    double swing = 0, swing_next = 0;    // of q's most likely token (>= 0), and of next
    int32_t same_top = 0, top_full = 0;  // top_full: t
};

struct BackendOptions {
    std::string name = "auto";    // auto | cpu | cuda
    std::string isa = "auto";     // CPU: auto, or the name of a set of inner products
};

struct Backend {
    std::string name;             // "cpu", "cuda"
    std::string device;           // "avx512, 2 threads"
    bool copies_weights = false;  // bind() takes memory of the device
    bool runs_ahead = false;      // work is only asked for: a step need not be done at its end_step
    bool cold_apart = false;      // alloc_cold gives host memory that available() does not count, of which a
                                  // layer's rows come to the backend's own while several tokens read them
    int widest_head = 1 << 20;    // coordinates of a head that attend() covers at most
    // float32 in every product; otherwise, in products of more than one token, a matrix unit may
    // take x rounded to bf16 where w is bf16, and x and an f32 w rounded to TF32's 11 bits where it
    // is not; and attention over 16-bit rows may round to their type. May be changed between steps.
    bool exact = false;
    // A step of T tokens gives what T steps of one token give, to the last bit: sums in their
    // order, attention divided as each token alone would have it. Steps of at most most_singly
    // tokens.
    bool singly = false;
    int most_singly = 1;
    int singly_together = 1;      // as many at once cost hardly more than fewer, and one more as much again

    virtual ~Backend() = default;

    // ---- its memory, and steps
    virtual size_t available() const = 0;                       // bytes that alloc can give
    // Zeroed. Error if it does not fit, said before allocating.
    virtual void* alloc(size_t bytes, const char* what) = 0;
    virtual void release(void* memory, size_t bytes) = 0;
    // Zeroed, for rows that are read once in many tokens: host memory, which a device reads where
    // it lies, or, with a path, a new file that has no name any more and is gone with the memory.
    // Error where there is no room, said before it is used.
    virtual void* alloc_cold(size_t bytes, const char* what, const std::string& path) = 0;
    virtual Weight bind(const Tensor& tensor) = 0;              // (N, K) or (N); CPU: as mapped
    virtual void upload(void* to, const void* host, size_t bytes) = 0;
    virtual void download(void* host, const void* from, size_t bytes) = 0;
    // False: the step is replayed from its capture, and no operation may be called before end_step.
    virtual bool begin_step(const Step& step) = 0;
    virtual void end_step() = 0;                                // then results can be downloaded

    // ---- operations
    // out_t = table_{ids_t}
    virtual void embed(float* out,              // (T, D)
                       const Weight& table,     // (V, D)
                       const Step& step) = 0;
    // out_t = x_t ⊙ w / √(mean(x_t²) + ε)                      (RMSNorm, Zhang & Sennrich 2019)
    virtual void rmsnorm(float* out,            // (T, D)
                         const float* x,        // (T, D)
                         const Weight& w,       // (D)
                         float eps, int T) = 0;
    // out = x wᵀ for each, or out += x wᵀ where add
    virtual void matmul(std::span<const Projection> all,
                        const Input& x,         // (T, K)
                        int T, bool add) = 0;
    // out = x w: a gradient's way back through out = x wᵀ (calibrate).
    virtual void matmul_transposed(float* out,  // (T, K)
                                   const float* x,   // (T, N)
                                   const Weight& w,  // (N, K)
                                   int T) = 0;
    // Rotates pairs (j, j + d/2) of each head by the angle of the token's position:
    //     x_j ← x_j cos − x_{j+d/2} sin,  x_{j+d/2} ← x_{j+d/2} cos + x_j sin     (Su et al. 2021)
    virtual void rope(float* x,                 // (T, heads, d)  in place
                      const float* rotation,    // (context, 2, d/2)  cosines, sines by position: of
                                                // angles in proportion to it
                      int heads, int d, const Step& step,
                      bool back = false) = 0;   // by minus the angles, the transpose: calibrate
    // gate ← silu(gate) ⊙ up,  silu(z) = z / (1 + e^−z)
    virtual void swiglu(float* gate,            // (T, F)
                        const float* up,        // (T, F)
                        int T, int F) = 0;
    // gate ← silu(x w_gateᵀ) ⊙ (x w_upᵀ)
    virtual void gated(Operand gate,            // (T, F)
                       float* up,               // (T, F)  scratch: what it holds afterwards is open
                       const Input& x,          // (T, K)
                       const Weight& w_gate,    // (F, K)
                       const Weight& w_up,      // (F, K)
                       int T) = 0;
    // The way into the cache. Rotates q and, where cache.rotated, k by their positions, as rope does;
    // then stores the T new rows of every kv head at their positions: encoded, c = (k − μ) E, and packed
    // into each of the head's stores. If attend over this layer follows it takes this q, unchanged.
    virtual void append(const CacheLayer& cache,
                        float* q,               // (T, H, d)  in place; null: no queries
                        float* k,               // (T, G, d)  rotated or not, afterwards, is open
                        const float* v,         // (T, G, d)
                        // as in rope; null: k is rotated where it must be, and less its turned mean
                        // where there is one, and then no row of that head may be seen whole
                        const float* rotation,
                        const Step& step) = 0;
    // out_h = Σ_s softmax_s(q_h · k̃_s / √d) ṽ_s over the positions s ≤ the token's own, where
    // k̃_s = R_s (μ + c̃_s D) of keys stored before rotation, R_s μ + c̃_s D of those after it that are not
    // whole, c̃_s the row that the token sees, unpacked, and whatever tokens were appended together. Online
    // softmax over tiles of positions: memory does not grow with the context (Dao et al. 2022).
    virtual void attend(Operand out,            // (T, H, d)
                        const float* q,         // (T, H, d)  rotated
                        const float* rotation,  // (context, 2, d/2)  as in rope
                        const CacheLayer& cache, const Step& step) = 0;
    // Both, one after the other, as a step of a model has them: a device may make one kernel of the two. What
    // q and k hold afterwards is open.
    virtual void append_and_attend(Operand out, const CacheLayer& cache, float* q, float* k, const float* v,
                                   const float* rotation, const Step& step) {
        append(cache, q, k, v, rotation, step);
        attend(out, q, rotation, cache, step);
    }
    // Why attention over this layer takes a way several times slower than others, in a line for people;
    // empty: it does not, or `exact` asks for it.
    virtual std::string plain_attention(const CacheLayer&) const { return ""; }
    // The index of the largest of each row; the first of equals; −1 where any is NaN.
    virtual void argmax(int32_t* out,           // (T)
                        const float* x,         // (T, V)
                        int T, int V) = 0;

    // Of each row: −ln softmax(z)_next of both, and with δ = ln q − ln p
    //     KL(p ‖ q) = Σ p (e^δ − 1 − δ),
    // no term of which is negative: it keeps its digits where p and q hardly differ. NaN gives NaN.
    virtual void score(RowScore* out,           // host  (rows)
                       const float* logits,     // (rows, V)  q, of the model under test
                       const float* full,       // (rows, V)  p; null: nothing to compare with
                       const int32_t* next,     // host  (rows)  in [0, V)
                       int rows, int V) = 0;

    // Reads `bytes` of memory with every thread or block, as fast as it can: what decode is
    // measured against. Returns a checksum, so that nothing is left out.
    virtual uint64_t stream(const void* memory, size_t bytes) = 0;

    // Rows that are as the cache keeps them, without queries; k is not written.
    void append(const CacheLayer& cache, const float* k, const float* v, const Step& step) {
        append(cache, nullptr, const_cast<float*>(k), v, nullptr, step);
    }
    // One product.
    void matmul(float* out, const Input& x, const Weight& w, int T, bool add) {
        Projection one{out, w};
        matmul({&one, 1}, x, T, add);
    }
};

inline bool lies_in(const void* address, const void* memory, size_t bytes) {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(memory) < bytes;
}

// The view of a tensor that bind() makes a weight of. Error where it is no matrix or vector.
Weight view_of(const Tensor& tensor);

// threads: the process's one pool, also used by the code above the seam; it outlives the backend.
std::unique_ptr<Backend> make_backend(const BackendOptions& options, Threads& threads);

// Names of the CPU's inner products that this machine can run, fastest first: "amx", "vbmi",
// "avx512", "avx2", "portable"; or "neon", "portable".
std::vector<std::string> cpu_isas();

}  // namespace stief
