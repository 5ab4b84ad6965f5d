// The product of pairs on AMX: 2 × 2 tiles of 16 tokens × 16 outputs. One step multiplies a tile of
// x (16 tokens, 32 coordinates) by a tile of the panel (16 pairs, 16 outputs, 2); four products for
// four loads. Every output is one sum over k in ascending order.
//
// Tiles supplies the processor's operations on its 8 tile registers: configure, zero, load, store,
// multiply. dot_amx.cpp gives the instructions; tests give their meaning as plain loops, because
// most machines that build this have no AMX.
#pragma once
#include "backend/cpu/kernels.h"

namespace stief {

// The operand of ldtilecfg: for each of the 8 registers its bytes a row and its rows.
struct TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

namespace {

// Registers: sums 0 1 / 2 3 (tokens × outputs), x 4 5 (upper and lower tokens), panel 6 7.
template <class Tiles>
struct AmxProduct {
    static constexpr int SIDE = 16, STEP_BYTES = 64;             // 32 coordinates of bf16
    static constexpr size_t PANEL_ROW = 2 * SIDE * 4;            // 32 outputs of one pair

    static int part(int n, int i) {                              // of n, what tile i holds
        int left = n - i * SIDE;
        return left < 0 ? 0 : left < SIDE ? left : SIDE;
    }

    static void configure(int tokens, int outputs) {
        TileConfig config;
        auto set = [&](int tile, int rows, int row_bytes) {
            bool used = rows > 0 && row_bytes > 0;
            config.rows[tile] = uint8_t(used ? rows : 0);
            config.row_bytes[tile] = uint16_t(used ? row_bytes : 0);
        };
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < 2; j++) set(2 * i + j, part(tokens, i), 4 * part(outputs, j));
            set(4 + i, part(tokens, i), STEP_BYTES);
            set(6 + i, SIDE, 4 * part(outputs, i));
        }
        Tiles::configure(config);
    }

    template <int C>
    static void start(float* out, size_t out_stride, bool add) {
        if (add) Tiles::template load<C>(out, out_stride * 4);
        else Tiles::template zero<C>();
    }

    // LOWER: there are more than 16 tokens. RIGHT: there are more than 16 outputs.
    template <bool LOWER, bool RIGHT>
    static void block(float* out, size_t out_stride, const char* x, size_t x_bytes,
                      const char* panel, int steps, bool add) {
        float* lower = out + SIDE * out_stride;
        start<0>(out, out_stride, add);
        if constexpr (RIGHT) start<1>(out + SIDE, out_stride, add);
        if constexpr (LOWER) start<2>(lower, out_stride, add);
        if constexpr (LOWER && RIGHT) start<3>(lower + SIDE, out_stride, add);
        for (int i = 0; i < steps; i++, x += STEP_BYTES, panel += SIDE * PANEL_ROW) {
            Tiles::template load<4>(x, x_bytes);
            Tiles::template load<6>(panel, PANEL_ROW);
            Tiles::template multiply<0, 4, 6>();
            if constexpr (RIGHT) {
                Tiles::template load<7>(panel + SIDE * 4, PANEL_ROW);
                Tiles::template multiply<1, 4, 7>();
            }
            if constexpr (LOWER) {
                Tiles::template load<5>(x + SIDE * x_bytes, x_bytes);
                Tiles::template multiply<2, 5, 6>();
                if constexpr (RIGHT) Tiles::template multiply<3, 5, 7>();
            }
        }
        Tiles::template store<0>(out, out_stride * 4);
        if constexpr (RIGHT) Tiles::template store<1>(out + SIDE, out_stride * 4);
        if constexpr (LOWER) Tiles::template store<2>(lower, out_stride * 4);
        if constexpr (LOWER && RIGHT) Tiles::template store<3>(lower + SIDE, out_stride * 4);
    }

    // A panel stays in the nearest cache while all tokens pass.
    static void run(float* out, size_t out_stride, const char* x, size_t x_bytes,
                    const char* panels, int T, int n, int k, bool add) {
        int configured = -1, steps = k / PAIRS_K;
        for (int j = 0; j < n; j += 2 * SIDE, panels += size_t(k / 2) * PANEL_ROW) {
            int outputs = n - j < 2 * SIDE ? n - j : 2 * SIDE;
            for (int t = 0; t < T; t += 2 * SIDE) {
                int tokens = T - t < 2 * SIDE ? T - t : 2 * SIDE, shape = tokens * 64 + outputs;
                if (shape != configured) configure(tokens, outputs);
                configured = shape;
                bool lower = tokens > SIDE, right = outputs > SIDE;
                auto some = lower ? (right ? block<true, true> : block<true, false>)
                                  : (right ? block<false, true> : block<false, false>);
                some(out + size_t(t) * out_stride + j, out_stride, x + size_t(t) * x_bytes, x_bytes,
                     panels, steps, add);
            }
        }
        Tiles::release();
    }
};

}  // namespace
}  // namespace stief
