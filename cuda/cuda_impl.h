// What a CUDA backend keeps besides the seam's own: memory (cuda_backend.cu) and the step at hand
// (steps.cu).
#pragma once
#include <deque>
#include <optional>

#include "append.cuh"

namespace stief {

constexpr int MOST_IDS = 1 << 18;  // tokens of one step
constexpr int MOST_SINGLY = 33;    // of one that goes singly: a draft's verification

struct CudaBackend::Impl {
    int32_t* step = nullptr;   // (1 + MOST_IDS + MOST_SINGLY)  pos, ids, each token's own pos
    int32_t* own_pos() const { return step + 1 + MOST_IDS; }
    std::vector<void*> owned;  // weights and scratch
    std::map<const char*, size_t> cold;  // of alloc_cold, page-locked; bytes
    void* scratch[int(Scratch::Count)] = {};
    size_t scratch_bytes[int(Scratch::Count)] = {};
    void* landing = nullptr;  // pinned: what is downloaded arrives here
    size_t landing_bytes = 0;

    // Numbers on their way home (Step::home), oldest first. Each has its own place and event, so that
    // who waits for one does not wait for the steps behind it.
    static constexpr int MOST_COMING = 2;
    struct Coming {
        const void* from;
        int place;
    };
    std::deque<Coming> coming;
    const int32_t* home = nullptr;  // of the step at hand, as are its end and its tokens
    int end_pos = 0, T = 0;
    int next_pos = -1;              // at which the device stands behind a step with a home; −1: unknown
    int32_t* places = nullptr;      // (MOST_COMING)  pinned
    cudaEvent_t there[MOST_COMING] = {};
    int next_place = 0;

    // Rows of codes that wait for the end of the step at hand (append_later.cu), of layers alike.
    struct Alike {
        DType dtype;
        int G, d, heads;
        bool bases;
        bool operator==(const Alike&) const = default;
    };
    std::vector<WaitingRows> waiting;
    Alike alike = {};

    // The layer of cold rows that is on the device (cold_rows.cu), all of it in one block as it lies at home.
    struct Brought {
        char* memory = nullptr;
        size_t bytes = 0, pitch = 0;  // of the block; from a head's rows to the next's
        CacheLayer layer;
        CacheRows* rows = nullptr;    // of layer.rows
        size_t heads = 0;             // that these have room for
    };
    Brought brought;

    bool page_locked(const void* host, size_t bytes) const {
        const char* first = static_cast<const char*>(host);
        auto behind = cold.upper_bound(first);
        if (behind == cold.begin()) return false;
        auto [begin, size] = *std::prev(behind);
        return first + bytes <= begin + size;
    }

    // CudaBackend::described, by CacheLayer::rows.
    struct Description {
        void* memory = nullptr;
        size_t bytes = 0;
        const float* rotation = nullptr;
        bool whole = false;
    };
    std::map<const void*, Description> descriptions;

    // A step is issued when its number is new, captured when it comes again, then replayed: by then
    // every kernel is loaded and all scratch is there.
    struct Graph {
        uint64_t replay;
        int reach;
        cudaGraphExec_t exec;  // null: came once
    };
    std::vector<Graph> graphs;   // oldest first
    std::optional<Graph> issued; // the step at hand, whose number is new
    void remember(const Graph& one);
    Graph* capturing = nullptr;  // the step at hand, while it is captured
    cudaGraphExec_t replaying = nullptr;
};

}  // namespace stief
