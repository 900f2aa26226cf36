// Decode attention over a paged KV cache: one new token per sequence, its whole context read once.
//
// The step is bound by memory: each byte of K and V meets only the few query heads that share it. So a thread
// block serves *all* query heads of one KV head (packed into the 16 rows of a tensor-core tile: a group of up to 16),
// and K and V cross the memory bus once. The context is cut into splits that run in parallel
// (Flash-Decoding, Dao et al. 2023); each leaves a partial output and the logarithm of its softmax sum, and a
// second kernel merges them. Softmax is online (Milakov and Gimelshein 2018), in powers of two, in fp32.
//
// Inside a block the four warps share nothing until the end: warp w owns rows 16 w to 16 w + 15 of every tile of 64
// tokens, with its own ring of asynchronous copies, so the main loop has no block-wide barrier. Rows behind the
// end of the context are zero-filled, not read: what lies in unused slots or table entries cannot reach a result.
//
// The grid depends on the launch's arguments alone and blocks without work return at once, so a launch can be
// captured in a CUDA graph and replayed with other lengths.
#include "primitives.cuh"

namespace {

constexpr int WARPS = 4;
constexpr int ROWS = 16;           // KV rows a warp handles at a time: K of one PV product
constexpr int TILE = WARPS * ROWS;
constexpr int HEADS = 16;          // query heads of a tile: M of the tensor-core product

struct Shape {
    int heads, kv_heads, block_size, table_stride;
    int64_t q_stride;              // elements between sequences of q
    int num_splits, min_chunk, sliding_window;
};

// The tokens [begin, end) of one split. The same arithmetic tells the merge how many splits there are.
struct Range { int begin, end; };

__device__ __forceinline__ int chunk_of(int tokens, const Shape& s) {
    const int even = divide_up(tokens, s.num_splits);
    return divide_up(even > s.min_chunk ? even : s.min_chunk, TILE) * TILE;
}
__device__ __forceinline__ int first_visible(int context, const Shape& s) {
    return s.sliding_window > 0 && context > s.sliding_window ? context - s.sliding_window : 0;
}
__device__ __forceinline__ int active_splits(int context, const Shape& s) {
    const int tokens = context - first_visible(context, s);
    return tokens > 0 ? divide_up(tokens, chunk_of(tokens, s)) : 0;
}
__device__ __forceinline__ Range range_of(int split, int context, const Shape& s) {
    const int first = first_visible(context, s);
    const int chunk = chunk_of(context - first, s);
    const int begin = first + split * chunk;
    return {begin, begin + chunk < context ? begin + chunk : context};
}

// Ring depth: as deep as lets two blocks share a multiprocessor of 227 KiB (one for rows of 256, within 163 KiB).
template <int Dim> constexpr int STAGES = Dim < 128 ? 4 : Dim == 128 ? 3 : 2;
template <int Dim> constexpr int STAGE_BYTES = 2 * ROWS * Dim * 2;  // K and V
template <int Dim> constexpr int RING_BYTES = WARPS * STAGES<Dim> * STAGE_BYTES<Dim>;
// Rows of 256 leave no registers for the queries: they stay in shared memory behind the rings.
template <int Dim> constexpr bool QUERIES_IN_SHARED = Dim > 128;
template <int Dim> constexpr int SHARED_BYTES = RING_BYTES<Dim> + (QUERIES_IN_SHARED<Dim> ? HEADS * Dim * 2 : 0);

// Slot of this lane's row (lane % 16) of the tile that starts at `row`, or -1 behind the end.
__device__ __forceinline__ int find_slot(int row, int end, const int* table, int block_size) {
    row += (threadIdx.x % WARP) % ROWS;
    if (row >= end) return -1;
    const int block = row / block_size;
    return table[block] * block_size + (row - block * block_size);
}

// Starts the copy of 16 rows of K and V; `slot` is this lane's, from find_slot.
template <typename T, int Dim>
__device__ __forceinline__ void fetch(T* stage, const T* k_cache, const T* v_cache, int slot, int kv_heads, int head) {
    constexpr int CHUNKS = Dim / 8;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / WARP; ++i) {
        const int piece = i * WARP + lane, row = piece / CHUNKS, chunk = piece % CHUNKS;
        const int at = __shfl_sync(ALL_LANES, slot, row);
        const int64_t offset = at < 0 ? 0 : (static_cast<int64_t>(at) * kv_heads + head) * Dim + chunk * 8;
        T* k = stage + swizzled<Dim>(row, chunk) * 8;
        copy_async(k, k_cache + offset, at >= 0);
        copy_async(k + ROWS * Dim, v_cache + offset, at >= 0);
    }
}

// The group's queries as fragments of A, in registers or in shared memory; rows beyond the group are zero.
template <typename T, int Dim, bool InShared = QUERIES_IN_SHARED<Dim>> struct Queries {
    uint32_t fragment[Dim / 16][4];

    __device__ __forceinline__ void load(const T* queries, int group, T*) {
        const int lane = threadIdx.x % WARP, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
        for (int k = 0; k < Dim / 16; ++k)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const int r = row + 8 * (part % 2), c = k * 16 + column + 8 * (part / 2);
                fragment[k][part] = r < group ? *reinterpret_cast<const uint32_t*>(queries + r * Dim + c) : 0u;
            }
    }
    __device__ __forceinline__ void get(uint32_t (&a)[4], int k) const {
#pragma unroll
        for (int part = 0; part < 4; ++part) a[part] = fragment[k][part];
    }
};

template <typename T, int Dim> struct Queries<T, Dim, true> {
    const T* tile;

    __device__ __forceinline__ void load(const T* queries, int group, T* shared) {
        tile = shared;
        for (int i = threadIdx.x; i < HEADS * Dim / 2; i += WARPS * WARP) {
            const int row = i / (Dim / 2), column = 2 * (i % (Dim / 2));
            T* place = shared + swizzled<Dim>(row, column / 8) * 8 + column % 8;
            *reinterpret_cast<uint32_t*>(place) =
                row < group ? *reinterpret_cast<const uint32_t*>(queries + row * Dim + column) : 0u;
        }
        __syncthreads();
    }
    __device__ __forceinline__ void get(uint32_t (&a)[4], int k) const {
        const int matrix = (threadIdx.x % WARP) / 8, r = threadIdx.x % 8;
        load_matrices(a, tile + swizzled<Dim>((matrix % 2) * 8 + r, k * 2 + matrix / 2) * 8);
    }
};

// Softmax state of the two rows that a lane holds: running maximum (in powers of two) and sum.
struct Softmax {
    float maximum[2] = {MINUS_INFINITY, MINUS_INFINITY};
    float sum[2] = {0.f, 0.f};
};

// One tile of 16 KV rows: scores, softmax, output.
template <typename T, int Dim>
__device__ __forceinline__ void attend(float (&output)[Dim / 8][4], Softmax& state, const Queries<T, Dim>& queries,
                                       const T* stage, int valid_rows, float scale_log2) {
    const int lane = threadIdx.x % WARP, matrix = lane / 8, r = lane % 8;
    float score[2][4] = {};
#pragma unroll
    for (int k = 0; k < Dim / 16; ++k) {
        uint32_t a[4], b[4];
        queries.get(a, k);
        load_matrices(b, stage + swizzled<Dim>((matrix / 2) * 8 + r, k * 2 + matrix % 2) * 8);
        multiply_add<T>(score[0], a, b[0], b[1]);
        multiply_add<T>(score[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = n * 8 + 2 * (lane % 4) + i % 2;
            score[n][i] = column < valid_rows ? score[n][i] * scale_log2 : MINUS_INFINITY;
        }
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // rows lane / 4 and lane / 4 + 8
        float(&s0)[4] = score[0];
        float(&s1)[4] = score[1];
        const int i = 2 * half;
        const float tile = row_max(fmaxf(fmaxf(s0[i], s0[i + 1]), fmaxf(s1[i], s1[i + 1])));
        const float maximum = fmaxf(state.maximum[half], tile);  // finite: a tile has a valid row
        const float shrink = fast_exp2(state.maximum[half] - maximum);
        state.maximum[half] = maximum;
        float sum = 0.f;
#pragma unroll
        for (int j = i; j < i + 2; ++j) {
            s0[j] = fast_exp2(s0[j] - maximum);
            s1[j] = fast_exp2(s1[j] - maximum);
            sum += s0[j] + s1[j];
        }
        state.sum[half] = state.sum[half] * shrink + sum;  // of this lane's columns; summed over lanes at the end
#pragma unroll
        for (int n = 0; n < Dim / 8; ++n) {
            output[n][i] *= shrink;
            output[n][i + 1] *= shrink;
        }
    }
    // An accumulator of two 8-column tiles is laid out as the A fragment of 16 columns.
    const uint32_t p[4] = {pack<T>(score[0][0], score[0][1]), pack<T>(score[0][2], score[0][3]),
                           pack<T>(score[1][0], score[1][1]), pack<T>(score[1][2], score[1][3])};
    const T* values = stage + ROWS * Dim;
#pragma unroll
    for (int n = 0; n < Dim / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, values + swizzled<Dim>((matrix % 2) * 8 + r, n * 2 + matrix / 2) * 8);
        multiply_add<T>(output[2 * n], p, b[0], b[1]);
        multiply_add<T>(output[2 * n + 1], p, b[2], b[3]);
    }
}

// Leaves the warp's rows in shared memory: outputs [HEADS][Dim], then maxima and sums [HEADS].
template <int Dim>
__device__ __forceinline__ void leave(float* area, const float (&output)[Dim / 8][4], const Softmax& state) {
    const int lane = threadIdx.x % WARP, column = 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + 8 * half;
        const float sum = row_sum(state.sum[half]);
#pragma unroll
        for (int n = 0; n < Dim / 8; ++n) {
            area[row * Dim + n * 8 + column] = output[n][2 * half];
            area[row * Dim + n * 8 + column + 1] = output[n][2 * half + 1];
        }
        if (lane % 4 == 0) {
            area[HEADS * Dim + row] = state.maximum[half];
            area[HEADS * Dim + HEADS + row] = sum;
        }
    }
}

// grid (split, KV head, sequence). `partial` [split][sequence][head][Dim], `log_sum` [split][sequence][head].
template <typename T, int Dim>
__global__ void __launch_bounds__(WARPS* WARP) split_kernel(T* out, float* partial, float* log_sum, const T* q,
        const T* k_cache, const T* v_cache, const int* block_table, const int* context_lens, float scale, Shape s) {
    const int split = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z;
    const int context = context_lens[sequence], group = s.heads / s.kv_heads;
    const int splits = active_splits(context, s);
    T* out_rows = out + (static_cast<int64_t>(sequence) * s.heads + head * group) * Dim;
    if (split >= splits) {
        if (splits == 0 && split == 0)
            for (int i = threadIdx.x; i < group * Dim; i += WARPS * WARP) out_rows[i] = from_float<T>(0.f);
        return;
    }
    DYNAMIC_SHARED(shared);
    constexpr int DEPTH = STAGES<Dim>, STAGE = STAGE_BYTES<Dim> / sizeof(T);
    const int warp = threadIdx.x / WARP;
    T* ring = reinterpret_cast<T*>(shared) + warp * DEPTH * STAGE;
    const Range range = range_of(split, context, s);
    const int* table = block_table + static_cast<int64_t>(sequence) * s.table_stride;
    const int first = range.begin + warp * ROWS;
    const int tiles = first < range.end ? divide_up(range.end - first, TILE) : 0;

    // The slot of the tile after the next is looked up while the next is fetched.
    int slot = find_slot(first, range.end, table, s.block_size);
#pragma unroll
    for (int i = 0; i < DEPTH - 1; ++i) {
        if (i < tiles) fetch<T, Dim>(ring + i * STAGE, k_cache, v_cache, slot, s.kv_heads, head);
        copy_commit();
        slot = find_slot(first + (i + 1) * TILE, range.end, table, s.block_size);
    }
    Queries<T, Dim> queries;
    queries.load(q + sequence * s.q_stride + head * group * Dim, group, reinterpret_cast<T*>(shared + RING_BYTES<Dim>));
    float output[Dim / 8][4] = {};
    Softmax state;
    int stage = 0, next_stage = DEPTH - 1;
    for (int tile = 0; tile < tiles; ++tile) {
        copy_wait<DEPTH - 2>();
        __syncwarp();  // all lanes' copies are visible, and all lanes are done with the stage refilled below
        const int next = tile + DEPTH - 1;
        if (next < tiles) fetch<T, Dim>(ring + next_stage * STAGE, k_cache, v_cache, slot, s.kv_heads, head);
        copy_commit();
        slot = find_slot(first + (next + 1) * TILE, range.end, table, s.block_size);
        attend<T, Dim>(output, state, queries, ring + stage * STAGE, range.end - (first + tile * TILE), scale * LOG2_E);
        stage = stage + 1 == DEPTH ? 0 : stage + 1;
        next_stage = next_stage + 1 == DEPTH ? 0 : next_stage + 1;
    }
    copy_wait<0>();
    __syncthreads();  // the rings are free: their memory now carries the warps' results

    constexpr int AREA = HEADS * Dim + 2 * HEADS;
    float* areas = reinterpret_cast<float*>(shared);
    leave<Dim>(areas + warp * AREA, output, state);
    __syncthreads();
    for (int i = threadIdx.x; i < group * Dim; i += WARPS * WARP) {
        const int row = i / Dim;
        float maximum = MINUS_INFINITY, sum = 0.f, value = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) maximum = fmaxf(maximum, areas[w * AREA + HEADS * Dim + row]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float* area = areas + w * AREA;
            const float weight = fast_exp2(area[HEADS * Dim + row] - maximum);
            sum += weight * area[HEADS * Dim + HEADS + row];
            value += weight * area[i];
        }
        if (splits == 1) {
            out_rows[i] = from_float<T>(value / sum);
        } else {
            const int64_t at = (static_cast<int64_t>(split) * gridDim.z + sequence) * s.heads + head * group;
            partial[at * Dim + i] = value / sum;
            if (i % Dim == 0) log_sum[at + row] = maximum + log2f(sum);
        }
    }
}

// One warp per (sequence, head): the splits' outputs weighted by their softmax sums.
template <typename T, int Dim>
__global__ void __launch_bounds__(WARPS* WARP) merge_kernel(T* out, const float* partial, const float* log_sum,
        const int* context_lens, int batch, Shape s) {
    const int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= batch * s.heads) return;
    const int splits = active_splits(context_lens[row / s.heads], s);
    if (splits <= 1) return;  // the first kernel has written the output
    const int64_t rows = static_cast<int64_t>(batch) * s.heads;
    float maximum = MINUS_INFINITY;
    for (int i = 0; i < splits; ++i) maximum = fmaxf(maximum, log_sum[i * rows + row]);
    float value[Dim / WARP] = {}, sum = 0.f;
    for (int i = 0; i < splits; ++i) {
        const float weight = fast_exp2(log_sum[i * rows + row] - maximum);
        sum += weight;
#pragma unroll
        for (int j = 0; j < Dim / WARP; ++j) value[j] += weight * partial[(i * rows + row) * Dim + j * WARP + lane];
    }
#pragma unroll
    for (int j = 0; j < Dim / WARP; ++j)
        out[static_cast<int64_t>(row) * Dim + j * WARP + lane] = from_float<T>(value[j] / sum);
}

template <typename T, int Dim>
cudaError_t run(void* out, float* partial, float* log_sum, const void* q, const void* k_cache, const void* v_cache,
                const int* block_table, const int* context_lens, float scale, int batch, const Shape& s, cudaStream_t stream) {
    const dim3 grid(s.num_splits, s.kv_heads, batch);
    const cudaError_t error = launch(split_kernel<T, Dim>, grid, WARPS * WARP, SHARED_BYTES<Dim>, stream,
        static_cast<T*>(out), partial, log_sum, static_cast<const T*>(q), static_cast<const T*>(k_cache),
        static_cast<const T*>(v_cache), block_table, context_lens, scale, s);
    if (error != cudaSuccess || s.num_splits == 1) return error;
    return launch(merge_kernel<T, Dim>, dim3(divide_up(batch * s.heads, WARPS)), WARPS * WARP, 0, stream,
        static_cast<T*>(out), partial, log_sum, context_lens, batch, s);
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

// `partial` and `log_sum` are needed for num_splits > 1 only. q may be strided between sequences (a slice of QKV).
extern "C" int decode_attention(void* out, float* partial, float* log_sum, const void* q, const void* k_cache,
        const void* v_cache, const int* block_table, const int* context_lens, float scale, int dtype, int batch, int heads,
        int kv_heads, int head_dim, int block_size, int table_stride, int64_t q_stride, int num_splits, int min_chunk,
        int sliding_window, void* stream) {
    if (kv_heads < 1 || heads % kv_heads || heads / kv_heads > HEADS || num_splits < 1) return cudaErrorInvalidValue;
    const Shape s{heads, kv_heads, block_size, table_stride, q_stride, num_splits, min_chunk, sliding_window};
    const auto queue = static_cast<cudaStream_t>(stream);
    if (dtype == BF16)
        return for_dim<bf16>(head_dim, out, partial, log_sum, q, k_cache, v_cache, block_table, context_lens, scale, batch, s, queue);
    if (dtype == FP16)
        return for_dim<fp16>(head_dim, out, partial, log_sum, q, k_cache, v_cache, block_table, context_lens, scale, batch, s, queue);
    return cudaErrorInvalidValue;
}
