// The operations of the seam once more, as plainly as they can be said, in double precision, and
// their inputs: weights at odd addresses.
#pragma once
#include <cmath>
#include <cstring>

#include "backend/backend.h"
#include "base/bf16.h"
#include "base/random.h"
#include "testing.h"

namespace stief::testing {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

// Rounding one factor of a product to bf16, whose unit roundoff is 2⁻⁸: at most its square.
constexpr double TOL_ROUNDED = 0x1p-16;
// The same of the four factors of attention of many tokens: (4 · 2⁻⁸)².
constexpr double TOL_FOUR_ROUNDED = 0x1p-12;

// (S, 2, d/2)  cosines and sines of any angles
inline Floats rotations(int S, int d) {
    Floats table;
    for (int s = 0; s < S; s++)
        for (int j = 0; j < d; j++) {
            double angle = 0.3 * s / (j % (d / 2) + 1);
            table.push_back(float(j < d / 2 ? std::cos(angle) : std::sin(angle)));
        }
    return table;
}

inline Floats normals(size_t n, uint64_t seed) {
    Random random(seed);
    Floats x(n);
    for (float& one : x) one = float(random.normal());
    return x;
}

// Elements of one dtype that begin at an odd address, as in a file whose header is that long.
struct Elements {
    DType dtype;
    std::vector<char> bytes;
    Doubles values;                                   // what the elements are, exactly

    Elements(const Floats& from, DType type)
        : dtype(type), bytes(from.size() * size_of(type) + 1), values(from.size()) {
        for (size_t i = 0; i < from.size(); i++) set(i, from[i]);
    }
    char* data() { return bytes.data() + 1; }
    void set(size_t i, float x) {
        if (dtype == DType::F32) put(i, x, x);
        if (dtype == DType::F16) put(i, to_f16(x), to_float(to_f16(x)));
        if (dtype == DType::BF16) put(i, to_bf16(x), to_float(to_bf16(x)));
    }

  private:
    template <class T>
    void put(size_t i, T element, float value) {
        std::memcpy(data() + i * sizeof(T), &element, sizeof(T));
        values[i] = double(value);
    }
};

inline bool same_bits(const Floats& a, const Floats& b) {
    return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

namespace reference {

// (T, N) = x (T, K) w (N, K)ᵀ
inline Doubles matmul(const Floats& x, const Doubles& w, int T, int N, int K) {
    Doubles out;
    for (int t = 0; t < T; t++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int i = 0; i < K; i++) sum += double(x[size_t(t * K + i)]) * w[size_t(j * K + i)];
            out.push_back(sum);
        }
    return out;
}

// One head's query over S rows of keys (S, rk) and values (S, rv); adds rv numbers and d − rv
// zeros.
inline void attend_head(Doubles& out, const float* q, const Doubles& k, const Doubles& v, int S,
                        int rk, int rv, int d) {
    Doubles p(static_cast<size_t>(S));
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int s = 0; s < S; s++) {
        double score = 0;
        for (int i = 0; i < rk; i++) score += double(q[i]) * k[size_t(s * rk + i)];
        p[size_t(s)] = score / std::sqrt(double(d));
        most = std::max(most, p[size_t(s)]);
    }
    for (double& one : p) sum += one = std::exp(one - most);
    for (int i = 0; i < d; i++) {
        double value = 0;
        for (int s = 0; i < rv && s < S; s++) value += p[size_t(s)] / sum * v[size_t(s * rv + i)];
        out.push_back(value);
    }
}

}  // namespace reference
}  // namespace stief::testing
