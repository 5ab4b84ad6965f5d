// One warp's part of decode attention on tensor cores: rows of 16 bits or of codes, heads of 64 or
// 128.
//
// The warps of a block share nothing but the queries, the basis and the tables of a stretch: each
// takes every fourth step of 16 positions, of 32 where there are codes, copies its rows on its own
// (cp.async, up to three steps at once, no barrier of the block), and has its own running max and
// sum. A step has its keys on the M side and 8 query heads on the N side: scores
// (attention_warp_keys.cuh), then the softmax and the values (attention_warp_values.cuh).
#pragma once
#include "attention_warp_values.cuh"

namespace stief {

constexpr int TENSOR_WARPS = 4, TENSOR_BLOCK = TENSOR_WARPS * WARP;

// SCORES: keys alone, whose scores are kept (HeadScores), of values that another kernel sums.
template <class E, int D, int Q, bool ROTATED, bool SCORES = false>
struct Warp : WarpValues<E, D, Q, ROTATED> {
    using Values = WarpValues<E, D, Q, ROTATED>;
    using typename Values::Tiles;
    using Values::in_codes, Values::k, Values::v, Values::tables, Values::memory, Values::lane;
    using Values::rotation;
    using Values::Values;
    HeadScores scores;  // from the block's first query head on
    int heads;      // of those

    // One step: positions s0 … s0 + count − 1, which have arrived in a stage, at most 16 T.
    template <int T>
    __device__ __forceinline__ void step(const char* from, int s0, int count) {
        constexpr bool CODES = T > 1 || !ROTATED;
        const float* angle = reinterpret_cast<const float*>(from);
        const char *keys = from + angle_bytes(), *values = keys + k.shape.stage;
        CodeRows coded_k = rows_of(k, keys, s0, 0), coded_v = rows_of(v, values, s0, 1);
        if (CODES && tables.slots.wide[0] + tables.slots.wide[1]) {
            widen<T>(coded_k, k.group, 0);
            widen<T>(coded_v, v.group, 1);
            __syncwarp();  // the widened groups are there
        }
        float s[T][Q][4] = {};
        if constexpr (!ROTATED)
            this->score_rebuilt(s[0], reinterpret_cast<const E*>(keys), coded_k, angle);
        else if (CODES && k.shape.groups)
            this->score_coded(s, coded_k);
        else
            this->score(s, reinterpret_cast<const E*>(keys));
        if constexpr (ROTATED)
            if (tables.mean && (k.shape.groups || k.shape.width < D))
                TurnedMean<D, Q>::at(tables.mean).add_to(s, angle);
        if constexpr (SCORES)
            keep(s, s0, count);
        else if (CODES && v.shape.groups)
            this->take_coded(s, coded_v, count);
        else
            this->take(s, reinterpret_cast<const E*>(values), count);
    }
    template <int T>
    __device__ __forceinline__ void keep(const float (&s)[T][Q][4], int s0, int count) const {
#pragma unroll
        for (int n = 0; n < Q; n++)
            for (int h = 0; h < 2; h++) {
                int head = 8 * n + 2 * this->t + h;
                float* to = scores.of(head) + s0;
#pragma unroll
                for (int i = 0; i < 2 * T; i++)
                    if (head < heads && this->g + 8 * i < count)
                        to[this->g + 8 * i] = s[i / 2][n][i % 2 * 2 + h];
            }
    }
    template <int T>
    __device__ __forceinline__ void widen(const CodeRows& rows, const CodeGroup* group, int side) {
        if (int count = tables.slots.wide[side])
            rows.template widen<T>(memory + rows.wide, group + tables.slots.first_wide[side], count,
                                   tables.levels, lane);
    }

    // ---- stretches

    // Of the angles of a step's first position, where they are wanted.
    static __host__ __device__ constexpr int angle_bytes(bool means) {
        return !ROTATED || means ? D * int(sizeof(float)) : 0;
    }
    __device__ __forceinline__ int angle_bytes() const { return angle_bytes(tables.mean); }
    static constexpr int MOST_STAGES = 3;
    // Keys of a step: more of codes, so that what a step costs is for more. Not of keys before
    // rotation, which turn by their distance from the step's first.
    static __host__ __device__ int step_of(const RowStore& keys, const RowStore& values) {
        return ROTATED && (coded(keys.format) || coded(values.format)) ? CODED_STEP : STEP;
    }
    // Positions: a block's share is a multiple of these, a step for each of its warps.
    static __host__ __device__ int share_of(const RowStore& keys, const RowStore& values) {
        return TENSOR_WARPS * step_of(keys, values);
    }
    __device__ __forceinline__ bool codes() const { return k.shape.groups || v.shape.groups; }
    __device__ __forceinline__ int step_keys() const {
        return ROTATED && codes() ? CODED_STEP : STEP;
    }
    // What a warp needs for a stretch: what lies ahead of the stages, and stages.
    static __host__ __device__ size_t stage_bytes(const RowStore& keys, const RowStore& values,
                                                  bool means) {
        int rows = step_of(keys, values);
        return size_t(angle_bytes(means)) + Tiles::stage_bytes(keys, rows) + Tiles::stage_bytes(values, rows);
    }
    static __host__ __device__ size_t front_bytes(const RowStore& keys, const RowStore& values) {
        size_t wide = size_t(groups_to_widen(keys.format) + groups_to_widen(values.format));
        size_t latents = ROTATED || !coded(keys.format) ? 0 : size_t(basis_rows(keys.format) / 16);
        return wide * WIDENED + latents * WARP * sizeof(uint4);
    }
    static constexpr size_t ORDERING = 8 * D * sizeof(float);  // and to put sums in order
    // A side's rows in a stage; from `memory` on, groups of keys are widened, then of values.
    __device__ __forceinline__ CodeRows rows_of(const Tiles& one, const char* stage, int s,
                                                int side) const {
        return {memory, unsigned(one.codes_at(stage, s) - memory),
                unsigned(side ? tables.slots.wide[0] * WIDENED : 0), unsigned(one.shape.bytes)};
    }

    // Columns that nobody writes are zero, and rows of codes that are not there: a product must not
    // meet what is no number.
    __device__ __forceinline__ void clear(int bytes) {
#pragma unroll 1
        for (int i = lane; i < bytes / 16; i += WARP)
            reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
        __syncwarp();  // the memory is zero
    }
    // A stretch of which this warp has a step begins; other tables are to come. Until then acc stays in
    // the order of the last stretch's codes: one with the same rows may follow. The tables are there,
    // no copy is on its way.
    __device__ __forceinline__ void enter() {
        if constexpr (SCORES) return;
        if (v.shape.groups && !in_codes && this->any_keys()) this->count_in(true);
        in_codes = v.shape.groups;
    }
    __device__ __forceinline__ void leave() {
        if (in_codes) this->count_in(false);
        in_codes = false;
    }

    // How many stages a warp's memory holds of the stretch, and where.
    struct Stages {
        int front, each, count;
    };
    __device__ __forceinline__ Stages stages(int bytes) const {
        int front = this->wide_end();
        if (!ROTATED && k.shape.groups)
            front += (coded_columns(k.shape.groups) + (k.shape.elements + 15) / 16 * 16) / 16 *
                     WARP * int(sizeof(uint4));
        int each = angle_bytes() + k.shape.stage + v.shape.stage;
        return {front, each, min(MOST_STAGES, (bytes - front) / each)};
    }
    // The step at s begins to come to a stage, if there is one.
    __device__ __forceinline__ void begin(char* to, int s, int end, int keys) const {
        if (s < end) {
            int ahead = angle_bytes();
            if (ahead && lane < D / 4)
                copy_async_16(to + 16 * lane, rotation + size_t(s) * D + 4 * lane, true);
            int there = min(keys, end - s);
            k.begin(to + ahead, s, there, lane, WARP, keys);
            v.begin(to + ahead + k.shape.stage, s, there, lane, WARP, keys);
        }
        copy_async_commit();
    }
    __device__ __forceinline__ int first_step(int first) const {
        return first + int(threadIdx.x) / WARP * step_keys();
    }
    // This warp's steps of positions first … end − 1, which lie one behind the other: the first of them
    // begin to come, one fewer than its memory holds; then, by run, all are taken.
    __device__ __forceinline__ void start(int first, int end, int bytes) {
        Stages all = stages(bytes);
        int s = first_step(first), keys = step_keys();
        char* to = memory + all.front;
#pragma unroll 1
        for (int i = 1; i < all.count; i++, to += all.each, s += TENSOR_WARPS * keys)
            begin(to, s, end, keys);
    }
    __device__ __forceinline__ void run(int first, int end, int bytes) {
        if (ROTATED && codes())
            run_steps<CODED_STEP / STEP>(first, end, bytes);
        else
            run_steps<1>(first, end, bytes);
    }
    template <int T>
    __device__ __forceinline__ void run_steps(int first, int end, int bytes) {
        constexpr int KEYS = T * STEP, ON = TENSOR_WARPS * KEYS;
        Stages all = stages(bytes);
        int stage = all.each, count = all.count, now = 0;
        char* first_stage = memory + all.front;
#pragma unroll 1
        for (int s = first_step(first); s < end; s += ON) {
            if (count == 1) begin(first_stage, s, end, KEYS);
            if (count == MOST_STAGES)
                copy_async_wait<1>();
            else
                copy_async_wait<0>();
            __syncwarp();  // every lane's copies of this step are there; the last step was read
            if (count > 1)
                begin(first_stage + (now ? now - 1 : count - 1) * stage, s + (count - 1) * ON, end, KEYS);
            step<T>(first_stage + now * stage, s, min(KEYS, end - s));
            now = now + 1 == count ? 0 : now + 1;
            if (count == 1) __syncwarp();  // the only stage was read
        }
        __syncwarp();  // the stages are free
    }
};

}  // namespace stief
