#include "races.h"

#include <sys/mman.h>

#include <bit>
#include <utility>

#include "names.h"

namespace stief::simt {

constexpr size_t WORD = 4, MOST_SHARED = 256 << 10;

// Zero pages until they are touched: memory that no kernel meets costs nothing.
static void* zeros(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(memory != MAP_FAILED, "simt: no memory to watch %zu bytes with", bytes);
    return memory;
}

RaceChecker::RaceChecker() {
    shared.shared = true;
    shared.cells = static_cast<Cell*>(zeros(MOST_SHARED / WORD * sizeof(Cell)));
}

RaceChecker::~RaceChecker() {
    munmap(shared.cells, MOST_SHARED / WORD * sizeof(Cell));
    while (!global.empty()) released(reinterpret_cast<void*>(global.begin()->first));
}

void RaceChecker::released(const void* first) {
    auto found = global.find(uintptr_t(first));
    if (found == global.end()) return;
    munmap(found->second.cells, (found->second.bytes / WORD + 2) * sizeof(Cell));
    global.erase(found);
    last = nullptr;
}

RaceChecker::Memory* RaceChecker::memory_of(const void* address) {
    uintptr_t at = uintptr_t(address);
    if (at - shared.first < shared.bytes) return &shared;
    if (last && at - last->first < last->bytes) return last;
    Range range = device_range(address);
    if (!range.first) return nullptr;
    Memory& memory = global[uintptr_t(range.first)];
    if (!memory.cells) {
        memory.first = uintptr_t(range.first), memory.bytes = range.bytes;
        memory.cells = static_cast<Cell*>(zeros((range.bytes / WORD + 2) * sizeof(Cell)));
    }
    return last = &memory;
}

// ---- what orders ------------------------------------------------------------------------------

void RaceChecker::begin_launch(const void* function) {
    kernel = function, kernels.insert(function);
    launch_phase = phase + 1;
}

void RaceChecker::begin_block(unsigned) {
    block_phase = ++phase;
    shared.first = uintptr_t(shared_memory());
    shared.bytes = shared_size();
    shared.apart.clear();
    check(shared.bytes <= MOST_SHARED, "simt: %zu bytes of shared memory", shared.bytes);
    std::fill_n(shared.cells, shared.bytes / WORD + 1, Cell());
}

static std::string name(const char* file, unsigned line) {
    return format("%s:%u", relative(file).c_str(), line);
}

std::set<std::string> RaceChecker::sites() const {
    std::set<std::string> names;
    for (const auto& [site, orders] : barriers) names.insert(name(site.first, site.second));
    return names;
}

bool RaceChecker::counts_as_barrier(const Site& site) {
    auto [found, first] = barriers.try_emplace({site.file, site.line}, true);
    if (first) found->second = name(site.file, site.line) != ignored;
    return found->second;
}

void RaceChecker::barrier(const Site& site) {
    if (counts_as_barrier(site)) phase++;
}

void RaceChecker::warp_barrier(unsigned warp, const Site& site) {
    if (counts_as_barrier(site)) counts[warp]++;
}

void RaceChecker::end_launch() {
    if (!misaligned.empty()) throw Error(std::exchange(misaligned, ""));
    if (!throws || races.empty()) return;
    std::string text = races[0].text();
    if (races.size() > 1) text += format(" (and %zu more)", races.size() - 1);
    races.clear();
    throw Error(text);
}

// ---- accesses ---------------------------------------------------------------------------------

// Is the cell's write ordered before now?
bool RaceChecker::ordered(const Cell& cell, const Now& now) const {
    if (cell.write_phase < (now.memory->shared ? block_phase : launch_phase)) return true;
    if (cell.write_kind == Access::CopyBegin) return false;
    if (cell.write_kind == Access::Atomic && now.kind == Access::Atomic) return true;
    if (cell.write_phase != phase) return cell.write_phase >= block_phase;
    if (cell.writer == now.thread) return true;
    return cell.writer / 32u == now.warp && cell.write_count < counts[now.warp];
}

void RaceChecker::read(Cell& cell, const Now& now) {
    if (cell.read_phase != phase) {
        if (cell.read_phase >= launch_phase && cell.read_phase < block_phase)
            cell.block_phase = cell.read_phase, cell.block_code = cell.read_code,
            cell.block_reader = uint16_t(cell.read_warp * 32 + std::countr_zero(cell.read_lanes));
        cell.read_phase = phase, cell.read_warp = uint16_t(now.warp), cell.read_lanes = 0;
        cell.other_reader = 0;
    }
    if (cell.read_warp != now.warp) {
        cell.other_reader = uint16_t(now.thread + 1), cell.other_code = now.code;
        return;
    }
    if (cell.read_count != counts[now.warp]) cell.read_lanes = 0;
    cell.read_count = counts[now.warp], cell.read_lanes |= 1u << now.lane;
    cell.read_code = now.code;
}

void RaceChecker::touch(Cell& cell, const Now& now) {
    if (now.kind == Access::CopyEnd) {
        if (cell.writer != now.thread || cell.write_kind != Access::CopyBegin) return;
        cell.write_phase = phase, cell.write_count = counts[now.warp];
        cell.write_kind = Access::CopyEnd;
        return;
    }
    if (!ordered(cell, now))
        report(now, cell.writer, cell.write_phase, cell.write_code, cell.write_kind);
    bool reads = now.kind == Access::Read || now.kind == Access::CopySource ||
                 now.kind == Access::Matrix || now.kind == Access::Fragment;
    if (reads) return read(cell, now);

    if (cell.read_phase == phase) {
        uint32_t others = cell.read_lanes & ~(1u << now.lane);
        if (cell.read_warp != now.warp)
            report(now, cell.read_warp * 32u + unsigned(std::countr_zero(cell.read_lanes)), phase,
                   cell.read_code, Access::Read);
        else if (cell.other_reader)
            report(now, cell.other_reader - 1u, phase, cell.other_code, Access::Read);
        else if (others && cell.read_count == counts[now.warp])
            report(now, now.warp * 32 + unsigned(std::countr_zero(others)), phase, cell.read_code,
                   Access::Read);
    }
    if (!now.memory->shared) {
        if (cell.read_phase >= launch_phase && cell.read_phase < block_phase)
            report(now, cell.read_warp * 32u + unsigned(std::countr_zero(cell.read_lanes)),
                   cell.read_phase, cell.read_code, Access::Read);
        else if (cell.block_phase >= launch_phase)
            report(now, cell.block_reader, cell.block_phase, cell.block_code, Access::Read);
    }
    cell.write_phase = phase, cell.write_count = counts[now.warp], cell.write_code = now.code;
    cell.writer = uint16_t(now.thread), cell.write_kind = now.kind;
}

void RaceChecker::access(unsigned thread, const void* address, size_t bytes, Access kind,
                         const void* code) {
    Memory* memory = memory_of(address);
    if (!memory) return;
    Now now{thread, thread / 32, thread % 32, uint32_t(uintptr_t(code)), kind, memory, 0};
    size_t at = uintptr_t(address) - memory->first, end = at + bytes;
    bool early = !memory->shared && before_wait();
    while (at < end) {
        Cell& cell = memory->cells[at / WORD];
        if (early) look_ahead(cell, {now.thread, now.warp, now.lane, now.code, kind, memory, at});
        size_t next = std::min(end, (at / WORD + 1) * WORD);
        now.at = at;
        if (!cell.split && next - at == WORD) {
            touch(cell, now);
        } else {
            if (!cell.split) {
                memory->apart.push_back({cell, cell, cell, cell});
                cell.split = uint32_t(memory->apart.size());
            }
            for (size_t i = at; i < next; i++)
                now.at = i, touch(memory->apart[cell.split - 1][i % WORD], now);
        }
        at = next;
    }
}

// An access of global memory before the wait.
void RaceChecker::look_ahead(const Cell& cell, const Now& now) {
    bool writes = now.kind == Access::Write || now.kind == Access::Atomic;
    bool written = cell.write_phase > 0;
    if (cell.split)
        for (const Cell& byte : now.memory->apart[cell.split - 1]) written |= byte.write_phase > 0;
    if (!writes && !written) return;
    if (!known.insert({kernel, 0, now.code}).second) return;
    races.push_back({kernel, blockIdx, 0, now.thread, 0, now.code, now.kind, now.kind, false, false,
                     true, now.at, now.memory->bytes});
}

// ---- what was found ---------------------------------------------------------------------------

void RaceChecker::report(const Now& now, unsigned thread, uint32_t when, uint32_t code,
                         Access kind) {
    if (!known.insert({kernel, code, now.code}).second) return;
    const Memory& memory = *now.memory;
    races.push_back({kernel, blockIdx, thread, now.thread, code, now.code, kind, now.kind,
                     when < block_phase, memory.shared, false, now.at, memory.bytes});
}

static const char* verb(Access kind) {
    switch (kind) {
        case Access::Write:
            return "writes";
        case Access::Atomic:
            return "changes";
        case Access::CopyBegin:
            return "copies (cp.async, not waited for)";
        case Access::CopyEnd:
            return "has copied (cp.async)";
        default:
            return "reads";
    }
}

std::string Race::text() const {
    if (early)
        return format(
            "race in %s: a cudaMalloc's memory, byte %zu of %zu: thread %u of block (%u, %u, %u) %s "
            "at %s ahead of await_kernels(), where a kernel before this one may still be at work",
            short_name(function).c_str(), at, bytes, second, block.x, block.y, block.z,
            verb(second_kind), place_of(second_code).c_str());
    return format(
        "race in %s: %s, byte %zu of %zu: thread %u%s %s at %s, thread %u of block (%u, %u, %u) %s "
        "at %s, and no barrier orders them",
        short_name(function).c_str(), shared ? "shared memory" : "a cudaMalloc's memory", at, bytes,
        first, other_block ? " of another block" : "", verb(first_kind),
        place_of(first_code).c_str(), second, block.x, block.y, block.z, verb(second_kind),
        place_of(second_code).c_str());
}

}  // namespace stief::simt
