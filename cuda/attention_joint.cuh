// What a block of decode attention over joint values (attention_joint.cu) does with a step of rows: its warps
// make weights of scores, each for some heads, and sum values, each some columns of them for all heads.
#pragma once
#include "attention_merge.cuh"
#include "coded_fragments.cuh"

namespace stief {

constexpr int JOINT_WARPS = 8, JOINT_STEP = 32;  // warps of a block at most; values of a step at most
constexpr int JOINT_STAGES = 3;
constexpr int SLICE = 64, SLICE_SLOTS = SLICE / ROW_GROUP;  // columns of a warp
constexpr int WEIGHTS = JOINT_STEP + 8;  // elements from a head's weights to the next one's: 8 heads lie in
                                         // different banks
static_assert(WIDENED == JOINT_STEP * ROW_GROUP);

// Values of a step: as many as are 24 KB, but of codes always all that a warp takes apart at once.
__host__ __device__ inline int joint_step(const RowStore& store) {
    constexpr int MOST_BYTES = 24 << 10;
    int rows = JOINT_STEP;
    while (!coded(store.format) && rows > 8 && rows * store.bytes > MOST_BYTES) rows /= 2;
    return rows;
}
// Up to 15 bytes before the first row, up to 15 after the last, and words that are read beyond.
__host__ __device__ inline int joint_stage(const RowStore& store) {
    return (joint_step(store) * store.bytes + 30) / 16 * 16 + 32;
}

// What a block shares besides stages of rows.
template <int Q>
struct JointShared {
    CacheRows v;
    Seen seen;
    LevelTables levels;
    CodeSlot slot[JOINT_WARPS][SLICE_SLOTS];
    CodeGroup wide[JOINT_WARPS][SLICE_SLOTS];  // those of 5 and 6 bits, widened for their warp
    char widened[JOINT_WARPS][SLICE_SLOTS * WIDENED];
    float score[JOINT_STAGES][8 * Q][JOINT_STEP];  // of steps on their way, as their rows
    float max[8 * Q], sum[8 * Q][JOINT_STEP];      // so far: of a head Σ 2^(s − max), by lane
    // Of one step and of the next: weights of codes, and of elements beside them; what sums so far are
    // multiplied by, and whether some warp's heads are by anything but 1.
    alignas(16) uint16_t weight[2][2][8 * Q][WEIGHTS];
    float keep[2][8 * Q];
    int moved[2][JOINT_WARPS];
};

template <int Q>
struct JointLayout {
    JointShared<Q>* shared;
    char* stages;  // (JOINT_STAGES, stage)
    size_t bytes;

    __host__ __device__ __forceinline__ JointLayout(char* memory, int stage) {
        Carve carve{memory};
        shared = carve.take<JointShared<Q>>(), stages = carve.take<char>(JOINT_STAGES * stage);
        bytes = carve.bytes;
    }
};

// Warp w's part of a step: scores of every so many-th head become weights for all warps; then columns
// 64 w … of the values are summed for all heads. A lane (g, t) has slot g of those columns, in the order of
// coded_fragments.cuh, whatever its rows are: codes, elements or nothing.
template <class E, int Q>
struct JointWarp {
    JointShared<Q>& shared;
    char* stages;  // shared (JOINT_STAGES, stage)
    int stage;
    HeadScores scores;
    int first_head, heads;  // of the block
    int first_slot;         // of the warp
    float acc[Q][4][4];     // (codes 2m, 2m + 1 of slot g) x (heads 2t, 2t + 1), in steps
    float step = 1;         // of this lane's slot
    Widths widest;          // of the warp's codes
    bool codes, elements;   // whether the warp's slots have any
    int wides;
    const RowStore* lying;  // shared: those of the stretch at hand

    __device__ __forceinline__ JointWarp(JointShared<Q>& own, char* memory, int stage_bytes,
                                         const HeadScores& from, int head, int count)
        : shared(own), stages(memory), stage(stage_bytes), scores(from), first_head(head), heads(count) {
        first_slot = (int(blockIdx.y) * warps() + warp()) * SLICE_SLOTS;
        for (int h = warp(); h < 8 * Q; h += warps()) {
            if (lane() == 0) shared.max[h] = -INFINITY;
            shared.sum[h][lane()] = 0;
        }
#pragma unroll
        for (int n = 0; n < Q; n++)
#pragma unroll
            for (int m = 0; m < 4; m++) acc[n][m][0] = acc[n][m][1] = acc[n][m][2] = acc[n][m][3] = 0;
    }

    // Found out again where they are used: registers are few.
    __device__ __forceinline__ static int warp() { return int(thread_again()) / WARP; }
    __device__ __forceinline__ static int warps() { return int(blockDim.x) / WARP; }
    __device__ __forceinline__ static int lane() { return int(thread_again()) % WARP; }
    __device__ __forceinline__ static int g() { return lane() / 4; }
    __device__ __forceinline__ static int t() { return lane() % 4; }

    // A stretch of such rows begins: how the warp's slots lie in them.
    __device__ __forceinline__ void enter(const RowStore& store) {
        lying = &store;
        const RowFormat& format = store.format;
        int ahead = elements_of(store) / ROW_GROUP, slots = groups_of(format);
        int one = lane() % SLICE_SLOTS, j = first_slot + one;  // of the lanes beyond the same again
        CodeGroup group = {0, 0, 1, 1};
        bool coded_slot = slots && j >= ahead && j - ahead < slots;
        if (coded_slot) group = CodeGroup::of(format, int(sizeof(E)), j - ahead);
        bool to_widen = group.bits == 5 || group.bits == 6;
        unsigned all = __ballot_sync(~0u, to_widen) & 0xff, four = __ballot_sync(~0u, group.bits >= 4);
        unsigned any = __ballot_sync(~0u, group.bits > 4), some = __ballot_sync(~0u, coded_slot);
        int first_wide = all ? lowest_bit(all) : 0;
        widest = any ? Widths::Any : four ? Widths::Four : Widths::Three;
        codes = some, wides = 0;
        for (; all; all &= all - 1) wides++;
        elements = ROW_GROUP * first_slot < elements_of(store);
        __syncwarp();  // the last stretch's slots were read
        if (lane() < SLICE_SLOTS) {
            CodeSlot& slot = shared.slot[warp()][one];
            slot.byte = to_widen ? -1 - (one - first_wide) * WIDENED : group.byte;
            slot.gaps = group.bits <= 4 ? Gaps(group.bits) : Gaps{};
            slot.table = shared.levels.few[group.bits <= 4 ? group.bits : 0];
            slot.step = group.step, slot.by_step = group.by_step;
            if (to_widen) shared.wide[warp()][one - first_wide] = group;
        }
        __syncwarp();  // the slots are there
        float by = step * shared.slot[warp()][g()].by_step;
        step = shared.slot[warp()][g()].step;
#pragma unroll
        for (int n = 0; n < Q; n++)
#pragma unroll
            for (int m = 0; m < 4; m++)
                acc[n][m][0] *= by, acc[n][m][1] *= by, acc[n][m][2] *= by, acc[n][m][3] *= by;
    }

    // ---- steps

    // Rows of positions s … s + count − 1, one behind the other, and their scores begin to come for step i.
    __device__ __forceinline__ void begin(int i, int s, int count) const {
        if (count > 0 && lying->bytes) {
            const char* from = row_at(*lying, s);
            int lead = int(reinterpret_cast<uintptr_t>(from) % 16), bytes = lead + count * lying->bytes;
            char* to = stages + i % JOINT_STAGES * stage;
#pragma unroll 4
            for (int at = 16 * int(threadIdx.x); at < bytes; at += 16 * int(blockDim.x))
                copy_async_16(to + at, from - lead + at, true);
        }
        if (count > 0)
#pragma unroll 1
            for (int h = warp(); h < heads; h += warps()) {  // by the lanes that will read them
                const float* from = scores.of(first_head + h) + s + lane();
                if (lane() < count) copy_async_4(&shared.score[i % JOINT_STAGES][h][lane()], from, true);
            }
        copy_async_commit();
    }
    __device__ __forceinline__ CodeRows rows_of(int i, int s) const {
        const char *all = dynamic_shared(), *to = stages + i % JOINT_STAGES * stage;
        return {all, unsigned(to - all) + unsigned(reinterpret_cast<uintptr_t>(row_at(*lying, s)) % 16),
                unsigned(shared.widened[warp()] - all), unsigned(lying->bytes)};
    }
    // The weights of step i ← its scores: 2^(s + log₂ ρ − max), of elements 2^(s − max), none of which is
    // more than 2^SCORE_SLACK.
    __device__ __forceinline__ void weigh(int i, int s, int count) {
        bool rows_coded = coded(lying->format), both = rows_coded && elements_of(*lying);
        float log = 0;
        if (rows_coded && lane() < count) {
            CodeRows rows = rows_of(i, s);
            log = log2_scale_of(uint8_t(rows.memory[rows.first + unsigned(lane() + 1) * rows.bytes - 1]));
        }
        float more = both ? fmaxf(log, 0) : log;
        int buffer = i % 2, moved = 0;
#pragma unroll 1
        for (int h = warp(); h < 8 * Q; h += warps()) {
            bool there = h < heads && lane() < count;
            float score = there ? shared.score[i % JOINT_STAGES][h][lane()] : -INFINITY;
            float most = warp_max(score + more), old = shared.max[h];
            float base = most > old + SCORE_SLACK ? most : old;
            float keep = base == old ? 1 : power_of_two(old - base);
            float weight = there ? power_of_two(score - base) : 0;
            float of_codes = there ? power_of_two(score + log - base) : 0;
            __syncwarp();  // the largest so far was read
            if (lane() == 0) shared.max[h] = base, shared.keep[buffer][h] = keep;
            shared.sum[h][lane()] = shared.sum[h][lane()] * keep + weight, moved |= keep != 1;
            shared.weight[buffer][0][h][lane()] =
                rows_coded ? uint16_t(pack2<f16>(of_codes, 0)) : uint16_t(pack2<E>(weight, 0));
            if (both) shared.weight[buffer][1][h][lane()] = uint16_t(pack2<E>(weight, 0));
        }
        if (lane() == 0) shared.moved[buffer][warp()] = moved;
    }
    // p ← the weights of keys 16 tile … and all heads, as fragments.
    __device__ __forceinline__ void fragments(uint32_t (&p)[1][Q][2], int buffer, int kind, int tile) const {
#pragma unroll
        for (int n = 0; n < Q; n++) {
            const uint16_t* from = shared.weight[buffer][kind][8 * n + g()] + 16 * tile + 2 * t();
            p[0][n][0] = *reinterpret_cast<const uint32_t*>(from);
            p[0][n][1] = *reinterpret_cast<const uint32_t*>(from + 8);
        }
    }
    // acc += the values of step i, which are there, and their weights.
    __device__ __forceinline__ void add(int i, int s, int count) {
        int buffer = i % 2;
        if (__ballot_sync(~0u, lane() < warps() && shared.moved[buffer][lane() % JOINT_WARPS]))
#pragma unroll
            for (int n = 0; n < Q; n++) {
                float2 keep = *reinterpret_cast<const float2*>(&shared.keep[buffer][8 * n + 2 * t()]);
#pragma unroll
                for (int m = 0; m < 4; m++)
                    acc[n][m][0] *= keep.x, acc[n][m][2] *= keep.x, acc[n][m][1] *= keep.y,
                        acc[n][m][3] *= keep.y;
            }
        CodeRows rows = rows_of(i, s);
        if (codes && wides) {
            rows.template widen<2>(shared.widened[warp()], shared.wide[warp()], wides, shared.levels, lane());
            __syncwarp();  // the widened groups are there
        }
#pragma unroll 1
        for (int tile = 0; 16 * tile < count; tile++) {
            uint32_t p[1][Q][2];  // not of 32 keys at once: registers are few
            if (codes) {
                fragments(p, buffer, 0, tile);
                with_widths(widest, [&]<Widths W>() {
                    add_eight<W>(acc, 0, p, rows, shared.slot[warp()][g()], lane());
                });
            }
            if (elements) {
                fragments(p, buffer, coded(lying->format), tile);
                add_elements(p[0], rows, count - 16 * tile);
            }
            rows.first += 16 * rows.bytes, rows.wide += 16 * ROW_GROUP;
        }
    }
    // Elements of this lane's slot, from there on in a row: zero where it has none.
    __device__ __forceinline__ uint4 eight(const CodeRows& rows, int key, int count) const {
        int from = ROW_GROUP * (first_slot + g()), there = elements_of(*lying) - from;
        if (key >= count || there <= 0) return make_uint4(0, 0, 0, 0);
        unsigned at = rows.first + unsigned(key) * rows.bytes + unsigned(from) * sizeof(E);
        const uint32_t* words = reinterpret_cast<const uint32_t*>(rows.memory + (at & ~3u));
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[i] = funnel_right(words[i], words[i + 1], 8 * at);
            if (2 * i + 1 >= there) x[i] &= 2 * i >= there ? 0 : 0xffff;
        }
        return make_uint4(x[0], x[1], x[2], x[3]);
    }
    // Of 16 keys, at most `count` of which are there.
    __device__ __forceinline__ void add_elements(const uint32_t (&p)[Q][2], const CodeRows& rows,
                                                 int count) {
        uint4 x[4];  // keys 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = eight(rows, 2 * t() + i / 2 * 8 + i % 2, count);
#pragma unroll
        for (int m = 0; m < 4; m++) {
            auto two = [m](const uint4& four) {
                return m == 0 ? four.x : m == 1 ? four.y : m == 2 ? four.z : four.w;
            };
            const uint32_t a[4] = {permute_bytes(two(x[0]), two(x[1]), 0x5410),
                                   permute_bytes(two(x[0]), two(x[1]), 0x7632),
                                   permute_bytes(two(x[2]), two(x[3]), 0x5410),
                                   permute_bytes(two(x[2]), two(x[3]), 0x7632)};
#pragma unroll
            for (int n = 0; n < Q; n++) mma_16x8x16<E>(acc[n][m], a, p[n]);
        }
    }

    // Positions s … end − 1, whose rows lie one behind the other. By the whole block. While a step's
    // weights meet its values those of the next are made, and rows of the one after come.
    __device__ __forceinline__ void run(int s, int end) {
        int each = joint_step(*lying), n = (end - s + each - 1) / each;
        auto first = [&](int i) { return s + i * each; };
        auto count = [&](int i) { return min(each, end - first(i)); };
        __syncthreads();  // the stages are free, and the weights
        begin(0, first(0), count(0)), begin(1, first(1), count(1));
        copy_async_wait<1>();
        __syncthreads();  // the first rows are there
        weigh(0, first(0), count(0));
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            copy_async_wait<0>();
            __syncthreads();  // this step's weights are there, the next one's rows; the last step was read
            begin(i + 2, first(i + 2), count(i + 2));
            if (i + 1 < n) weigh(i + 1, first(i + 1), count(i + 1));
            add(i, first(i), count(i));
        }
    }

    // The block's partial, which has room for an even number of coordinates. width: those wanted.
    __device__ __forceinline__ void put(const Partial& partials, int width) const {
        for (int h = warp(); h < heads; h += warps()) {
            float all = warp_sum(shared.sum[h][lane()]), *to = partials.of(int(blockIdx.x), first_head + h);
            if (lane() == 0 && blockIdx.y == 0) to[0] = shared.max[h], to[1] = all;
        }
#pragma unroll
        for (int n = 0; n < Q; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int head = 8 * n + 2 * t() + i;
                if (head >= heads) continue;
                float* to = partials.of(int(blockIdx.x), first_head + head) + 2;
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    int column = ROW_GROUP * (first_slot + g()) + 2 * m;
                    float2 two = make_float2(step * acc[n][m][i], step * acc[n][m][2 + i]);
                    if (column < width) *reinterpret_cast<float2*>(to + column) = two;
                }
            }
    }
};

}  // namespace stief
