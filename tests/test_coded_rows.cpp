// Rows of mixed widths in the CPU's inner loops, on every instruction set of this machine, against
// pack_row and unpack_row and sums in double.
#include <cstdlib>
#include <memory>

#include "backend/cpu/kernels.h"
#include "backends.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("backend");

namespace {

using Count = std::array<uint16_t, RowFormat::WIDTHS>;
struct Case {
    Count count;
    const char* why;
};

const Case cases[] = {
    {{0, 64}, "8 bits alone"}, {{0, 0, 64}, "6 bits"}, {{0, 0, 0, 64}, "5 bits"},
    {{0, 0, 0, 0, 64}, "4 bits"}, {{0, 0, 0, 0, 0, 64}, "3 bits"},
    {{0, 0, 0, 0, 0, 0, 64}, "2 bits"}, {{0, 0, 0, 0, 0, 0, 0, 64}, "1 bit"},
    {{0, 8, 8, 8, 8, 8, 8, 8}, "all widths, an odd number of groups"},
    {{0, 0, 0, 8, 8, 8, 16, 8}, "2.25 bits an element of 64"},
    {{64}, "elements alone"}, {{4, 8, 0, 8, 8, 8, 8, 8}, "elements and codes"},
    {{3, 0, 0, 0, 0, 0, 0, 8}, "elements at odd addresses, 1 byte of codes"},
    {{0, 0, 0, 0, 0, 0, 8}, "8 kept"}, {{0, 0, 0, 0, 8, 8}, "16"}, {{0, 8, 0, 8, 8}, "24"},
    {{0, 0, 0, 0, 0, 16, 24}, "40"}, {{8, 0, 0, 8, 24, 32, 64}, "136"},
    {{0, 40, 24, 16, 24, 80, 104, 72}, "360: joint values"}, {{}, "nothing"},
    {{0, 8, 8, 8, 8, 0, 0, 8}, "40 in 25 bytes"}, {{0, 0, 8, 8, 0, 32, 32}, "80 in 32 bytes"},
};

struct Rows {
    RowLayout layout;
    int count;
    Floats c;                      // (count, kept)
    // exactly ROW_SLACK bytes beyond the last row belong to it
    std::unique_ptr<char[]> bytes;

    Rows(const Case& from, DType dtype, int n, uint64_t seed)
        : layout(format_of(from.count), dtype), count(n),
          c(normals(size_t(n) * size_t(layout.kept), seed)) {
        size_t all = size_t(n) * layout.bytes + size_t(ROW_SLACK);
        bytes.reset(new char[all]);
        std::fill(bytes.get(), bytes.get() + all, char(0xa5));
        for (size_t s = 0; s < size_t(n); s++) {
            float size = std::exp2(float(s % 7) - 3);
            for (size_t i = 0; i < kept(); i++) c[s * kept() + i] *= size;
        }
    }
    static RowFormat format_of(const Count& count) {
        RowFormat format;
        format.count = count;
        return format;
    }
    size_t kept() const { return size_t(layout.kept); }
    char* row(int s) const { return bytes.get() + size_t(s) * layout.bytes; }
    double rho(int s) const {
        return layout.codes ? double(row_scale(uint8_t(row(s)[layout.bytes - 1]))) : 1;
    }
    // Δ_b; 0 for elements
    double step(size_t i) const {
        if (i < size_t(layout.whole)) return 0;
        return double(layout.group[(i - size_t(layout.whole)) / 8].step);
    }
    // packs all, and what they then mean
    Floats pack() {
        Floats meaning(size_t(count) * kept(), NaN);
        for (int s = 0; s < count; s++) {
            const float* from = c.data() + size_t(s) * kept();
            pack_row(row(s), from, nullptr, layout.format, layout.dtype);
            unpack_row(meaning.data() + size_t(s) * kept(), row(s), layout.format, layout.dtype);
        }
        return meaning;
    }
};

std::vector<const Kernels*> tables() {
    std::vector<const Kernels*> all;
    for (const std::string& isa : cpu_isas()) all.push_back(&choose_kernels(isa.c_str()));
    return all;
}

// What lies between the rows of an output is as it was.
bool untouched(const Floats& out, size_t stride, size_t width) {
    for (size_t i = 0; i < out.size(); i++)
        if (i % stride >= width && !std::isnan(out[i])) return false;
    return true;
}

// Of rows `stride` apart, what belongs to them.
Floats dense(const Floats& x, size_t stride, size_t width) {
    Floats out;
    for (size_t i = 0; i < x.size(); i++)
        if (i % stride < width) out.push_back(x[i]);
    return out;
}

template <class Function>
void for_all(const Function& f) {
    for (const Kernels* kernels : tables())
        for (const Case& one : cases)
            for (DType dtype : {DType::F32, DType::F16, DType::BF16}) {
                if (one.count[0] == 0 && dtype != DType::F16) continue;  // no elements to differ
                CAPTURE(kernels->name);
                CAPTURE(one.why);
                CAPTURE(std::string(name_of(dtype)));
                f(*kernels, one, dtype);
            }
}

}  // namespace

TEST_CASE("rows of mixed widths read as unpack_row reads them") {
    for_all([](const Kernels& kernels, const Case& one, DType dtype) {
        for (int count : {1, 2, 3, 16, 37}) {
            CAPTURE(count);
            Rows rows(one, dtype, count, 80);
            Floats want = rows.pack();
            size_t stride = rows.kept() + 3;
            Floats out(size_t(count) * stride, NaN);
            kernels.unpack_rows(out.data(), stride, rows.row(0), rows.layout, count);
            CHECK(untouched(out, stride, rows.kept()));
            CHECK(nmse(dense(out, stride, rows.kept()), want) <= TOL_F32);
        }
    });
}

// Rounding decides near the edge of a cell, so codes may differ there; the error does not.
TEST_CASE("rows pack to the same bytes as pack_row's but at the edges of cells") {
    for_all([](const Kernels& kernels, const Case& one, DType dtype) {
        for (bool weighted : {false, true}) {
            CAPTURE(weighted);
            constexpr int COUNT = 67;
            Rows want(one, dtype, COUNT, 81), got(one, dtype, COUNT, 81);
            size_t kept = want.kept(), stride = kept + 5;
            Floats weight = normals(kept, 82), x(COUNT * stride, NaN);
            for (float& w : weight) w *= w;
            const float* priced = weighted ? weight.data() : nullptr;
            for (size_t s = 0; s < COUNT; s++) {
                const float* c = want.c.data() + s * kept;
                std::copy_n(c, kept, x.data() + s * stride);
                pack_row(want.row(int(s)), c, priced, want.layout.format, dtype);
            }
            kernels.pack_rows(got.row(0), x.data(), stride, priced, got.layout, COUNT);
            size_t different = 0, bytes = COUNT * want.layout.bytes;
            for (size_t i = 0; i < bytes; i++) different += got.bytes[i] != want.bytes[i];
            CHECK(different <= bytes / 500);
            bool slack = true;
            for (size_t i = 0; i < size_t(ROW_SLACK); i++)
                slack = slack && got.bytes[bytes + i] == char(0xa5);
            CHECK(slack);
            Floats a(kept, NaN), b(kept, NaN);
            double got_error = 0, want_error = 0;
            for (size_t s = 0; s < COUNT; s++) {
                unpack_row(a.data(), got.row(int(s)), got.layout.format, dtype);
                unpack_row(b.data(), want.row(int(s)), got.layout.format, dtype);
                for (size_t i = 0; i < kept; i++) {
                    double w = priced ? double(priced[i]) : 1, c = double(want.c[s * kept + i]);
                    got_error += w * std::pow(double(a[i]) - c, 2);
                    want_error += w * std::pow(double(b[i]) - c, 2);
                }
            }
            CHECK(got_error <= want_error * (1 + 1e-4));
        }
    });
}

TEST_CASE("rows of zeros, of NaN, of the largest and of the least numbers pack as pack_row's") {
    for (const Kernels* kernels : tables())
        for (float value : {0.0f, -0.0f, NaN, INFINITY, 3e38f, -3e38f, 1e-38f, 1e-30f}) {
            CAPTURE(kernels->name);
            CAPTURE(value);
            Rows rows(cases[7], DType::F16, 1, 83), want(cases[7], DType::F16, 1, 83);
            Floats x(rows.kept(), value);
            pack_row(want.row(0), x.data(), nullptr, want.layout.format, DType::F16);
            kernels->pack_rows(rows.row(0), x.data(), 0, nullptr, rows.layout, 1);
            CHECK(std::equal(rows.row(0), rows.row(1), want.row(0)));
        }
}

// What integers allow (vbmi_scores.h, avx2_scores.h), for every score: half a unit of the queries' fixed
// point for each level; and f32's roundings, 2⁻²⁴ for each of a few hundred terms' sizes. Every
// other set keeps within the latter.
TEST_CASE("scores over rows of mixed widths are inner products with what unpack_row reads") {
    for_all([](const Kernels& kernels, const Case& one, DType dtype) {
        for (size_t m : {1, 2, 3, 4, 8})
            for (int count : {1, 15, 16, 17, 32, 75}) {
                CAPTURE(m);
                CAPTURE(count);
                Rows rows(one, dtype, count, 84);
                Floats c = rows.pack();
                size_t n = size_t(count), kept = rows.kept(), q_stride = kept + 1, stride = n + 2;
                Floats q = normals(m * q_stride, 85), out(m * stride, NaN);
                kernels.coded_scores(out.data(), stride, q.data(), q_stride, rows.row(0),
                                     rows.layout, int(m), count);
                CHECK(untouched(out, stride, n));
                double worst = 0;
                for (size_t h = 0; h < m; h++) {
                    double unit = 0;
                    for (size_t i = 0; i < kept; i++)
                        unit = std::max(unit, std::abs(double(q[h * q_stride + i])) *
                                                  rows.step(i) / 32639);
                    for (size_t s = 0; s < n; s++) {
                        double sum = 0, sizes = 0, levels = 0;
                        for (size_t i = 0; i < kept; i++) {
                            double ci = double(c[s * kept + i]);
                            double term = double(q[h * q_stride + i]) * ci;
                            sum += term, sizes += std::abs(term);
                            if (rows.step(i) > 0) levels += std::abs(ci) / rows.step(i);
                        }
                        double error = std::abs(double(out[h * stride + s]) - sum);
                        double bound = unit / 2 * levels + 0x1p-20 * sizes;
                        if (!(error <= bound)) worst = std::max(worst, error / bound);
                        if (std::isnan(error)) worst = INFINITY;
                    }
                }
                CHECK(worst <= 1);
            }
    });
}

TEST_CASE("weighted sums of rows of mixed widths are those of what unpack_row reads") {
    for_all([](const Kernels& kernels, const Case& one, DType dtype) {
        for (size_t m : {1, 2, 3, 4, 8})
            for (int count : {1, 2, 31, 256, 257, 600}) {
                CAPTURE(m);
                CAPTURE(count);
                Rows rows(one, dtype, count, 86);
                Floats c = rows.pack();
                size_t n = size_t(count), kept = rows.kept(), stride = kept + 1, p_stride = n + 2;
                Floats p = normals(m * p_stride, 87), acc(m * stride, NaN);
                for (size_t h = 0; h < m; h++)
                    for (size_t i = 0; i < kept; i++) acc[h * stride + i] = float(i % 5);
                kernels.coded_accumulate(acc.data(), stride, p.data(), p_stride, rows.row(0),
                                         rows.layout, int(m), count);
                CHECK(untouched(acc, stride, kept));
                double worst = 0;
                for (size_t h = 0; h < m; h++) {
                    double unit = 0;
                    for (size_t s = 0; s < n; s++)
                        unit = std::max(unit, std::abs(double(p[h * p_stride + s])) *
                                                  rows.rho(int(s)) / 32639);
                    for (size_t i = 0; i < kept; i++) {
                        double sum = double(i % 5), sizes = sum, levels = 0;
                        for (size_t s = 0; s < n; s++) {
                            double ci = double(c[s * kept + i]);
                            double term = double(p[h * p_stride + s]) * ci;
                            sum += term, sizes += std::abs(term);
                            if (rows.step(i) > 0) levels += std::abs(ci) / rows.rho(int(s));
                        }
                        double error = std::abs(double(acc[h * stride + i]) - sum);
                        double bound = unit / 2 * levels + 0x1p-20 * sizes;
                        if (!(error <= bound)) worst = std::max(worst, error / bound);
                        if (std::isnan(error)) worst = INFINITY;
                    }
                }
                CHECK(worst <= 1);
            }
    });
}

TEST_CASE("keys rebuilt from rows of mixed widths are products with what unpack_row reads") {
    for_all([](const Kernels& kernels, const Case& one, DType dtype) {
        if (!kernels.coded_product) return;
        for (int d : {8, 64, 80, 128}) {
            CAPTURE(d);
            double rounded = 0, lost = 0;        // of all rows
            for (int count : {1, 4, 16, 37}) {
                CAPTURE(count);
                Rows rows(one, dtype, count, 89);
                Floats c = rows.pack();
                size_t n = size_t(count), kept = rows.kept(), width = size_t(d), stride = width + 3;
                Floats D = normals(kept * width, 90), out(n * stride, NaN), mean = normals(width, 91);
                bool none = count == 4;
                if (none) mean.assign(width, 0);
                std::vector<char> panel(code_panel_bytes(rows.layout, d));
                kernels.code_panel(panel.data(), D.data(), none ? nullptr : mean.data(), rows.layout, d);
                kernels.coded_product(out.data(), stride, rows.row(0), panel.data(), rows.layout,
                                      count, d);
                CHECK(untouched(out, stride, width));
                double worst = 0, beyond = 0;
                for (size_t j = 0; j < width; j++) {
                    double unit = 0;
                    for (size_t i = 0; i < kept; i++)
                        unit = std::max(unit, std::abs(double(D[i * width + j])) *
                                                  rows.step(i) / 32639);
                    for (size_t s = 0; s < n; s++) {
                        double sum = double(mean[j]), sizes = std::abs(sum), levels = 0, less = 0;
                        for (size_t i = 0; i < kept; i++) {
                            double ci = double(c[s * kept + i]);
                            double term = double(D[i * width + j]) * ci;
                            sum += term, sizes += std::abs(term);
                            if (!(rows.step(i) > 0)) continue;
                            levels += std::abs(ci) / rows.step(i);
                            less += double(D[i * width + j]) * (double(rows.c[s * kept + i]) - ci);
                        }
                        lost += less * less;
                        double error = std::abs(double(out[s * stride + j]) - sum);
                        double bound = unit / 2 * levels + 0x1p-20 * sizes;
                        if (!(error <= bound)) worst = std::max(worst, error / bound);
                        if (!(error <= bound)) beyond += error * error;
                        if (std::isnan(error)) worst = INFINITY;
                    }
                }
                if (std::string(kernels.name) == "avx2") CHECK(worst <= 1);    // 16 bits of every n
                CHECK(!std::isinf(worst));
                rounded += beyond;
            }
            // twice: so few rows are not their mean
            CHECK(rounded <= 2 * double(PRODUCT_LOSS) * lost);
        }
    });
}

TEST_CASE("weights that are zero, infinite or not numbers are no integers' overflow") {
    for (const Kernels* kernels : tables()) {
        CAPTURE(kernels->name);
        Rows rows(cases[8], DType::F16, 40, 88);
        rows.pack();
        Floats p(40, 0.0f), acc(rows.kept(), 3.0f);
        auto run = [&] {
            kernels->coded_accumulate(acc.data(), 0, p.data(), 0, rows.row(0), rows.layout, 1, 40);
        };
        run();
        for (float x : acc) CHECK(x == 3);
        p[17] = NaN;
        run();
        for (float x : acc) CHECK(std::isnan(x));
        std::fill(p.begin(), p.end(), NaN);
        std::fill(acc.begin(), acc.end(), 3.0f);
        run();
        for (float x : acc) CHECK(std::isnan(x));
        std::fill(p.begin(), p.end(), 0.0f);
        p[17] = INFINITY;
        std::fill(acc.begin(), acc.end(), 3.0f);
        run();
        for (float x : acc) CHECK(!std::isfinite(x));
        Floats q(rows.kept(), 0.0f), out(40, 7.0f);
        auto score = [&] {
            kernels->coded_scores(out.data(), 0, q.data(), 0, rows.row(0), rows.layout, 1, 40);
        };
        score();
        for (float x : out) CHECK(x == 0);
        q[5] = NaN;
        score();
        for (float x : out) CHECK(std::isnan(x));
    }
}

TEST_SUITE_END();
