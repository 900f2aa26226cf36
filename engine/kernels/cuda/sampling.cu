// From logits to a token: penalties, temperature, min-p, top-k, top-p, and the draw.
//
// One thread block per row of logits, no sort. Top-k and top-p are thresholds on the logit, found digit by digit in a
// radix search (11 + 11 + 10 bits of the number's bits in order-preserving form): over counts for top-k, over probability
// mass for top-p. Mass is held in integers (units of 2^-40 of the most likely token), so that sums do not depend on the
// order in which threads arrive: the same seed gives the same token.
#include "primitives.cuh"

namespace {

using mass_t = unsigned long long;

constexpr int THREADS = 512, WARPS = THREADS / WARP;
constexpr int BINS = 2048;
constexpr float UNIT = 1099511627776.f;  // 2^40

// A number's bits such that unsigned order is the numbers' order; minus infinity comes lowest.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ mass_t mass_of(float logit, float maximum) {
    return static_cast<mass_t>(expf(logit - maximum) * UNIT + 0.5f);
}

template <typename Value> __device__ __forceinline__ Value block_largest(Value x, Value* parts) {
    for (int offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, offset));
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    x = parts[threadIdx.x % WARPS];
    for (int offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

__device__ __forceinline__ mass_t inclusive_scan(mass_t x) {
    const int lane = threadIdx.x % WARP;
    for (int offset = 1; offset < WARP; offset *= 2) {
        const mass_t below = __shfl_up_sync(ALL_LANES, x, offset);
        if (lane >= offset) x += below;
    }
    return x;
}

struct Search {
    mass_t bins[BINS];
    mass_t above;      // weight of all keys above the digit found
    int digit;
};

// The highest bin from which, counted from the top, the weight reaches `wanted`; by the first warp.
__device__ __forceinline__ void find_bin(Search& search, mass_t wanted) {
    if (threadIdx.x < WARP) {
        constexpr int EACH = BINS / WARP;
        const int top = BINS - 1 - static_cast<int>(threadIdx.x) * EACH;
        mass_t own = 0;
        for (int i = 0; i < EACH; ++i) own += search.bins[top - i];
        mass_t before = inclusive_scan(own) - own;
        if (before < wanted && before + own >= wanted) {
            int bin = top;
            for (; before + search.bins[bin] < wanted; --bin) before += search.bins[bin];
            search.digit = bin;
            search.above = before;
        }
    }
    __syncthreads();
}

// The largest key t such that the weight of all logits with key >= t reaches `wanted` (1 <= wanted <= total weight).
template <typename Weight>
__device__ uint32_t find_threshold(Search& search, const float* logits, int vocabulary, mass_t wanted, Weight weight) {
    uint32_t prefix = 0, known = 0;  // digits found so far, and the mask of their bits
    const int shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
    for (int pass = 0; pass < 3; ++pass) {
        const uint32_t mask = (1u << widths[pass]) - 1;
        for (int i = threadIdx.x; i < BINS; i += THREADS) search.bins[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < vocabulary; i += THREADS) {
            const uint32_t key = ordered(logits[i]);
            const mass_t w = (key & known) == prefix ? weight(logits[i]) : 0;
            if (w != 0) atomicAdd(&search.bins[(key >> shifts[pass]) & mask], w);
        }
        __syncthreads();
        find_bin(search, wanted);
        prefix |= static_cast<uint32_t>(search.digit) << shifts[pass];
        known |= mask << shifts[pass];
        wanted -= search.above;
        __syncthreads();
    }
    return prefix;
}

__device__ __forceinline__ mass_t total_mass(const float* logits, int vocabulary, float maximum, mass_t* parts) {
    mass_t sum = 0;
    for (int i = threadIdx.x; i < vocabulary; i += THREADS) sum += mass_of(logits[i], maximum);
    sum = inclusive_scan(sum);
    __syncthreads();
    if (threadIdx.x % WARP == WARP - 1) parts[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += parts[w];
    return sum;
}

__device__ __forceinline__ void cut_below(float* logits, int vocabulary, float threshold) {
    for (int i = threadIdx.x; i < vocabulary; i += THREADS)
        if (logits[i] < threshold) logits[i] = MINUS_INFINITY;
    __syncthreads();
}

// Per-row parameters, each absent (null) or one number per row.
struct Parameters {
    const float *temperature, *top_p, *min_p, *repetition, *presence, *frequency;
    const int* top_k;
    const unsigned char* prompt;  // [row][vocabulary], tokens of the prompt
    const int* counts;            // [row][vocabulary], how often a token was generated
};

__device__ __forceinline__ float penalised(float x, const Parameters& p, int row, int64_t at) {
    const int count = p.counts != nullptr ? p.counts[at] : 0;
    const bool seen = count > 0 || (p.prompt != nullptr && p.prompt[at]);
    if (p.repetition != nullptr && seen) x = x > 0.f ? x / p.repetition[row] : x * p.repetition[row];
    if (p.frequency != nullptr) x -= p.frequency[row] * count;
    if (p.presence != nullptr && count > 0) x -= p.presence[row];
    return x;
}

// grid (row)
template <typename T>
__global__ void __launch_bounds__(THREADS) process_kernel(float* out, const T* logits, int vocabulary, int64_t stride, Parameters p) {
    __shared__ Search search;
    __shared__ mass_t parts[WARPS];
    const int row = blockIdx.x;
    float* result = out + static_cast<int64_t>(row) * vocabulary;
    const float temperature = p.temperature != nullptr ? p.temperature[row] : 1.f;
    const float divisor = temperature == 0.f ? 1.f : temperature;
    mass_t best = 0;  // largest logit, the first of equal ones
    for (int i = threadIdx.x; i < vocabulary; i += THREADS) {
        const float x = penalised(to_float(logits[row * stride + i]), p, row, static_cast<int64_t>(row) * vocabulary + i) / divisor;
        result[i] = x;
        best = max(best, static_cast<mass_t>(ordered(x)) << 32 | static_cast<mass_t>(0xffffffffu - i));
    }
    best = block_largest(best, parts);
    const float maximum = from_ordered(static_cast<uint32_t>(best >> 32));
    __syncthreads();
    if (temperature == 0.f) {
        const int winner = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
        for (int i = threadIdx.x; i < vocabulary; i += THREADS)
            if (i != winner) result[i] = MINUS_INFINITY;
        return;
    }
    if (p.min_p != nullptr && p.min_p[row] > 0.f) cut_below(result, vocabulary, maximum + logf(p.min_p[row]));
    if (p.top_k != nullptr && p.top_k[row] > 0 && p.top_k[row] < vocabulary) {
        const auto count = [](float) { return mass_t{1}; };
        cut_below(result, vocabulary, from_ordered(find_threshold(search, result, vocabulary, p.top_k[row], count)));
    }
    if (p.top_p != nullptr && p.top_p[row] < 1.f) {
        const auto mass = [maximum](float x) { return mass_of(x, maximum); };
        const mass_t total = total_mass(result, vocabulary, maximum, parts);
        const mass_t part = static_cast<mass_t>(ceil(static_cast<double>(p.top_p[row]) * static_cast<double>(total)));
        const mass_t wanted = max(mass_t{1}, min(part, total));
        cut_below(result, vocabulary, from_ordered(find_threshold(search, result, vocabulary, wanted, mass)));
    }
}

// SplitMix64 (Steele, Lea and Flood 2014) of a seed and a step: the upper 53 bits.
__device__ __forceinline__ mass_t mix(mass_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
__device__ __forceinline__ double uniform(int64_t seed, int64_t step) {
    constexpr mass_t GAMMA = 0x9E3779B97F4A7C15ull;
    const mass_t z = static_cast<mass_t>(seed) + (static_cast<mass_t>(step) + 1) * GAMMA;
    return static_cast<double>(mix(mix(z) + GAMMA) >> 11) * 0x1p-53;
}

// grid (row): inverts the cumulative mass. Each warp owns a run of the vocabulary.
__global__ void __launch_bounds__(THREADS) draw_kernel(int64_t* tokens, const float* logits, int vocabulary,
        const int64_t* seeds, const int64_t* steps, const double* uniforms) {
    __shared__ mass_t parts[WARPS];
    const int row = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const float* x = logits + static_cast<int64_t>(row) * vocabulary;
    uint32_t key = 0;
    for (int i = threadIdx.x; i < vocabulary; i += THREADS) key = max(key, ordered(x[i]));
    const float maximum = from_ordered(static_cast<uint32_t>(block_largest(static_cast<mass_t>(key), parts)));
    const int run = divide_up(divide_up(vocabulary, WARPS), WARP) * WARP;
    const int begin = warp * run, end = min(begin + run, vocabulary);
    mass_t own = 0;
    for (int i = begin + lane; i < end; i += WARP) own += mass_of(x[i], maximum);
    own = inclusive_scan(own);
    __syncthreads();
    if (lane == WARP - 1) parts[warp] = own;
    __syncthreads();
    mass_t total = 0, before = 0;
    for (int w = 0; w < WARPS; ++w) {
        if (w == warp) before = total;
        total += parts[w];
    }
    const double u = uniforms != nullptr ? uniforms[row] : uniform(seeds[row], steps[row]);
    const mass_t target = min(static_cast<mass_t>(u * static_cast<double>(total)), total - 1);
    if (target < before || target >= before + parts[warp]) return;  // another warp's run
    for (int first = begin; first < end; first += WARP) {
        const int i = first + lane;
        const mass_t w = i < end ? mass_of(x[i], maximum) : 0;
        const mass_t through = before + inclusive_scan(w);
        if (through > target && through - w <= target) tokens[row] = i;
        before = __shfl_sync(ALL_LANES, through, WARP - 1);
        if (before > target) return;
    }
}

template <typename T>
cudaError_t run_process(float* out, const void* logits, int rows, int vocabulary, int64_t stride, const Parameters& p, cudaStream_t stream) {
    return launch(process_kernel<T>, dim3(rows), THREADS, 0, stream, out, static_cast<const T*>(logits), vocabulary, stride, p);
}

}  // namespace

extern "C" int process_logits(float* out, const void* logits, int dtype, int rows, int vocabulary, int64_t stride,
        const float* temperature, const int* top_k, const float* top_p, const float* min_p, const float* repetition,
        const float* presence, const float* frequency, const unsigned char* prompt, const int* counts, void* stream) {
    const Parameters p{temperature, top_p, min_p, repetition, presence, frequency, top_k, prompt, counts};
    const auto queue = static_cast<cudaStream_t>(stream);
    if (dtype == BF16) return run_process<bf16>(out, logits, rows, vocabulary, stride, p, queue);
    if (dtype == FP16) return run_process<fp16>(out, logits, rows, vocabulary, stride, p, queue);
    if (dtype == FP32) return run_process<float>(out, logits, rows, vocabulary, stride, p, queue);
    return cudaErrorInvalidValue;
}

// Either `uniforms` in [0, 1), or `seeds` and `steps`, one per row.
extern "C" int draw(int64_t* tokens, const float* logits, int rows, int vocabulary, const int64_t* seeds,
                    const int64_t* steps, const double* uniforms, void* stream) {
    return launch(draw_kernel, dim3(rows), THREADS, 0, static_cast<cudaStream_t>(stream), tokens, logits, vocabulary,
        seeds, steps, uniforms);
}
