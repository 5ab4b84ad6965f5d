// Copies and sums over activations.
// Twin: src/backend/cpu/backward_sums.cpp.
//
// Sums are in double: a product of two floats is exact there, their number does not matter, and the
// order is fixed. They are a thousandth of the work, and a data-centre GPU adds doubles at half the
// rate of floats.
#include <algorithm>

#include "cuda_backward.h"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// One thread an element.
__global__ void scaled_difference_kernel(float* out, const float* a, const float* b, float scale,
                                         size_t n) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = scale * (a[i] - b[i]);
}
// Rows of `width` floats; strides of to and from, of which from's may be 0.
__global__ void copy_rows_kernel(float* to, size_t to_stride, const float* from, size_t from_stride,
                                 size_t rows, size_t width) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < rows * width) to[i / width * to_stride + i % width] = from[i / width * from_stride + i % width];
}
__global__ void add_kernel(float* out, const float* x, size_t n) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] += x[i];
}

// sums_b ← block b's part of Σ (a − b)², or of Σ a² where b is null. grid any, block 256. Shared:
// one double a warp.
__global__ void squares_kernel(double* sums, const float* a, const float* b, size_t n) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    size_t threads = size_t(gridDim.x) * blockDim.x;
    double sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += threads) {
        double x = double(a[i]) - (b ? double(b[i]) : 0.0);
        sum += x * x;
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

constexpr int MOST_GRAMS = 64;  // of one launch
struct Grams {
    const float *A[MOST_GRAMS], *B[MOST_GRAMS];
    int rows[MOST_GRAMS];
};

// out (count, d, d) ← AᵀB. grid (tiles of d, tiles of d, count), block 256: a tile of 32 x 32 sums,
// of which a thread has 4 in one column. Shared: 32 rows of 32 columns of A and of B. A and B are
// read d / 32 times, from the second cache after the first.
constexpr int TILE = 32, GRAM_BLOCK = 256, EACH = TILE * TILE / GRAM_BLOCK;
__global__ void gram_kernel(double* out, Grams all, int d) {
    float* a = reinterpret_cast<float*>(dynamic_shared());  // (TILE, TILE)
    float* b = a + TILE * TILE;                             // (TILE, TILE)
    int column = int(threadIdx.x) % TILE, first = int(threadIdx.x) / TILE * EACH;
    int i0 = int(blockIdx.y) * TILE, j0 = int(blockIdx.x) * TILE, rows = all.rows[blockIdx.z];
    const float *A = all.A[blockIdx.z], *B = all.B[blockIdx.z];
    double sum[EACH] = {};
    for (int t = 0; t < rows; t += TILE) {
        for (int e = 0; e < EACH; e++) {
            int row = first + e;
            const size_t from = size_t(t + row) * size_t(d);
            bool there = t + row < rows;
            a[row * TILE + column] =
                there && i0 + column < d ? A[from + size_t(i0 + column)] : 0.0f;
            b[row * TILE + column] =
                there && j0 + column < d ? B[from + size_t(j0 + column)] : 0.0f;
        }
        __syncthreads();  // the tiles are whole before anybody reads them
        for (int row = 0; row < TILE; row++)
            for (int e = 0; e < EACH; e++)
                sum[e] += double(a[row * TILE + first + e]) * double(b[row * TILE + column]);
        __syncthreads();  // and read before the next are written
    }
    out += size_t(blockIdx.z) * size_t(d) * size_t(d);
    for (int e = 0; e < EACH; e++)
        if (i0 + first + e < d && j0 + column < d)
            out[size_t(i0 + first + e) * size_t(d) + size_t(j0 + column)] = sum[e];
}

// ---- launchers ---------------------------------------------------------------------------------

constexpr int BLOCK = 256;

static dim3 blocks_for(size_t n) {
    return dim3(unsigned((n + BLOCK - 1) / BLOCK));
}

void CudaBackward::zero(float* x, size_t n) {
    CUDA_CHECK(cudaMemsetAsync(x, 0, n * sizeof(float), gpu.queue));
}

void CudaBackward::copy_rows(float* to, size_t to_stride, const float* from, size_t from_stride,
                             size_t rows, size_t width) {
    constexpr size_t F = sizeof(float);
    if (rows == 1 || (to_stride == width && from_stride == width))
        CUDA_CHECK(
            cudaMemcpyAsync(to, from, rows * width * F, cudaMemcpyDeviceToDevice, gpu.queue));
    else
        launch(copy_rows_kernel, blocks_for(rows * width), BLOCK, 0, gpu.queue, to, to_stride, from,
               from_stride, rows, width);
}

void CudaBackward::add(float* out, const float* x, size_t n) {
    launch(add_kernel, blocks_for(n), BLOCK, 0, gpu.queue, out, x, n);
}

void CudaBackward::scaled_difference(float* out, const float* a, const float* b, float scale,
                                     size_t n) {
    launch(scaled_difference_kernel, blocks_for(n), BLOCK, 0, gpu.queue, out, a, b, scale, n);
}

// The number of parts depends on n alone: the same sum on every GPU.
static double squares(CudaBackend& gpu, const float* a, const float* b, size_t n) {
    constexpr size_t PART = 16 * BLOCK, MOST_PARTS = 1024;
    size_t parts = std::min(std::max<size_t>(1, (n + PART - 1) / PART), MOST_PARTS);
    double* sums =
        static_cast<double*>(gpu.scratch(CudaBackend::Scratch::Reduction, parts * sizeof(double)));
    launch(squares_kernel, dim3(unsigned(parts)), BLOCK, BLOCK / WARP * sizeof(double), gpu.queue,
           sums, a, b, n);
    std::vector<double> host(parts);
    gpu.download(host.data(), sums, parts * sizeof(double));
    double total = 0;
    for (double one : host) total += one;
    return total;
}

double CudaBackward::squared_norm(const float* x, size_t n) {
    return squares(gpu, x, nullptr, n);
}

double CudaBackward::squared_distance(const float* a, const float* b, size_t n) {
    return squares(gpu, a, b, n);
}

void CudaBackward::add_grams(std::span<const Gram> all) {
    for (; all.size() > MOST_GRAMS; all = all.subspan(MOST_GRAMS)) add_grams(all.first(MOST_GRAMS));
    if (all.empty()) return;
    int d = all[0].d;  // one of them for all: heads of one layer
    Grams grams = {};
    for (size_t i = 0; i < all.size(); i++)
        grams.A[i] = all[i].A, grams.B[i] = all[i].B, grams.rows[i] = all[i].rows;
    size_t square = size_t(d) * size_t(d), floats = 2 * TILE * TILE;
    unsigned tiles = unsigned((d + TILE - 1) / TILE);
    double* sums = static_cast<double*>(
        gpu.scratch(CudaBackend::Scratch::Reduction, all.size() * square * sizeof(double)));
    launch(gram_kernel, dim3(tiles, tiles, unsigned(all.size())), GRAM_BLOCK,
           floats * sizeof(float), gpu.queue, sums, grams, d);
    std::vector<double> host(all.size() * square);
    gpu.download(host.data(), sums, host.size() * sizeof(double));
    for (size_t i = 0; i < all.size(); i++)
        for (size_t j = 0; j < square; j++) all[i].sum->data[j] += host[i * square + j];
}

}  // namespace stief
