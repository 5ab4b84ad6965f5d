// Device, memory and copies of cuda_runtime.h.
#include <cstdio>
#include <cstring>

#include "stream.h"

namespace stief::simt {

static cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

// ---- failures that tests ask for --------------------------------------------------------------

struct Failure {
    cudaError_t error = cudaSuccess;
    int after = 0;
    bool sticky = false;
};
static Failure failures[6];

void fail_at(Call call, cudaError_t error, int after, bool sticky) {
    failures[int(call)] = {error, after, sticky};
}

cudaError_t failure(Call call) {
    Failure& one = failures[int(call)];
    if (one.error == cudaSuccess || one.after-- > 0) return cudaSuccess;
    cudaError_t error = one.error;
    if (one.sticky)
        one.after = 0;
    else
        one = {};
    return result(error);
}

Restore::~Restore() {
    machine = before;
    order = Order::Forward;
    for (Failure& one : failures) one = {};
    last_error = cudaSuccess;
}

static cudaError_t device_status() {
    if (machine.driver / 1000 < machine.runtime / 1000) return cudaErrorInsufficientDriver;
    return machine.devices == 0 ? cudaErrorNoDevice : cudaSuccess;
}

// What a capture forbids, but for one in relaxed mode, and ends its being valid.
static cudaError_t unsafe_call() {
    return result(invalidate_captures() ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

static cudaError_t take(void** memory, size_t bytes, Kind kind, Call call) {
    if (cudaError_t error = result(device_status())) return error;
    if (cudaError_t error = unsafe_call()) return error;
    if (cudaError_t error = failure(call)) return error;
    *memory = nullptr;
    if (bytes == 0) return cudaSuccess;
    bool room =
        kind != Kind::Device || bytes <= machine.memory - std::min(machine.memory, allocated(kind));
    if (room) *memory = allocate(bytes, kind);
    return result(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}

// The copy's ends are where its kind says, and inside of one allocation each.
static bool proper(const void* to, const void* from, size_t to_bytes, size_t from_bytes,
                   cudaMemcpyKind kind) {
    if (kind == cudaMemcpyHostToDevice && (!is_device(to) || is_device(from))) return false;
    if (kind == cudaMemcpyDeviceToHost && (is_device(to) || !is_device(from))) return false;
    if (kind == cudaMemcpyDeviceToDevice && (!is_device(to) || !is_device(from))) return false;
    return fits(to, to_bytes) && fits(from, from_bytes);
}

}  // namespace stief::simt

using namespace stief;
using namespace stief::simt;

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

const char* cudaGetErrorName(cudaError_t error) {
    for (const auto& one : errors)
        if (one.error == error) return one.name;
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    for (const auto& one : errors)
        if (one.error == error) return one.text;
    return "unknown error";
}
cudaError_t cudaGetLastError() {
    return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
    return last_error;
}

// ---- device -----------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
    *count = device_status() == cudaSuccess ? machine.devices : 0;
    return result(device_status());
}
cudaError_t cudaSetDevice(int device) {
    if (cudaError_t error = result(device_status())) return error;
    return result(device >= 0 && device < machine.devices ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return result(device_status());
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (cudaError_t error = cudaSetDevice(device)) return error;
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "simt (played on the CPU)");
    properties->totalGlobalMem = machine.memory;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = machine.shared_bytes;
    properties->sharedMemPerMultiprocessor = machine.shared_bytes + 1024;
    properties->major = machine.major, properties->minor = machine.minor;
    properties->multiProcessorCount = machine.processors;
    properties->l2CacheSize = 1 << 20;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024, properties->maxThreadsPerMultiProcessor = 2048;
    properties->memoryBusWidth = 64;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = machine.driver;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = machine.runtime;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    if (cudaError_t error = unsafe_call()) return error;
    if (cudaError_t error = failure(Call::Synchronize)) return error;
    finish_all();
    deliver(nullptr, true);
    return cudaSuccess;
}

// ---- memory -----------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
    return take(memory, bytes, Kind::Device, Call::Malloc);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    return take(memory, bytes, Kind::Host, Call::MallocHost);
}
cudaError_t cudaFree(void* memory) {
    if (cudaError_t error = unsafe_call()) return error;
    finish_quietly();
    deliver(nullptr, true);
    release(memory);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
    return cudaFree(memory);
}
cudaError_t cudaHostRegister(void*, size_t, unsigned) {
    return unsafe_call();
}
cudaError_t cudaHostUnregister(void*) {
    return unsafe_call();
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = machine.memory;
    *free = machine.memory - std::min(machine.memory, allocated(Kind::Device));
    return result(device_status());
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (cudaError_t error = unsafe_call()) return error;
    if (cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr)) return error;
    deliver(nullptr, false);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    if (cudaError_t error = failure(Call::Copy)) return error;
    if (width == 0 || height == 0) return cudaSuccess;
    if (width > to_pitch || width > from_pitch ||
        !proper(to, from, to_pitch * (height - 1) + width, from_pitch * (height - 1) + width, kind))
        return result(cudaErrorInvalidValue);
    // What arrives later must not be read sooner: not even what was there.
    for (size_t i = 0; !is_device(to) && !is_captured(stream) && i < height; i++)
        std::memset(static_cast<char*>(to) + i * to_pitch, 0xFF, width);
    enqueue(stream, [=] {
        for (size_t i = 0; i < height; i++) {
            char* row = static_cast<char*>(to) + i * to_pitch;
            const char* source = static_cast<const char*>(from) + i * from_pitch;
            if (is_device(to) || is_page_locked(to))  // which work behind it on the stream may read
                std::memmove(row, source, width);
            else
                deliver_later(row, source, width);
        }
    });
    return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    if (!is_device(memory) || !fits(memory, bytes)) return result(cudaErrorInvalidValue);
    enqueue(stream, [=] { std::memset(memory, value, bytes); });
    return cudaSuccess;
}
