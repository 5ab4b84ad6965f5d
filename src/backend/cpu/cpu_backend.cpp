#include "backend/cpu/cpu_backend.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/limits.h"
#include "base/signals.h"

namespace stief {

CpuBackend::CpuBackend(const BackendOptions& options, Threads& pool)
    : kernels(choose_kernels(options.isa.c_str())), threads(pool) {
    name = "cpu";
    most_singly = 33;
    device = format("%s, %d thread%s", kernels.name, pool.count(), pool.count() == 1 ? "" : "s");
}

const RowLayout& CpuBackend::layout(const RowFormat& format, DType dtype) {
    LayoutKey key = {format, dtype};
    auto found = layouts.find(key);
    if (found == layouts.end()) found = layouts.emplace(key, RowLayout(format, dtype)).first;
    return found->second;
}

size_t CpuBackend::available() const {
    return available_memory();
}

// Mapped and not from the heap: pages are zero and cost nothing until they are touched, so a cache
// for a long context is paid for as it fills.
void* CpuBackend::alloc(size_t bytes, const char* what) {
    constexpr double GIB = 1 << 30;
    size_t available = available_memory();
    if (bytes > available)
        fail("%s needs %.2f GiB, %.2f GiB are available; use a smaller --context", what,
             double(bytes) / GIB, double(available) / GIB);
    void* memory = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED, "%s needs %.2f GiB, which the system refuses: %s", what,
          double(bytes) / GIB, std::strerror(errno));
    return memory;
}

// Space is taken at once, where the file system keeps that promise; where it does not, and the disk fills
// up or fails later, memory takes the file's place (base/signals.h). The name is given back at once as
// well, so that nothing has to be removed after a signal.
void* CpuBackend::alloc_cold(size_t bytes, const char* what, const std::string& path) {
    if (path.empty()) return alloc(bytes, what);
    int file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    check(file >= 0, "%s: cannot be made for %s: %s", path.c_str(), what, std::strerror(errno));
    unlink(path.c_str());
    int error = posix_fallocate(file, 0, off_t(bytes ? bytes : 1));
    void* memory = error ? MAP_FAILED
                         : mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_SHARED,
                                file, 0);
    if (!error && memory == MAP_FAILED) error = errno;
    close(file);
    check(!error, "%s: no room for %s, %.2f GiB: %s", path.c_str(), what,
          double(bytes) * 0x1p-30, std::strerror(error));
    remember_spare_mapping(memory, bytes, path);
    return memory;
}

void CpuBackend::release(void* memory, size_t bytes) {
    if (!memory) return;
    std::erase_if(arrived, [=](const auto& one) { return lies_in(one.first, memory, bytes); });
    forget_mapping(memory);    // of a file
    munmap(memory, bytes ? bytes : 1);
}

Weight view_of(const Tensor& tensor) {
    size_t rank = tensor.shape.size();
    check(rank == 1 || rank == 2, "a weight has shape %s, expected a matrix or a vector",
          to_string(tensor.shape).c_str());
    for (size_t extent : tensor.shape)
        check(extent <= INT32_MAX, "a weight has shape %s, too large for this version",
              to_string(tensor.shape).c_str());
    return {tensor.data, tensor.dtype, int(tensor.shape[0]), rank == 2 ? int(tensor.shape[1]) : 1};
}

Weight CpuBackend::bind(const Tensor& tensor) {
    return view_of(tensor);
}

void CpuBackend::upload(void* to, const void* host, size_t bytes) {
    if (bytes) std::memcpy(to, host, bytes);
}

void CpuBackend::download(void* host, const void* from, size_t bytes) {
    if (!arrived.empty() && arrived.front().first == from) {
        std::memcpy(host, &arrived.front().second, sizeof(int32_t));
        return arrived.pop_front();
    }
    if (bytes) std::memcpy(host, from, bytes);
}

bool CpuBackend::begin_step(const Step& step) {
    home = step.home;
    return true;
}

void CpuBackend::end_step() {
    if (!home) return;
    std::erase_if(arrived, [=, this](const auto& one) { return one.first != home; });
    check(arrived.size() < 2, "two numbers are on their way home already");
    arrived.emplace_back(home, *home);
    home = nullptr;
}

char* thread_scratch(size_t bytes) {
    static thread_local struct Scratch {
        char* data = nullptr;
        ~Scratch() { std::free(data); }
        size_t size = 0;
    } scratch;
    if (bytes > scratch.size) {
        std::free(scratch.data);
        scratch.size = (bytes + 4095) / 4096 * 4096;
        scratch.data = static_cast<char*>(std::aligned_alloc(4096, scratch.size));
        if (!scratch.data) {
            scratch.size = 0;
            throw std::bad_alloc();
        }
    }
    return scratch.data;
}

}  // namespace stief
