// AMX with bf16: AVX-512's table with the product of pairs on tile registers (amx_tiles.h). The
// instructions are written out because the compilers' own names take the register's number only as
// a literal in a macro.
#include "backend/cpu/amx_tiles.h"

namespace stief {
namespace {

struct Tiles {
    static void configure(const TileConfig& config) {
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
    static void release() { asm volatile("tilerelease"); }
    template <int C>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(C));
    }
    template <int C>
    static void load(const void* from, size_t row_bytes) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(C)
                     : "memory");
    }
    template <int C>
    static void store(void* to, size_t row_bytes) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(C) : "memory");
    }
    template <int C, int A, int B>
    static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};

}  // namespace

void product_pairs_amx(float* out, size_t out_stride, const void* x, size_t x_stride,
                       const void* panel, int T, int n, int k, bool add) {
    AmxProduct<Tiles>::run(out, out_stride, static_cast<const char*>(x), x_stride * 2,
                           static_cast<const char*>(panel), T, n, k, add);
}

}  // namespace stief
