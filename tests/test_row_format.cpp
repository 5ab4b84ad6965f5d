// Rows of mixed widths: layout, round trip, and the quantiser's distortion.
#include <cmath>
#include <vector>

#include "backend/levels.h"
#include "backend/row_format.h"
#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

namespace {

RowFormat format_of(std::array<uint16_t, RowFormat::WIDTHS> count) {
    RowFormat format;
    format.count = count;
    return format;
}

// A row that was unpacked, in cells: as near to what was packed as least squares have it.
void in_cells(Floats& row, const RowFormat& format) {
    size_t i = format.count[0];
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (int n = 0; n < format.count[w]; n++)
            row[i++] *= RowFormat::CELL[w] / RowFormat::STEP[w];
}

// Of n rows of a unit Gaussian, 64 coordinates of one width: mean squared error in cells, and how much of
// the coordinates is missing on the way out, 1 − E[ĉ c] / E[c²].
struct Quantised {
    double error = 0, missing = 0;

    Quantised(size_t width, int n) {
        RowFormat format;
        format.count[width] = 64;
        std::vector<uint8_t> row(format.bytes(DType::F16));
        Floats c = normals(size_t(n) * 64, 5);
        double out = 0, all = 0;
        for (int t = 0; t < n; t++) {
            const float* from = &c[size_t(t) * 64];
            Floats back(64, NAN);
            pack_row(row.data(), from, nullptr, format, DType::F16);
            unpack_row(back.data(), row.data(), format, DType::F16);
            for (size_t i = 0; i < 64; i++)
                out += double(back[i]) * double(from[i]), all += double(from[i]) * double(from[i]);
            in_cells(back, format);
            for (size_t i = 0; i < 64; i++) error += std::pow(double(back[i] - from[i]), 2) / n / 64;
        }
        missing = 1 - out / all;
    }
};

}  // namespace

TEST_CASE("a row is its elements, its groups of codes and one scale, without padding") {
    CHECK(RowFormat::whole(12).bytes(DType::F16) == 24);
    CHECK(RowFormat::whole(12).bytes(DType::F32) == 48);
    CHECK(RowFormat{}.bytes(DType::F16) == 0);
    RowFormat mixed = format_of({4, 8, 0, 8, 16, 0, 8, 16});
    CHECK(mixed.kept() == 60);
    CHECK(mixed.bytes(DType::BF16) == 8 + 8 + 5 + 8 + 2 + 2 + 1);
    CHECK(mixed.bits_per_element(DType::BF16, 64) == doctest::Approx(34 * 8 / 64.0));
}

TEST_CASE("what was packed packs again, in cells, to the same bytes and reads as the same numbers") {
    for (RowFormat format :
         {format_of({4, 8, 8, 8, 8, 8, 8, 8}), format_of({0, 0, 0, 0, 0, 0, 0, 64}),
          format_of({0, 0, 8, 0, 16, 8, 32, 0}), RowFormat::whole(64)})
        for (DType dtype : {DType::F32, DType::F16, DType::BF16}) {
            size_t n = size_t(format.kept());
            std::vector<uint8_t> row(format.bytes(dtype) + 1, 0xa5), again(row);
            Floats c = normals(n, 3), back(n, NAN), twice(n, NAN);
            pack_row(row.data(), c.data(), nullptr, format, dtype);
            unpack_row(back.data(), row.data(), format, dtype);
            Floats cells = back;
            in_cells(cells, format);
            pack_row(again.data(), cells.data(), nullptr, format, dtype);
            unpack_row(twice.data(), again.data(), format, dtype);
            CHECK(row.back() == 0xa5);
            CHECK(back == twice);
        }
}

// Max 1960, table 1: 32, 16, 8, 4 and 2 levels, and Lloyd's iteration for 64.
const double best[] = {0, 0, 0.0006442, 0.002499, 0.009497, 0.03454, 0.1175, 0.3634};

// ∫ (x − nearest level)² of a unit Gaussian, cell by cell between the middles of levels: in each
// ∫ x² − 2 l ∫ x + l² ∫ 1.
TEST_CASE("levels on a grid of 8 bits are within 1 % of the best levels, 2 % at 6 bits") {
    for (size_t w = 2; w < RowFormat::WIDTHS; w++) {
        CAPTURE(RowFormat::BITS[w]);
        double step = double(RowFormat::CELL[w]), sum = 0;
        auto below = [](double x, int power) {
            double all = 0.5 * std::erfc(-x / std::sqrt(2.0));
            double density = std::isinf(x) ? 0 : std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
            if (power == 0) return all;
            return power == 1 ? -density : all - (density > 0 ? x * density : 0);
        };
        int last = (1 << RowFormat::BITS[w]) - 1;
        double from = -INFINITY;
        for (int code = 0; code <= last; code++) {
            double level = step * LEVELS.of[w][code], to = INFINITY;
            if (code < last) to = (level + step * LEVELS.of[w][code + 1]) / 2;
            CHECK(to > from);
            auto moment = [&](int power) { return below(to, power) - below(from, power); };
            sum += moment(2) - 2 * level * moment(1) + level * level * moment(0);
            from = to;
        }
        CHECK(sum >= best[w] * 0.999);
        CHECK(sum <= best[w] * (RowFormat::BITS[w] == 6 ? 1.02 : 1.01));
        CHECK(std::abs(sum - double(RowFormat::DISTORTION[w])) <= 1e-3 * sum);
    }
}

TEST_CASE("a row's own scale gains more than its eighths of an octave round away") {
    for (size_t width = 2; width < RowFormat::WIDTHS; width++) {
        CAPTURE(RowFormat::BITS[width]);
        CHECK(Quantised(width, 400).error <= best[width]);
    }
    CHECK(Quantised(1, 400).error <= 1e-4);
}

// The mean of n numbers of variance D or less is within 5 √(D / n); the row's own scale moves D by 5 %.
TEST_CASE("of what least squares shrink the way out gives a part back") {
    for (size_t width = 2; width < RowFormat::WIDTHS; width++) {
        CAPTURE(RowFormat::BITS[width]);
        double D = double(RowFormat::DISTORTION[width]), left = (1 - double(RowFormat::RESTORED)) * D;
        CHECK(std::abs(Quantised(width, 400).missing - left) <= 0.05 * D + 5 * std::sqrt(D / 25600));
    }
}

TEST_CASE("a row a thousand times larger or smaller is quantised as well") {
    RowFormat format = format_of({0, 8, 0, 8, 0, 0, 0, 0});
    std::vector<uint8_t> row(format.bytes(DType::F16));
    for (float size : {1e-3f, 1.0f, 1e3f}) {
        Floats c = normals(16, 7), back(16, NAN);
        for (float& x : c) x *= size;
        pack_row(row.data(), c.data(), nullptr, format, DType::F16);
        unpack_row(back.data(), row.data(), format, DType::F16);
        CHECK(nmse(back, c) <= 0.0035);
    }
}

TEST_CASE("rows of zeros and of NaN pack without harm") {
    RowFormat format = format_of({0, 0, 0, 0, 8, 0, 8, 0});
    std::vector<uint8_t> row(format.bytes(DType::F16));
    Floats zeros(16, 0.0f), nans(16, NAN), back(16, NAN);
    pack_row(row.data(), zeros.data(), nullptr, format, DType::F16);
    unpack_row(back.data(), row.data(), format, DType::F16);
    for (float x : back) CHECK(std::fabs(x) <= 1e-4f);
    pack_row(row.data(), nans.data(), nullptr, format, DType::F16);
    unpack_row(back.data(), row.data(), format, DType::F16);
}

TEST_SUITE_END();
