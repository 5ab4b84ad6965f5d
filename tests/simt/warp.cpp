// What the tensor core's instructions mean, from PTX's fragment tables: g = lane / 4, t = lane % 4.
#include "cuda.cuh"

namespace stief::simt {

// Arithmetic on arrays of fixed size, most of what is played: not worth the sanitizers' time.
#define UNWATCHED __attribute__((no_sanitize("address", "undefined")))

// d (16, 8) += A (16, K) B (K, 8) on the fragments of 32 lanes.
template <int K>
UNWATCHED static void multiply_add(void** lanes, const float (&A)[16][K], const float (&B)[K][8]) {
    float sum[16][8];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = static_cast<Mma*>(lanes[lane])->d[i];
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++) sum[m][n] += A[m][k] * B[k][n];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            static_cast<Mma*>(lanes[lane])->d[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

template <class E>
UNWATCHED static void mma_halves(void** lanes) {
    float A[16][16], B[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Mma& mine = *static_cast<Mma*>(lanes[lane]);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int half = 0; half < 2; half++)
                A[g + i % 2 * 8][2 * t + i / 2 * 8 + half] =
                    to_float(E{uint16_t(mine.a[i] >> 16 * half)});
        for (int i = 0; i < 2; i++)
            for (int half = 0; half < 2; half++)
                B[2 * t + i * 8 + half][g] = to_float(E{uint16_t(mine.b[i] >> 16 * half)});
    }
    multiply_add(lanes, A, B);
}

void mma_bf16(void** lanes, unsigned) {
    mma_halves<bf16>(lanes);
}
void mma_f16(void** lanes, unsigned) {
    mma_halves<f16>(lanes);
}

void transpose(void** lanes, unsigned) {
    for (int lane = 0; lane < 32; lane++) {
        int g = lane / 4, t = lane % 4;
        uint32_t* mine = static_cast<uint32_t*>(lanes[lane]);
        mine[1] = 0;
        for (int half = 0; half < 2; half++) {
            uint32_t pair = *static_cast<uint32_t*>(lanes[(2 * t + half) * 4 + g / 2]);
            mine[1] |= (pair >> 16 * (g % 2) & 0xffffu) << 16 * half;
        }
    }
}

struct Rows {
    uint32_t* r;
    const void* row;
    int count;
    bool transposed;
    const void* code;
};

static void load_rows(void** lanes, unsigned) {
    unsigned first = threadIdx.x - lane();
    for (int lane = 0; lane < 32; lane++) {
        const Rows& mine = *static_cast<Rows*>(lanes[lane]);
        int g = lane / 4, t = lane % 4;
        if (watcher && lane < 8 * mine.count)
            watcher->access(first + unsigned(lane), mine.row, 16, Access::Matrix, mine.code);
        for (int i = 0; i < mine.count; i++) {
            uint16_t pair[2];
            for (int half = 0; half < 2; half++) {
                int row = mine.transposed ? 2 * t + half : g;
                int column = mine.transposed ? g : 2 * t + half;
                const void* from = static_cast<Rows*>(lanes[8 * i + row])->row;
                const uint16_t* element = static_cast<const uint16_t*>(from) + column;
                if (watcher)
                    watcher->access(first + unsigned(lane), element, 2, Access::Fragment,
                                    mine.code);
                pair[half] = *element;
            }
            mine.r[i] = pair[0] | uint32_t(pair[1]) << 16;
        }
    }
}

void load_matrices(uint32_t* r, int count, bool transposed, const void* row, const Site& site) {
    if (int(lane()) < 8 * count && (uintptr_t(row) % 16 || !in_shared(row, 16)))
        fail("%s: ldmatrix at %s:%u from %p: expected 16 aligned bytes of shared memory",
             where().c_str(), site.file, site.line, row);
    Rows mine{r, row, count, transposed, SIMT_CODE};
    // A count and a direction are an instruction of their own: the lanes must agree on them.
    static constexpr Combine combine[4] = {
        [](void** lanes, unsigned mask) { load_rows(lanes, mask); },
        [](void** lanes, unsigned mask) { load_rows(lanes, mask); },
        [](void** lanes, unsigned mask) { load_rows(lanes, mask); },
        [](void** lanes, unsigned mask) { load_rows(lanes, mask); }};
    meet(~0u, &mine, combine[count / 4 * 2 + transposed], site);
}

}  // namespace stief::simt
