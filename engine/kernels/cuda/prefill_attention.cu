// Causal attention of chunks of new tokens over a paged KV cache (prefill, and prefill in chunks).
//
// The FlashAttention-2 loop (Dao 2023) with pages: a thread block keeps a tile of queries and walks over the
// context in tiles of K and V, softmax online in fp32, products on tensor cores. Queries are packed: row m of a
// sequence's tile is query head m % group of token m / group, so that a KV head's whole group shares each K and V
// tile, and a short chunk still fills a tile. Sequences are ragged: blocks without rows return at once.
//
// Four warps, each with 16 or 32 rows (two fragments of A share each fragment of B there, which halves the reads of
// shared memory, the bottleneck next to the tensor cores). K and V have two buffers each: the next K tile is under way
// during this tile's scores, the next V tile during its output.
#include "primitives.cuh"

namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP;

struct Shape {
    int heads, kv_heads, block_size, table_stride;
    int64_t q_stride;      // elements between tokens of q
    int sliding_window;
};

template <int Dim> constexpr int FRAGMENTS = Dim <= 128 ? 2 : 1;  // of 16 rows, per warp
template <int Dim> constexpr int ROWS = WARPS * 16 * FRAGMENTS<Dim>;
template <int Dim> constexpr int COLUMNS = Dim < 128 ? 64 : 32;    // KV rows of a tile; more would spill
template <int Dim> constexpr int SHARED_BYTES = (ROWS<Dim> + 4 * COLUMNS<Dim>) * Dim * 2 + 2 * COLUMNS<Dim> * 8;

// Element offset of KV row `row` for this head, or -1 outside the context.
__device__ __forceinline__ int64_t find_row(int row, int end, const int* table, const Shape& s, int head, int dim) {
    if (row >= end) return -1;
    const int block = row / s.block_size;
    const int64_t slot = static_cast<int64_t>(table[block]) * s.block_size + (row - block * s.block_size);
    return (slot * s.kv_heads + head) * dim;
}

template <typename T, int Dim>
__device__ __forceinline__ void fetch(T* tile, const T* cache, const int64_t* offsets) {
    constexpr int CHUNKS = Dim / 8;
#pragma unroll
    for (int piece = threadIdx.x; piece < COLUMNS<Dim> * CHUNKS; piece += THREADS) {
        const int row = piece / CHUNKS, chunk = piece % CHUNKS;
        const int64_t offset = offsets[row];
        copy_async(tile + swizzled<Dim>(row, chunk) * 8, cache + (offset < 0 ? 0 : offset + chunk * 8), offset >= 0);
    }
}

template <typename T, int Dim>
__device__ __forceinline__ void fetch_queries(T* tile, const T* q, int first, int rows, int group, int64_t q_stride) {
    constexpr int CHUNKS = Dim / 8;
    for (int piece = threadIdx.x; piece < ROWS<Dim> * CHUNKS; piece += THREADS) {
        const int row = piece / CHUNKS, chunk = piece % CHUNKS, packed = first + row;
        const bool valid = packed < rows;
        const int64_t offset = valid ? packed / group * q_stride + packed % group * Dim + chunk * 8 : 0;
        copy_async(tile + swizzled<Dim>(row, chunk) * 8, q + offset, valid);
    }
}

// What one warp knows of its rows. `last` is the last position a row may see, index [fragment][half].
template <int Dim> struct Rows {
    float output[FRAGMENTS<Dim>][Dim / 8][4] = {};
    float maximum[FRAGMENTS<Dim>][2], sum[FRAGMENTS<Dim>][2];
    int last[FRAGMENTS<Dim>][2];
};

template <typename T, int Dim>
__device__ __forceinline__ void compute_scores(float (&score)[FRAGMENTS<Dim>][COLUMNS<Dim> / 8][4], const T* queries, const T* keys) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, matrix = lane / 8, r = lane % 8;
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
        uint32_t a[FRAGMENTS<Dim>][4];
#pragma unroll
        for (int f = 0; f < FRAGMENTS<Dim>; ++f) {
            const int row = (warp * FRAGMENTS<Dim> + f) * 16 + (matrix % 2) * 8 + r;
            load_matrices(a[f], queries + swizzled<Dim>(row, k * 2 + matrix / 2) * 8);
        }
#pragma unroll
        for (int n = 0; n < COLUMNS<Dim> / 16; ++n) {
            uint32_t b[4];
            load_matrices(b, keys + swizzled<Dim>(n * 16 + (matrix / 2) * 8 + r, k * 2 + matrix % 2) * 8);
#pragma unroll
            for (int f = 0; f < FRAGMENTS<Dim>; ++f) {
                multiply_add<T>(score[f][2 * n], a[f], b[0], b[1]);
                multiply_add<T>(score[f][2 * n + 1], a[f], b[2], b[3]);
            }
        }
    }
}

// Scales the scores to powers of two, hides what a row may not see, and turns them into softmax numerators.
template <int Dim>
__device__ __forceinline__ void soften(float (&score)[FRAGMENTS<Dim>][COLUMNS<Dim> / 8][4], Rows<Dim>& rows, int begin,
                                       int window, bool masked, float scale_log2) {
    const int column = begin + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int f = 0; f < FRAGMENTS<Dim>; ++f)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float maximum = rows.maximum[f][half];
            const int last = rows.last[f][half], oldest = window > 0 ? last - window + 1 : 0;
            float tile = MINUS_INFINITY;
#pragma unroll
            for (int n = 0; n < COLUMNS<Dim> / 8; ++n)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    float& x = score[f][n][2 * half + j];
                    const int position = column + n * 8 + j;
                    x *= scale_log2;
                    if (masked && (position > last || position < oldest)) x = MINUS_INFINITY;
                    tile = fmaxf(tile, x);
                }
            maximum = fmaxf(maximum, row_max(tile));
            const float base = maximum == MINUS_INFINITY ? 0.f : maximum;  // a row that has seen nothing yet
            const float shrink = fast_exp2(rows.maximum[f][half] - base);
            float sum = 0.f;
#pragma unroll
            for (int n = 0; n < COLUMNS<Dim> / 8; ++n)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    float& x = score[f][n][2 * half + j];
                    x = fast_exp2(x - base);
                    sum += x;
                }
            rows.maximum[f][half] = maximum;
            rows.sum[f][half] = rows.sum[f][half] * shrink + sum;  // of this lane's columns
#pragma unroll
            for (int n = 0; n < Dim / 8; ++n) {
                rows.output[f][n][2 * half] *= shrink;
                rows.output[f][n][2 * half + 1] *= shrink;
            }
        }
}

template <typename T, int Dim>
__device__ __forceinline__ void add_values(Rows<Dim>& rows, const float (&p)[FRAGMENTS<Dim>][COLUMNS<Dim> / 8][4], const T* values) {
    const int lane = threadIdx.x % WARP, matrix = lane / 8, r = lane % 8;
#pragma unroll
    for (int k = 0; k < COLUMNS<Dim> / 16; ++k) {
        uint32_t a[FRAGMENTS<Dim>][4];
#pragma unroll
        for (int f = 0; f < FRAGMENTS<Dim>; ++f)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const float(&x)[4] = p[f][2 * k + part / 2];
                a[f][part] = part % 2 ? pack<T>(x[2], x[3]) : pack<T>(x[0], x[1]);
            }
#pragma unroll
        for (int n = 0; n < Dim / 16; ++n) {
            uint32_t b[4];
            load_matrices_transposed(b, values + swizzled<Dim>(k * 16 + (matrix % 2) * 8 + r, n * 2 + matrix / 2) * 8);
#pragma unroll
            for (int f = 0; f < FRAGMENTS<Dim>; ++f) {
                multiply_add<T>(rows.output[f][2 * n], a[f], b[0], b[1]);
                multiply_add<T>(rows.output[f][2 * n + 1], a[f], b[2], b[3]);
            }
        }
    }
}

template <typename T, int Dim>
__device__ __forceinline__ void store(T* out, Rows<Dim>& rows, int first, int count, int group, int heads) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int f = 0; f < FRAGMENTS<Dim>; ++f)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float inverse = 1.f / row_sum(rows.sum[f][half]);
            const int packed = first + (warp * FRAGMENTS<Dim> + f) * 16 + lane / 4 + 8 * half;
            if (packed >= count) continue;
            T* row = out + (static_cast<int64_t>(packed / group) * heads + packed % group) * Dim + 2 * (lane % 4);
#pragma unroll
            for (int n = 0; n < Dim / 8; ++n)
                *reinterpret_cast<uint32_t*>(row + n * 8) =
                    pack<T>(rows.output[f][n][2 * half] * inverse, rows.output[f][n][2 * half + 1] * inverse);
        }
}

// grid (query tile, KV head, sequence)
template <typename T, int Dim>
__global__ void __launch_bounds__(THREADS) prefill_kernel(T* out, const T* q, const T* k_cache, const T* v_cache,
        const int* block_table, const int* query_start, const int* context_lens, float scale, Shape s) {
    // Later tiles see more of the context: the longest blocks start first.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS<Dim>, head = blockIdx.y, sequence = blockIdx.z;
    const int start = query_start[sequence], tokens = query_start[sequence + 1] - start;
    const int group = s.heads / s.kv_heads, count = tokens * group;
    if (first >= count) return;
    const int before = context_lens[sequence] - tokens;  // context ahead of the chunk
    const int final_row = first + ROWS<Dim> <= count ? first + ROWS<Dim> - 1 : count - 1;
    const int first_seen = before + first / group, end = before + final_row / group + 1;
    int begin = s.sliding_window > 0 && first_seen >= s.sliding_window ? first_seen - s.sliding_window + 1 : 0;
    begin = begin / COLUMNS<Dim> * COLUMNS<Dim>;
    const int tiles = divide_up(end - begin, COLUMNS<Dim>);

    DYNAMIC_SHARED(shared);
    constexpr int TILE = COLUMNS<Dim> * Dim;
    T* queries = reinterpret_cast<T*>(shared);
    T* keys = queries + ROWS<Dim> * Dim;
    T* values = keys + 2 * TILE;
    int64_t* offsets = reinterpret_cast<int64_t*>(values + 2 * TILE);
    const int* table = block_table + static_cast<int64_t>(sequence) * s.table_stride;
    const int64_t head_offset = (static_cast<int64_t>(start) * s.heads + head * group) * Dim;
    const bool finds = threadIdx.x < COLUMNS<Dim>;

    Rows<Dim> rows;
#pragma unroll
    for (int f = 0; f < FRAGMENTS<Dim>; ++f)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
            const int packed = first + (warp * FRAGMENTS<Dim> + f) * 16 + lane / 4 + 8 * half;
            rows.last[f][half] = before + (packed < count ? packed : count - 1) / group;
            rows.maximum[f][half] = MINUS_INFINITY;
            rows.sum[f][half] = 0.f;
        }

    if (finds) offsets[threadIdx.x] = find_row(begin + threadIdx.x, end, table, s, head, Dim);
    __syncthreads();
    fetch_queries<T, Dim>(queries, q + start * s.q_stride + head * group * Dim, first, count, group, s.q_stride);
    fetch<T, Dim>(keys, k_cache, offsets);
    copy_commit();
    fetch<T, Dim>(values, v_cache, offsets);
    copy_commit();
    int64_t ahead = finds ? find_row(begin + COLUMNS<Dim> + threadIdx.x, end, table, s, head, Dim) : -1;

    for (int tile = 0; tile < tiles; ++tile) {
        const int now = tile % 2, next = 1 - now, position = begin + tile * COLUMNS<Dim>;
        const bool more = tile + 1 < tiles;
        if (finds) {  // the next tile's rows, looked up one iteration ago
            offsets[next * COLUMNS<Dim> + threadIdx.x] = ahead;
            ahead = find_row(position + 2 * COLUMNS<Dim> + threadIdx.x, end, table, s, head, Dim);
        }
        copy_wait<1>();  // this tile's keys; its values may be under way
        __syncthreads();
        if (more) fetch<T, Dim>(keys + next * TILE, k_cache, offsets + next * COLUMNS<Dim>);
        copy_commit();
        float score[FRAGMENTS<Dim>][COLUMNS<Dim> / 8][4] = {};
        compute_scores<T, Dim>(score, queries, keys + now * TILE);
        const bool masked = position + COLUMNS<Dim> > first_seen + 1 ||
            (s.sliding_window > 0 && position <= end - 1 - s.sliding_window);
        soften<Dim>(score, rows, position, s.sliding_window, masked, scale * LOG2_E);
        copy_wait<1>();  // this tile's values
        __syncthreads();
        if (more) fetch<T, Dim>(values + next * TILE, v_cache, offsets + next * COLUMNS<Dim>);
        copy_commit();
        add_values<T, Dim>(rows, score, values + now * TILE);
    }
    copy_wait<0>();
    store<T, Dim>(out + head_offset, rows, first, count, group, s.heads);
}

template <typename T, int Dim>
cudaError_t run(void* out, const void* q, const void* k_cache, const void* v_cache, const int* block_table,
                const int* query_start, const int* context_lens, float scale, int batch, int max_query, const Shape& s,
                cudaStream_t stream) {
    const int tiles = divide_up(max_query * (s.heads / s.kv_heads), ROWS<Dim>);
    return launch(prefill_kernel<T, Dim>, dim3(tiles, s.kv_heads, batch), THREADS, SHARED_BYTES<Dim>, stream,
        static_cast<T*>(out), static_cast<const T*>(q), static_cast<const T*>(k_cache), static_cast<const T*>(v_cache),
        block_table, query_start, context_lens, scale, s);
}

template <typename T, typename... Rest> cudaError_t for_dim(int dim, Rest... rest) {
    switch (dim) {
        case 64: return run<T, 64>(rest...);
        case 96: return run<T, 96>(rest...);
        case 128: return run<T, 128>(rest...);
        case 256: return run<T, 256>(rest...);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace

// q may be strided between tokens (a slice of QKV); its rows and the caches must be aligned to 16 bytes.
extern "C" int prefill_attention(void* out, const void* q, const void* k_cache, const void* v_cache,
        const int* block_table, const int* query_start, const int* context_lens, float scale, int dtype, int batch,
        int max_query, int heads, int kv_heads, int head_dim, int block_size, int table_stride, int64_t q_stride,
        int sliding_window, void* stream) {
    if (kv_heads < 1 || heads % kv_heads) return cudaErrorInvalidValue;
    const Shape s{heads, kv_heads, block_size, table_stride, q_stride, sliding_window};
    const auto queue = static_cast<cudaStream_t>(stream);
    if (dtype == BF16)
        return for_dim<bf16>(head_dim, out, q, k_cache, v_cache, block_table, query_start, context_lens, scale, batch, max_query, s, queue);
    if (dtype == FP16)
        return for_dim<fp16>(head_dim, out, q, k_cache, v_cache, block_table, query_start, context_lens, scale, batch, max_query, s, queue);
    return cudaErrorInvalidValue;
}
