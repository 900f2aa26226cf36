// The small operators between the matrix products: RMSNorm with residual, rotary embedding, SiLU times up.
//
// All are bound by memory: 16-byte accesses, fp32 inside, one rounding at the end (two in RMSNorm, which rounds before
// the weight as the models' reference code does).
#include "primitives.cuh"

namespace {

// N neighbouring numbers, moved as one word.
template <typename T, int N> struct alignas(sizeof(T) * N) Vector {
    T x[N];
};
template <typename T, int N> __device__ __forceinline__ Vector<T, N> read(const T* p) {
    return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <typename T, int N> __device__ __forceinline__ void write(T* p, const Vector<T, N>& v) {
    *reinterpret_cast<Vector<T, N>*>(p) = v;
}

__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < warps ? parts[lane] : 0.f;
    return warp_sum(x);
}

// Rows in groups: row r starts at (r / inner) * outer_stride + (r % inner) * inner_stride of x (heads within tokens).
struct Rows {
    int inner;
    int64_t outer_stride, inner_stride;
};

// grid (row). With a residual: total = x + residual is written and normalised. out and total are contiguous.
template <typename T, int N>
__global__ void rms_norm_kernel(T* out, T* total, const T* x, const T* residual, const T* weight, float eps, int dim, Rows rows) {
    const int64_t row = blockIdx.x, at = row * dim;
    const T* source = x + row / rows.inner * rows.outer_stride + row % rows.inner * rows.inner_stride;
    float squares = 0.f;
    for (int i = threadIdx.x * N; i < dim; i += blockDim.x * N) {
        Vector<T, N> v = read<T, N>(source + i);
        if (residual != nullptr) {
            const Vector<T, N> r = read<T, N>(residual + at + i);
#pragma unroll
            for (int j = 0; j < N; ++j) v.x[j] = from_float<T>(to_float(v.x[j]) + to_float(r.x[j]));
            write<T, N>(total + at + i, v);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) squares += to_float(v.x[j]) * to_float(v.x[j]);
    }
    const float inverse = rsqrtf(block_sum(squares) / dim + eps);
    if (residual != nullptr) source = total + at;  // each thread reads back what it wrote itself
    for (int i = threadIdx.x * N; i < dim; i += blockDim.x * N) {
        Vector<T, N> v = read<T, N>(source + i);
        const Vector<T, N> w = read<T, N>(weight + i);
#pragma unroll
        for (int j = 0; j < N; ++j)
            v.x[j] = from_float<T>(to_float(from_float<T>(to_float(v.x[j]) * inverse)) * to_float(w.x[j]));
        write<T, N>(out + at + i, v);
    }
}

// grid (token). Heads of q, then of k; dimension i turns with i + half.
template <typename T, int N>
__global__ void rope_kernel(T* q, T* k, const int64_t* positions, const float* cos_sin, int q_heads, int k_heads, int dim,
                            int half, int64_t q_stride, int64_t k_stride) {
    const int64_t token = blockIdx.x;
    const float* cosines = cos_sin + positions[token] * 2 * half;
    const int pieces = half / N;
    for (int i = threadIdx.x; i < (q_heads + k_heads) * pieces; i += blockDim.x) {
        const int head = i / pieces, at = i % pieces * N;
        T* row = head < q_heads ? q + token * q_stride + head * dim : k + token * k_stride + (head - q_heads) * dim;
        Vector<T, N> a = read<T, N>(row + at), b = read<T, N>(row + half + at);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float c = cosines[at + j], s = cosines[half + at + j], x = to_float(a.x[j]), y = to_float(b.x[j]);
            a.x[j] = from_float<T>(x * c - y * s);
            b.x[j] = from_float<T>(y * c + x * s);
        }
        write<T, N>(row + at, a);
        write<T, N>(row + half + at, b);
    }
}

// grid (row, part of it): only the first dimension of a grid goes beyond 65,535
template <typename T, int N> __global__ void silu_mul_kernel(T* out, const T* gate_up, int features, int64_t stride) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (i >= features) return;
    const T* row = gate_up + blockIdx.x * stride;
    const Vector<T, N> gate = read<T, N>(row + i), up = read<T, N>(row + features + i);
    Vector<T, N> result;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const float g = to_float(gate.x[j]);
        result.x[j] = from_float<T>(g / (1.f + __expf(-g)) * to_float(up.x[j]));
    }
    write<T, N>(out + static_cast<int64_t>(blockIdx.x) * features + i, result);
}

int threads_for(int pieces, int most) {
    const int whole = divide_up(pieces, WARP) * WARP;
    return whole < WARP ? WARP : min(whole, most);
}

template <typename T, int N>
cudaError_t run_rms_norm(void* out, void* total, const void* x, const void* residual, const void* weight, float eps,
                         int rows, int dim, Rows layout, cudaStream_t stream) {
    return launch(rms_norm_kernel<T, N>, dim3(rows), threads_for(dim / N, 1024), 0, stream, static_cast<T*>(out),
        static_cast<T*>(total), static_cast<const T*>(x), static_cast<const T*>(residual), static_cast<const T*>(weight),
        eps, dim, layout);
}

template <typename T, int N>
cudaError_t run_rope(void* q, void* k, const int64_t* positions, const float* cos_sin, int tokens, int q_heads, int k_heads,
                     int dim, int half, int64_t q_stride, int64_t k_stride, cudaStream_t stream) {
    return launch(rope_kernel<T, N>, dim3(tokens), threads_for((q_heads + k_heads) * (half / N), 256), 0, stream,
        static_cast<T*>(q), static_cast<T*>(k), positions, cos_sin, q_heads, k_heads, dim, half, q_stride, k_stride);
}

template <typename T, int N>
cudaError_t run_silu_mul(void* out, const void* gate_up, int rows, int features, int64_t stride, cudaStream_t stream) {
    const int pieces = features / N, threads = threads_for(pieces, 256);
    return launch(silu_mul_kernel<T, N>, dim3(rows, divide_up(pieces, threads)), threads, 0, stream, static_cast<T*>(out),
        static_cast<const T*>(gate_up), features, stride);
}

template <typename... Pointers> bool words_apart(int64_t strides, Pointers... pointers) {
    return ((strides | ... | (reinterpret_cast<intptr_t>(pointers) / 2)) & 7) == 0;
}

}  // namespace

// Picks the instance for a dtype: whole 16-byte words where `aligned`, else single numbers.
#define FOR_DTYPE(FUNCTION, aligned, ...)                                                              \
    switch (dtype) {                                                                                    \
        case BF16: return (aligned) ? FUNCTION<bf16, 8>(__VA_ARGS__) : FUNCTION<bf16, 1>(__VA_ARGS__);  \
        case FP16: return (aligned) ? FUNCTION<fp16, 8>(__VA_ARGS__) : FUNCTION<fp16, 1>(__VA_ARGS__);  \
        case FP32: return (aligned) ? FUNCTION<float, 4>(__VA_ARGS__) : FUNCTION<float, 1>(__VA_ARGS__);\
        default: return cudaErrorInvalidValue;                                                          \
    }

extern "C" int rms_norm(void* out, void* total, const void* x, const void* residual, const void* weight, float eps,
                        int dtype, int rows, int dim, int inner, int64_t outer_stride, int64_t inner_stride, void* stream) {
    const Rows layout{inner, outer_stride, inner_stride};
    const bool aligned = words_apart(dim | outer_stride | inner_stride, out, total, x, residual, weight);
    FOR_DTYPE(run_rms_norm, aligned, out, total, x, residual, weight, eps, rows, dim, layout, static_cast<cudaStream_t>(stream))
}

extern "C" int rope(void* q, void* k, const int64_t* positions, const float* cos_sin, int dtype, int tokens, int q_heads,
                    int k_heads, int dim, int rotary_dim, int64_t q_stride, int64_t k_stride, void* stream) {
    const int half = rotary_dim / 2;
    const bool aligned = words_apart(half | dim | q_stride | k_stride, q, k);
    FOR_DTYPE(run_rope, aligned, q, k, positions, cos_sin, tokens, q_heads, k_heads, dim, half, q_stride, k_stride,
              static_cast<cudaStream_t>(stream))
}

extern "C" int silu_mul(void* out, const void* gate_up, int dtype, int rows, int features, int64_t stride, void* stream) {
    const bool aligned = words_apart(features | stride, out, gate_up);
    FOR_DTYPE(run_silu_mul, aligned, out, gate_up, rows, features, stride, static_cast<cudaStream_t>(stream))
}
