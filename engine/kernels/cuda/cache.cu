// Moving rows and blocks of the KV cache: writing new tokens, copying blocks, swapping them to the host.
//
// Nothing is computed; everything moves in 16-byte words.
#include "primitives.cuh"

namespace {

constexpr int THREADS = 256;

__device__ __forceinline__ void copy_words(uint4* to, const uint4* from, int64_t words, int64_t first, int64_t step) {
    for (int64_t i = first; i < words; i += step) to[i] = from[i];
}

// grid (token). Rows of k and v are `words` long and `stride` words apart.
__global__ void kv_write_kernel(const uint4* k, const uint4* v, uint4* k_cache, uint4* v_cache, const int64_t* slots,
                                int words, int64_t k_stride, int64_t v_stride) {
    const int64_t token = blockIdx.x, slot = slots[token];
    if (slot < 0) return;  // padding
    copy_words(k_cache + slot * words, k + token * k_stride, words, threadIdx.x, blockDim.x);
    copy_words(v_cache + slot * words, v + token * v_stride, words, threadIdx.x, blockDim.x);
}

// grid (pair, part, K or V)
__global__ void copy_blocks_kernel(uint4* k_cache, uint4* v_cache, const int64_t* source, const int64_t* target, int64_t words) {
    uint4* cache = blockIdx.z == 0 ? k_cache : v_cache;
    const int64_t from = source[blockIdx.x] * words, to = target[blockIdx.x] * words;
    copy_words(cache + to, cache + from, words, blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x);
}

// grid (pair, part). One side is host memory, pinned and therefore visible to the device at its own address.
__global__ void swap_blocks_kernel(const uint4* source, uint4* target, const int64_t* pairs, int64_t words) {
    const int64_t from = pairs[2 * blockIdx.x] * words, to = pairs[2 * blockIdx.x + 1] * words;
    copy_words(target + to, source + from, words, blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x);
}

unsigned parts(int64_t words) {
    const int64_t count = (words + 4 * THREADS - 1) / (4 * THREADS);  // four words per thread
    return static_cast<unsigned>(count < 64 ? count : 64);
}

}  // namespace

// Whether the CUDA runtime of this library works with the driver that is here: 0, or its error.
extern "C" int probe() { return cudaFree(nullptr); }

extern "C" int kv_write(const void* k, const void* v, void* k_cache, void* v_cache, const int64_t* slots, int tokens,
                        int row_bytes, int64_t k_stride_bytes, int64_t v_stride_bytes, void* stream) {
    if (row_bytes % 16 || k_stride_bytes % 16 || v_stride_bytes % 16) return cudaErrorInvalidValue;
    const int words = row_bytes / 16, threads = min(THREADS, divide_up(words, WARP) * WARP);
    return launch(kv_write_kernel, dim3(tokens), threads, 0, static_cast<cudaStream_t>(stream),
        static_cast<const uint4*>(k), static_cast<const uint4*>(v), static_cast<uint4*>(k_cache),
        static_cast<uint4*>(v_cache), slots, words, k_stride_bytes / 16, v_stride_bytes / 16);
}

extern "C" int copy_blocks(void* k_cache, void* v_cache, const int64_t* source, const int64_t* target, int pairs,
                           int64_t block_bytes, void* stream) {
    if (block_bytes % 16) return cudaErrorInvalidValue;
    const int64_t words = block_bytes / 16;
    return launch(copy_blocks_kernel, dim3(pairs, parts(words), 2), THREADS, 0, static_cast<cudaStream_t>(stream),
        static_cast<uint4*>(k_cache), static_cast<uint4*>(v_cache), source, target, words);
}

// All blocks in one launch; `pairs` (source, target) lies on the device.
extern "C" int swap_blocks(const void* source, void* target, const int64_t* pairs, int count, int64_t block_bytes, void* stream) {
    if (block_bytes % 16) return cudaErrorInvalidValue;
    const int64_t words = block_bytes / 16;
    return launch(swap_blocks_kernel, dim3(count, parts(words)), THREADS, 0, static_cast<cudaStream_t>(stream),
        static_cast<const uint4*>(source), static_cast<uint4*>(target), pairs, words);
}

// One copy call per block; `pairs` lies on the host.
extern "C" int swap_each_block(const void* source, void* target, const int64_t* pairs, int count, int64_t block_bytes, void* stream) {
    for (int i = 0; i < count; ++i) {
        const cudaError_t error = cudaMemcpyAsync(static_cast<char*>(target) + pairs[2 * i + 1] * block_bytes,
            static_cast<const char*>(source) + pairs[2 * i] * block_bytes, block_bytes, cudaMemcpyDefault,
            static_cast<cudaStream_t>(stream));
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
