// Rows of codes on tensor cores: what a lane takes apart, to the last bit.
#include "coded_fragments.cuh"

#include "backends.h"
#include "device_memory.h"

using namespace stief;
using namespace stief::testing;

namespace {

RowFormat counts(std::array<uint16_t, RowFormat::WIDTHS> count) {
    return {count};
}

std::vector<char> random_bytes(size_t n, uint64_t seed) {
    Random random(seed);
    std::vector<char> bytes(n);
    for (char& one : bytes) one = char(random.below(256));
    return bytes;
}

template <class E>
std::vector<char> elements_of(const std::vector<float>& x) {
    std::vector<char> bytes(x.size() * sizeof(E));
    for (size_t i = 0; i < x.size(); i++) {
        E one = to_element<E>(x[i]);
        std::memcpy(&bytes[i * sizeof(E)], &one, sizeof(E));
    }
    return bytes;
}

// (rows, columns) of what one warp makes of such rows, from byte `lead` of shared memory on.
template <class E>
std::vector<float> unpacked(const std::vector<char>& rows, const RowFormat& format, int count,
                            int lead) {
    constexpr int STRIDE = 136, TILE = 16 * STRIDE;
    int elements = int(format.count[0]), groups = groups_of(format), lanes = 0;
    int bytes = int(format.bytes(DType::F16)), columns = format.kept();
    while (1 << lanes < groups) lanes++;
    std::vector<float> out(size_t(count * columns), NaN);
    size_t room = sizeof(LevelTables) + 16 * sizeof(CodeGroup) + TILE * sizeof(E) + rows.size() + 64;
    simt::play(dim3(1), WARP, room, [&] {
        LevelTables& tables = *reinterpret_cast<LevelTables*>(dynamic_shared());
        CodeGroup* group = reinterpret_cast<CodeGroup*>(&tables + 1);
        E* tile = reinterpret_cast<E*>(group + 16);
        char* raw = reinterpret_cast<char*>(tile + TILE) + lead;
        int lane = int(threadIdx.x);
        tables.fill(lane, WARP);
        if (lane < groups) group[lane] = CodeGroup::of(format, sizeof(E), lane);
        for (size_t i = threadIdx.x; i < rows.size(); i += WARP) raw[i] = rows[i];
        __syncthreads();
        unpack_tile<E>(tile, STRIDE, raw, bytes, elements, groups, lanes, group, tables, count, lane,
                       WARP);
        __syncthreads();
        for (int i = lane; i < count * columns; i += WARP)
            out[size_t(i)] = to_float(tile[i / columns * STRIDE + i % columns]);
    });
    return out;
}

// The same from row_format.h: elements, then levels.
template <class E>
std::vector<float> expected(const std::vector<char>& rows, const RowFormat& format, int count) {
    std::vector<float> out;
    for (int row = 0; row < count; row++) {
        const char* at = rows.data() + size_t(row) * format.bytes(DType::F16);
        for (int i = 0; i < format.count[0]; i++, at += sizeof(E)) {
            E one;
            std::memcpy(&one, at, sizeof(E));
            out.push_back(to_float(one));
        }
        for (size_t w = 1; w < RowFormat::WIDTHS; w++)
            for (int group = 0, bits = RowFormat::BITS[w]; group < format.count[w] / 8; group++) {
                for (int bit = 0; bit < 8 * bits; bit += bits) {
                    int code = 0;
                    for (int b = 0; b < bits; b++)
                        code |= (at[(bit + b) / 8] >> ((bit + b) % 8) & 1) << b;
                    out.push_back(float(LEVELS.of[w][code]));
                }
                at += bits;
            }
    }
    return out;
}

template <class E>
void check_unpacked(const RowFormat& format, int count, int lead) {
    CAPTURE(format.kept());
    CAPTURE(count);
    CAPTURE(lead);
    size_t bytes = format.bytes(DType::F16);
    std::vector<char> rows = random_bytes(size_t(count) * bytes, bytes + size_t(count + lead));
    for (int row = 0; row < count; row++) {  // elements that are numbers
        auto whole = elements_of<E>(normal_floats(format.count[0], uint64_t(row)));
        std::copy(whole.begin(), whole.end(), rows.begin() + std::ptrdiff_t(size_t(row) * bytes));
    }
    auto got = unpacked<E>(rows, format, count, lead), want = expected<E>(rows, format, count);
    REQUIRE(got.size() == want.size());
    CHECK(!std::memcmp(got.data(), want.data(), got.size() * sizeof(float)));
}

// (32, codes) levels of such rows as decode's fragments have them, of keys before rotation (16 of them)
// or of values, which are multiplied by weights of one key for each head.
std::vector<float> in_fragments(const std::vector<char>& rows, const RowFormat& format, int lead,
                                bool keys) {
    constexpr int D = 128;
    struct Shared {
        LevelTables levels;
        CodeSlots<D> slots;
        CodeGroup group[D / ROW_GROUP];
        uint4 fragment[D / 16][WARP];
    };
    RowStore store;
    store.format = format, store.bytes = int(format.bytes(DType::F16));
    int groups = groups_of(format), codes = ROW_GROUP * groups;
    std::vector<float> out(size_t(CODED_STEP * codes), NaN);
    size_t wide = size_t(groups_to_widen(format) * WIDENED);
    simt::play(dim3(1), WARP, sizeof(Shared) + wide + rows.size() + 64, [&] {
        Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared());
        char* memory = reinterpret_cast<char*>(&shared + 1);
        int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
        shared.levels.fill(lane, WARP);
        if (lane < groups) shared.group[lane] = CodeGroup::of(format, sizeof(f16), lane);
        for (size_t i = threadIdx.x; i < rows.size() + 32; i += WARP)
            memory[wide + size_t(lead) + i] = i < rows.size() ? rows[i] : char(0xff);
        for (int i = lane; i < lead; i += WARP) memory[wide + size_t(i)] = char(0xff);
        __syncthreads();
        shared.slots.fill(store, store, shared.levels, sizeof(f16));
        __syncthreads();
        CodeRows of{memory, unsigned(wide) + unsigned(lead), 0, unsigned(store.bytes)};
        of.widen<2>(memory, shared.group + shared.slots.first_wide[0], shared.slots.wide[0],
                    shared.levels, lane);
        __syncthreads();
        auto put = [&](int row, int code, float level) {
            if (code < codes) out[size_t(row * codes + code)] = level;
        };
        if (keys) {
            key_fragments<f16>(shared.fragment[0] + lane, of, groups, shared.slots, lane);
            for (int f = 0; 16 * f < coded_columns(groups); f++)
                for (int i = 0; i < 8; i++) {
                    const f16* a = reinterpret_cast<const f16*>(&shared.fragment[f][lane]);
                    int column = i / 4 * 8 + 2 * t + i % 2;  // of the fragment
                    put(g + i / 2 % 2 * 8, code_of_row(16 * f + column), to_float(a[i]));
                }
            return;
        }
        for (int first = 0; first < CODED_STEP; first += 8) {  // head g: key first + g
            float acc[1][D / 16][4] = {};
            uint32_t weight[2][1][2] = {};
            for (int i = 0; i < 8; i++)
                if (i / 4 * 16 + i / 2 % 2 * 8 + 2 * t + i % 2 == first + g)
                    weight[i / 4][0][i / 2 % 2] = 0x3c00u << i % 2 * 16;
            add_codes(acc, weight, of, groups, shared.slots, lane);
            for (int f = 0; f < D / 16; f++)
                for (int i = 0; i < 4; i++)
                    put(first + 2 * t + i % 2, 8 * (f / 4 * 8 + g) + 2 * (f % 4) + i / 2, acc[0][f][i]);
        }
    });
    return out;
}

void check_fragments(const RowFormat& format, int lead) {
    CAPTURE(format.kept());
    CAPTURE(lead);
    size_t codes = size_t(format.codes()), elements = format.count[0];
    std::vector<char> rows = random_bytes(CODED_STEP * format.bytes(DType::F16), codes + size_t(lead));
    std::vector<float> want, all = expected<f16>(rows, format, CODED_STEP);
    for (size_t i = 0; i < all.size(); i++)
        if (i % (elements + codes) >= elements) want.push_back(all[i]);
    for (bool keys : {true, false}) {
        CAPTURE(keys);
        std::vector<float> got = in_fragments(rows, format, lead, keys);
        REQUIRE(got.size() == want.size());
        CHECK(std::equal(got.begin(), got.begin() + std::ptrdiff_t(keys ? 16 * codes : got.size()),
                         want.begin()));
    }
}

// ---- attention ---------------------------------------------------------------------------------

}  // namespace

TEST_SUITE_BEGIN("cache");

TEST_CASE("codes are taken apart into their levels, of every width and number, at any address") {
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (uint16_t run : {8, 16, 24, 40, 64, 104, 128})
            for (auto [count, lead] : {std::pair{16, 0}, {1, 3}, {7, 13}, {15, 6}}) {
                RowFormat format;
                format.count[w] = run;
                check_unpacked<f16>(format, count, lead);
                check_unpacked<bf16>(format, count, lead);
            }
    for (uint16_t elements : {4, 8, 12, 20, 60})
        for (int lead : {0, 5}) {
            check_unpacked<f16>(counts({elements, 8, 8, 8, 8, 8, 8, 8}), 16, lead);
            check_unpacked<bf16>(counts({elements, 0, 8, 16, 0, 8, 0, 24}), 9, lead);
        }
}

TEST_CASE("decode's fragments are the levels of codes, of every width and number, at any address") {
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (uint16_t run : {8, 16, 24, 40, 64, 104, 128})
            for (int lead : {0, 3, 13, 6}) {
                RowFormat format;
                format.count[w] = run;
                check_fragments(format, lead);
            }
    for (int lead : {0, 5}) {
        check_fragments(counts({0, 8, 8, 8, 8, 8, 8, 8}), lead);
        check_fragments(counts({4, 16, 8, 16, 24, 8, 24, 16}), lead);
        check_fragments(counts({20, 0, 8, 16, 0, 8, 0, 24}), lead);
        check_fragments(counts({0, 0, 0, 0, 8, 48, 40, 32}), lead);
    }
}

TEST_SUITE_END();
