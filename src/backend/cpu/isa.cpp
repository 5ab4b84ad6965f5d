// Which instruction sets this machine runs: what the processor has (cpuid) and what the system
// saves when it switches threads (xgetbv), both; for AMX also leave to use its 8 KB of tiles.
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"

namespace stief {

#if defined(__x86_64__)

struct Cpuid {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    Cpuid(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &eax, &ebx, &ecx, &edx); }
};

static bool bits(unsigned word, std::initializer_list<int> wanted) {
    for (int bit : wanted)
        if (!(word >> bit & 1)) return false;
    return true;
}

// The register states that the system saves: bit 1 xmm, 2 ymm, 5…7 zmm and masks, 17 and 18 tiles.
static unsigned saved_states() {
    if (!bits(Cpuid(1, 0).ecx, {27})) return 0;             // OSXSAVE: xgetbv may be used
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_avx2() {
    return bits(saved_states(), {1, 2}) && bits(Cpuid(1, 0).ecx, {12, 28, 29}) &&   // FMA AVX F16C
           bits(Cpuid(7, 0).ebx, {5});
}

static bool has_avx512() {
    return has_avx2() && bits(saved_states(), {5, 6, 7}) &&
           bits(Cpuid(7, 0).ebx, {16, 17, 30, 31}) &&                               // F DQ BW VL
           bits(Cpuid(7, 1).eax, {5});                                              // BF16
}

static bool has_vbmi() {
    return has_avx512() && bits(Cpuid(7, 0).ecx, {1, 11});                           // VBMI VNNI
}

static bool has_amx() {
    if (!has_avx512() || !bits(saved_states(), {17, 18})) return false;
    if (!bits(Cpuid(7, 0).edx, {22, 24})) return false;                             // BF16 TILE
#if defined(__linux__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static std::vector<const Kernels*> find_tables() {
    std::vector<const Kernels*> tables;
    static const Kernels vbmi = [] {
        Kernels table = kernels_avx512;
        table.name = "vbmi";
        table.pack_rows = pack_rows_vbmi;
        table.unpack_rows = unpack_rows_vbmi;
        table.coded_scores = coded_scores_vbmi;
        table.coded_accumulate = coded_accumulate_vbmi;
        table.code_panel = code_panel_vbmi;
        table.coded_product = coded_product_vbmi;
        return table;
    }();
    static const Kernels amx = [] {
        Kernels table = has_vbmi() ? vbmi : kernels_avx512;
        table.name = "amx";
        table.product_pairs = product_pairs_amx;
        table.split[int(DType::F16)] = split_f16_amx;
        table.split[int(DType::BF16)] = split_bf16_amx;
        return table;
    }();
    if (has_amx()) tables.push_back(&amx);
    if (has_vbmi()) tables.push_back(&vbmi);
    if (has_avx512()) tables.push_back(&kernels_avx512);
    if (has_avx2()) tables.push_back(&kernels_avx2);
    return tables;
}

#elif defined(__aarch64__)

static std::vector<const Kernels*> find_tables() {
    return {&kernels_neon};
}

#else

static std::vector<const Kernels*> find_tables() {
    return {};
}

#endif

// Fastest first.
static const std::vector<const Kernels*>& tables() {
    static const std::vector<const Kernels*> found = [] {
        std::vector<const Kernels*> list = find_tables();
        list.push_back(&kernels_portable);
        return list;
    }();
    return found;
}

std::vector<std::string> cpu_isas() {
    std::vector<std::string> names;
    for (const Kernels* table : tables()) names.push_back(table->name);
    return names;
}

const Kernels& choose_kernels(const char* name) {
    if (!std::strcmp(name, "auto")) return *tables().front();
    std::string known;
    for (const Kernels* table : tables()) {
        if (!std::strcmp(name, table->name)) return *table;
        known += (known.empty() ? "" : ", ") + std::string(table->name);
    }
    fail("--isa %s: this machine runs %s (or auto, the first of them)", name, known.c_str());
}

}  // namespace stief
