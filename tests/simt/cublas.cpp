// cublas_v2.h as loops: operands widened to float, sums in double, so that an order of summation
// that cuBLAS does not promise is not promised here either. TF32 is not imitated: products are
// exact.
#include <cublas_v2.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/bf16.h"
#include "simt.h"

using namespace stief;
using namespace stief::simt;

struct cublasContext {
    cudaStream_t stream = nullptr;
};

namespace {

struct Matrix {
    char* data;
    cudaDataType_t type;
    int ld;
    long long stride;

    size_t element() const { return type == CUDA_R_32F ? 4 : 2; }
    char* at(int batch) const { return data + batch * stride * (long long)(element()); }
    // From the first element to behind the last of rows by columns.
    size_t bytes(int rows, int columns) const {
        return (size_t(columns - 1) * size_t(ld) + size_t(rows)) * element();
    }
};

float read(const char* from, cudaDataType_t type) {
    float x;
    f16 h;
    bf16 b;
    if (type == CUDA_R_32F) return std::memcpy(&x, from, 4), x;
    if (type == CUDA_R_16F) return std::memcpy(&h, from, 2), to_float(h);
    return std::memcpy(&b, from, 2), to_float(b);
}

void write(char* to, cudaDataType_t type, float x) {
    f16 h = to_f16(x);
    bf16 b = to_bf16(x);
    if (type == CUDA_R_32F) std::memcpy(to, &x, 4);
    if (type == CUDA_R_16F) std::memcpy(to, &h, 2);
    if (type == CUDA_R_16BF) std::memcpy(to, &b, 2);
}

// op(X) as (rows, columns), column after column.
std::vector<float> widen(const Matrix& X, int batch, bool transposed, int rows, int columns) {
    std::vector<float> out(size_t(rows) * size_t(columns));
    const char* data = X.at(batch);
    for (int j = 0; j < columns; j++)
        for (int i = 0; i < rows; i++) {
            size_t at = transposed ? size_t(i) * size_t(X.ld) + size_t(j)
                                   : size_t(j) * size_t(X.ld) + size_t(i);
            out[size_t(j) * size_t(rows) + size_t(i)] = read(data + at * X.element(), X.type);
        }
    return out;
}

struct Gemm {
    bool ta, tb;
    int m, n, k;
    float alpha, beta;
    Matrix A, B, C;
    int batches;

    bool valid() const {
        return m >= 0 && n >= 0 && k >= 0 && batches >= 0 && A.ld >= std::max(1, ta ? k : m) &&
               B.ld >= std::max(1, tb ? n : k) && C.ld >= std::max(1, m);
    }

    bool inside(const Matrix& X, int rows, int columns) const {
        if (rows == 0 || columns == 0) return true;
        for (int batch : {0, batches - 1})
            if (!is_device(X.at(batch)) || !fits(X.at(batch), X.bytes(rows, columns))) return false;
        return true;
    }

    void run() const {
        check(inside(A, ta ? k : m, ta ? m : k), "cuBLAS: A reaches outside its allocation");
        check(inside(B, tb ? n : k, tb ? k : n), "cuBLAS: B reaches outside its allocation");
        check(inside(C, m, n), "cuBLAS: C reaches outside its allocation");
        for (int batch = 0; batch < batches; batch++) one(batch);
    }

    void one(int batch) const {
        std::vector<float> a = widen(A, batch, ta, m, k), b = widen(B, batch, tb, k, n);
        std::vector<double> sum(size_t(m), 0.0);
        for (int j = 0; j < n; j++) {
            std::fill(sum.begin(), sum.end(), 0.0);
            for (int l = 0; l < k; l++) {
                const float* column = a.data() + size_t(l) * size_t(m);
                double factor = double(b[size_t(j) * size_t(k) + size_t(l)]);
                for (int i = 0; i < m; i++) sum[size_t(i)] += factor * double(column[i]);
            }
            char* out = C.at(batch) + size_t(j) * size_t(C.ld) * C.element();
            for (int i = 0; i < m; i++, out += C.element()) {
                double old = beta == 0 ? 0 : double(beta) * double(read(out, C.type));
                write(out, C.type, float(double(alpha) * sum[size_t(i)] + old));
            }
        }
    }
};

cublasStatus_t start(cublasHandle_t handle, const Gemm& gemm) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!gemm.valid()) return CUBLAS_STATUS_INVALID_VALUE;
    if (failure(Call::Gemm) != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
    statistics.gemms++;
    if (gemm.m && gemm.n && gemm.batches) enqueue(handle->stream, [gemm] { gemm.run(); });
    return CUBLAS_STATUS_SUCCESS;
}

char* bytes(const void* data) {
    return static_cast<char*>(const_cast<void*>(data));
}

}  // namespace

const char* cublasGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "success";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "the library was not initialized";
        case CUBLAS_STATUS_ALLOC_FAILED:
            return "the resource allocation failed";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "an invalid value was used as a parameter";
        case CUBLAS_STATUS_EXECUTION_FAILED:
            return "the function failed to launch on the GPU";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "the functionality is not supported";
    }
    return "unknown status";
}

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
    *handle = new cublasContext;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                          cublasOperation_t transb, int m, int n, int k,
                                          const void* alpha, const void* A, cudaDataType_t Atype,
                                          int lda, long long strideA, const void* B,
                                          cudaDataType_t Btype, int ldb, long long strideB,
                                          const void* beta, void* C, cudaDataType_t Ctype, int ldc,
                                          long long strideC, int batches, cublasComputeType_t,
                                          cublasGemmAlgo_t) {
    return start(handle, {transa == CUBLAS_OP_T,
                          transb == CUBLAS_OP_T,
                          m,
                          n,
                          k,
                          *static_cast<const float*>(alpha),
                          *static_cast<const float*>(beta),
                          {bytes(A), Atype, lda, strideA},
                          {bytes(B), Btype, ldb, strideB},
                          {bytes(C), Ctype, ldc, strideC},
                          batches});
}
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void* alpha,
                            const void* A, cudaDataType_t Atype, int lda, const void* B,
                            cudaDataType_t Btype, int ldb, const void* beta, void* C,
                            cudaDataType_t Ctype, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B,
                                      Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, compute, algorithm);
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa,
                                         cublasOperation_t transb, int m, int n, int k,
                                         const float* alpha, const float* A, int lda,
                                         long long strideA, const float* B, int ldb,
                                         long long strideB, const float* beta, float* C, int ldc,
                                         long long strideC, int batches) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, CUDA_R_32F, lda,
                                      strideA, B, CUDA_R_32F, ldb, strideB, beta, C, CUDA_R_32F,
                                      ldc, strideC, batches, CUBLAS_COMPUTE_32F,
                                      CUBLAS_GEMM_DEFAULT);
}
cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa,
                           cublasOperation_t transb, int m, int n, int k, const float* alpha,
                           const float* A, int lda, const float* B, int ldb, const float* beta,
                           float* C, int ldc) {
    return cublasSgemmStridedBatched(handle, transa, transb, m, n, k, alpha, A, lda, 0, B, ldb, 0,
                                     beta, C, ldc, 0, 1);
}
