// What all inner loops begin with: loops that are unrolled for certain, elements of any type as
// vectors, their conversions.
//
// V is the instruction set's vector (vector_*.h, dot_*.cpp). All of *_impl.h is compiled once for each
// set with that set's flags: an unnamed namespace and no inline function of any other header, so that
// the linker cannot pick a copy with AVX-512 in it for code that runs on a processor without.
#pragma once
#include <cstddef>

#include "backend/cpu/kernels.h"

namespace stief {
namespace {

template <DType E>
constexpr size_t BYTES = E == DType::F32 ? 4 : 2;

// Calls f.operator()<0>(), …, <N − 1>(). An array of vectors lives in registers only if the
// compiler sees constant indices from the start; GCC unrolls loops too late and stores every sum at
// every step.
template <int... I>
struct Indices {};
template <int N, int... I>
struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <int... I>
struct UpTo<0, I...> {
    using type = Indices<I...>;
};
template <class Function, int... I>
__attribute__((always_inline)) inline void call_each(const Function& f, Indices<I...>) {
    (f.template operator()<I>(), ...);
}
template <int N, class Function>
__attribute__((always_inline)) inline void unroll(const Function& f) {
    call_each(f, typename UpTo<N>::type());
}

// Calls f(offset, elements) for whole vectors and then once for the rest.
template <class V, class Function>
void for_vectors(size_t n, const Function& f) {
    size_t i = 0;
    for (; i + V::W <= n; i += V::W) f(i, V::W);
    if (i < n) f(i, int(n - i));
}

template <class V, DType E>
typename V::F load(const void* p, size_t i, int n) {
    const char* at = static_cast<const char*>(p) + i * BYTES<E>;
    return n == V::W ? V::template load<E>(at) : V::template load<E>(at, n);
}
template <class V, DType E>
void store(void* p, size_t i, int n, typename V::F x) {
    char* at = static_cast<char*>(p) + i * BYTES<E>;
    if (n == V::W) V::template store<E>(at, x);
    else V::template store<E>(at, x, n);
}

template <class V, DType E>
void widen(float* out, const void* in, size_t n) {
    for_vectors<V>(n, [&](size_t i, int width) {
        store<V, DType::F32>(out, i, width, load<V, E>(in, i, width));
    });
}

template <class V, DType E>
void narrow(void* out, const float* in, size_t n) {
    for_vectors<V>(n, [&](size_t i, int width) {
        store<V, E>(out, i, width, load<V, DType::F32>(in, i, width));
    });
}

}  // namespace
}  // namespace stief
