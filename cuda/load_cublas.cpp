// cuBLAS, loaded when a device is opened and not with the program: that would cost every run on the
// CPU 0.2 s and 200 MB. These are the functions that the backend calls, under their own names.
#include <cublas_v2.h>
#include <dlfcn.h>

#include "base/check.h"

namespace stief {

static void* find_in_cublas(const char* name) {
    static void* library = [] {
        std::string file = format("libcublas.so.%d", CUBLAS_VER_MAJOR);
        void* loaded = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
        if (!loaded) fail("--backend cuda: %s cannot be loaded (%s)", file.c_str(), dlerror());
        return loaded;
    }();
    void* found = dlsym(library, name);
    if (!found) fail("--backend cuda: libcublas has no %s", name);
    return found;
}

// Its result, called with exactly these types.
template <class Result, class... Args>
static Result call_cublas(const char* name, Args... args) {
    return reinterpret_cast<Result (*)(Args...)>(find_in_cublas(name))(args...);
}

}  // namespace stief

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
    return stief::call_cublas<cublasStatus_t>("cublasCreate_v2", handle);
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    return stief::call_cublas<cublasStatus_t>("cublasDestroy_v2", handle);
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    return stief::call_cublas<cublasStatus_t>("cublasSetStream_v2", handle, stream);
}

const char* cublasGetStatusString(cublasStatus_t status) {
    return stief::call_cublas<const char*>("cublasGetStatusString", status);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void* alpha,
                            const void* A, cudaDataType Atype, int lda, const void* B,
                            cudaDataType Btype, int ldb, const void* beta, void* C,
                            cudaDataType Ctype, int ldc, cublasComputeType_t computeType,
                            cublasGemmAlgo_t algo) {
    return stief::call_cublas<cublasStatus_t>("cublasGemmEx", handle, transa, transb, m, n, k,
                                              alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype,
                                              ldc, computeType, algo);
}
}
