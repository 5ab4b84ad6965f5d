// One warp's part of decode attention over windows of whole rows, which lie beside rows of codes: few
// rows, in rings and not one behind the other. What they cost is code that a multiprocessor meets once,
// and waiting; so they take the short way of whole rows, all stretches together.
#pragma once
#include "attention_stretch.cuh"
#include "whole_warp.cuh"

namespace stief {

// Windows of a kv head, as positions 0 … count() − 1 of rows that lie anywhere.
struct WindowRows {
    const HeadShared& head;
    uint32_t windows;  // by stretch
    int last;          // the position of the query

    // f(stretch, its first position, positions) of each.
    template <class F>
    __device__ __forceinline__ void each(const F& f) const {
#pragma unroll 1
        for (int i = 0; i < head.seen.count; i++) {
            const Stretch& one = head.seen.stretch[i];
            int first = one.begin_for(last), n = one.end_for(last) - first;
            if ((windows >> i & 1) && n > 0) f(one, first, n);
        }
    }
    __device__ __forceinline__ int count() const {
        int all = 0;
        each([&](const Stretch&, int, int n) { all += n; });
        return all;
    }
    // Where row `row` of the keys and of the values begins.
    __device__ __forceinline__ void find(int row, const char*& key, const char*& value) const {
        each([&](const Stretch& one, int first, int n) {
            if (0 <= row && row < n) {
                key = row_at(head.k.store[one.k], first + row);
                value = row_at(head.v.store[one.v], first + row);
            }
            row -= n;
        });
    }
};

template <class E, int D>
struct WindowWarp : WholeWarp<E, D> {
    using Whole = WholeWarp<E, D>;
    using Whole::STAGE, Whole::TILE, Whole::STRIDE, Whole::ROWS_ON, Whole::PER;
    static constexpr size_t STAGE_BYTES = size_t(STAGE) * sizeof(E);

    __device__ explicit WindowWarp(E* memory) : Whole(memory) {}

    // Rows first … first + 15 of `count` begin to come, those beyond as zeros.
    __device__ __forceinline__ void begin(int stage, const WindowRows& rows, int first, int count) {
        const char *key = nullptr, *value = nullptr;  // of row first + lane % 16
        rows.find(min(first + this->lane % STEP, count - 1), key, value);
        E* at = this->stages + stage * STAGE + this->to;
        int column = this->lane % PER * 8;
#pragma unroll 1
        for (int y = this->row; y < STEP; y += ROWS_ON, at += ROWS_ON * STRIDE) {
            bool there = first + y < count;
            const E* k = reinterpret_cast<const E*>(from_lane(key, y));
            const E* v = reinterpret_cast<const E*>(from_lane(value, y));
            copy_async_16(at, k + column, there);
            copy_async_16(at + TILE, v + column, there);
        }
    }
    // This warp's steps, as many at once as it has stages. `ready`: what its own part of the queries needs,
    // once copies are on their way; not called where no step is this warp's.
    template <class Ready>
    __device__ __forceinline__ void run(const WindowRows& rows, int at_once, const Ready& ready) {
        constexpr int ON = WHOLE_WARPS * STEP;
        int count = rows.count();
#pragma unroll 1
        for (int s0 = int(threadIdx.x) / WARP * STEP; s0 < count; s0 += at_once * ON) {
#pragma unroll 1
            for (int i = 0; i < at_once && s0 + i * ON < count; i++) begin(i, rows, s0 + i * ON, count);
            copy_async_commit();
            if (s0 < ON) ready();
            copy_async_wait<0>();
            __syncwarp();  // every lane's copies are there
#pragma unroll 1
            for (int i = 0; i < at_once && s0 + i * ON < count; i++)
                this->step(i, min(STEP, count - s0 - i * ON));
            __syncwarp();  // the stages were read
        }
    }

private:
    __device__ __forceinline__ static const char* from_lane(const char* one, int lane) {
        return reinterpret_cast<const char*>(
            __shfl_sync(~0u, reinterpret_cast<unsigned long long>(one), lane));
    }
};

}  // namespace stief
