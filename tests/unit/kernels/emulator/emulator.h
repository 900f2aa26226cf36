// A thread block on a CPU, for running the CUDA kernels where there is no GPU.
//
// Each CUDA thread is a fiber with its own stack. Fibers take turns; they give way where a GPU's threads wait for
// each other: barriers, shuffles, matrix loads and tensor-core products. Blocks run one after another. What a GPU does
// asynchronously is delayed as long as the program allows: an asynchronous copy happens when it is waited for and not
// before, or, on request, at once, which shows a copy that overwrites what others still read. Shared memory starts as
// NaN. So a missing wait or barrier shows as a wrong result. The layouts of
// fragments follow the PTX ISA (mma.m16n8k16, ldmatrix), written here from its tables and not from the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;
enum cudaMemcpyKind { cudaMemcpyDefault };
inline cudaError_t cudaFree(void*) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// Number formats ------------------------------------------------------------------------------------------------

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline float to_float(fp16 x) {
    _Float16 y;
    std::memcpy(&y, &x.bits, 2);
    return static_cast<float>(y);
}
template <typename T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};  // to nearest even
}
template <> inline fp16 from_float<fp16>(float x) {
    const _Float16 y = static_cast<_Float16>(x);
    fp16 z;
    std::memcpy(&z.bits, &y, 2);
    return z;
}
template <typename T> uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <typename T> float unpack(uint32_t pair, int which) {
    return to_float(T{static_cast<uint16_t>(pair >> (16 * which))});
}
inline float fast_exp2(float x) { return std::exp2(x); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline uint32_t __float_as_uint(float x) {
    uint32_t y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline float __uint_as_float(uint32_t x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
using std::max;
using std::min;

// Fibers --------------------------------------------------------------------------------------------------------

namespace emulator {

constexpr int LANES = 32;
constexpr size_t STACK = 128 * 1024;
constexpr size_t FENCE = 4096;              // bytes behind the shared memory that must stay as they are

struct Copy { void* to; const void* from; bool valid; };

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool started = false, done = false;
    unsigned thread = 0;
    int parity = 0;
    std::vector<Copy> open;                 // copies not yet committed
    std::deque<std::vector<Copy>> groups;   // committed, not yet awaited
    std::unique_ptr<char[]> stack{new char[STACK]};
};

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

struct WarpSlots { uint64_t words[2][LANES][6]; };

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Barrier> warps;
    std::vector<WarpSlots> slots;
    Barrier all;
    std::vector<unsigned char> shared;
    std::function<void()> body;
    Fiber* current = nullptr;
    jmp_buf scheduler;
    ucontext_t scheduler_context;
    uint64_t events = 0;                    // arrivals and ends: a round without any is a deadlock
};

inline Block* block = nullptr;
inline bool eager = false;                  // copies happen when they are issued

inline void perform(const Copy& copy) {
    if (copy.valid) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}

inline void give_way() {
    Fiber* self = block->current;
    if (_setjmp(self->place) == 0) _longjmp(block->scheduler, 1);
}

inline void arrive(Barrier& barrier, unsigned expected) {
    const unsigned generation = barrier.generation;
    ++block->events;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) give_way();
}

inline unsigned lane() { return block->current->thread % LANES; }
inline unsigned warp() { return block->current->thread / LANES; }

// What all lanes of the warp put in, after all of them have: six words each.
inline const uint64_t (&exchange(std::initializer_list<uint64_t> words))[LANES][6] {
    const int parity = block->current->parity ^= 1;
    auto& mine = block->slots[warp()].words[parity];
    std::copy(words.begin(), words.end(), mine[lane()]);
    arrive(block->warps[warp()], LANES);
    return mine;
}

inline void entry() {
    block->body();
    block->current->done = true;
    ++block->events;
    _longjmp(block->scheduler, 1);
}

inline void resume(Fiber& fiber) {
    block->current = &fiber;
    threadIdx = dim3(fiber.thread, 0, 0);
    if (_setjmp(block->scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
    setcontext(&fiber.context);
}

inline void run_block(Block& b) {
    block = &b;
    std::fill(b.shared.begin(), b.shared.end(), 0xff);  // NaN in every format
    const auto fence = b.shared.end() - FENCE;
    for (bool left = true; left;) {
        const uint64_t before = b.events;
        left = false;
        for (Fiber& fiber : b.fibers)
            if (!fiber.done) {
                resume(fiber);
                left = left || !fiber.done;
            }
        if (left && b.events == before) {
            std::fprintf(stderr, "deadlock: threads wait at different barriers\n");
            std::abort();
        }
    }
    if (!std::all_of(fence, b.shared.end(), [](unsigned char byte) { return byte == 0xff; })) {
        std::fprintf(stderr, "a write behind the shared memory that the launch asked for\n");
        std::abort();
    }
}

}  // namespace emulator

extern "C" __attribute__((used)) inline void emulate_eager_copies(int yes) { emulator::eager = yes != 0; }

inline void __syncthreads() { emulator::arrive(emulator::block->all, emulator::block->fibers.size()); }
inline void __syncwarp(unsigned = ~0u) { emulator::arrive(emulator::block->warps[emulator::warp()], emulator::LANES); }

template <typename T> T shuffle_from(T value, unsigned source) {
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    const auto& all = emulator::exchange({word});
    T result;
    std::memcpy(&result, &all[source % emulator::LANES][0], sizeof(T));
    return result;
}
template <typename T> T __shfl_sync(unsigned, T value, int source) { return shuffle_from(value, source); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return shuffle_from(value, emulator::lane() ^ mask);
}
template <typename T> T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = emulator::lane();
    return shuffle_from(value, lane >= by ? lane - by : lane);
}
template <typename T> T atomicAdd(T* place, T value) {
    const T before = *place;
    *place += value;
    return before;
}
inline unsigned atomicMax(unsigned* place, unsigned value) {
    const unsigned before = *place;
    *place = std::max(before, value);
    return before;
}

// What a GPU answers with a misaligned address, or by writing into what is not the block's.
inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}
inline void require_word(const void* address, const char* what) {
    require(reinterpret_cast<uintptr_t>(address) % 16 == 0, what);
}

inline void copy_async(void* to, const void* from, bool valid) {
    require_word(to, "copy_async: misaligned shared address");
    require_word(from, "copy_async: misaligned global address");
    if (emulator::eager) emulator::perform({to, from, valid});
    else emulator::block->current->open.push_back({to, from, valid});
}
inline void copy_commit() {
    auto& fiber = *emulator::block->current;
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}
template <int Pending> void copy_wait() {
    auto& groups = emulator::block->current->groups;
    for (; groups.size() > Pending; groups.pop_front())
        for (const auto& copy : groups.front()) emulator::perform(copy);
}

inline uint32_t pair_at(uint64_t row, int column) {
    uint32_t pair;
    std::memcpy(&pair, reinterpret_cast<const uint16_t*>(row) + column, 4);
    return pair;
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
    require_word(row, "load_matrices: misaligned row");
    const auto& rows = emulator::exchange({reinterpret_cast<uint64_t>(row)});
    const int lane = emulator::lane();
    for (int m = 0; m < 4; ++m) r[m] = pair_at(rows[m * 8 + lane / 4][0], 2 * (lane % 4));
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    require_word(row, "load_matrices_transposed: misaligned row");
    const auto& rows = emulator::exchange({reinterpret_cast<uint64_t>(row)});
    const int lane = emulator::lane(), column = lane / 4;
    for (int m = 0; m < 4; ++m) {
        const auto at = [&](int i) { return reinterpret_cast<const uint16_t*>(rows[m * 8 + i][0])[column]; };
        r[m] = at(2 * (lane % 4)) | static_cast<uint32_t>(at(2 * (lane % 4) + 1)) << 16;
    }
}

// Lane l of A holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) + {0, 1} and 8 more: registers in the order (row, column)
// (0, 0), (8, 0), (0, 8), (8, 8). Lane l of B holds column l / 4, rows 2 (l % 4) + {0, 1} and 8 more.
template <typename T> void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto& all = emulator::exchange({a[0], a[1], a[2], a[3], b0, b1});
    const int lane = emulator::lane();
    const auto element_a = [&](int row, int k) {
        const int holder = (row % 8) * 4 + (k % 8) / 2, which = row / 8 + 2 * (k / 8);
        return unpack<T>(static_cast<uint32_t>(all[holder][which]), k % 2);
    };
    const auto element_b = [&](int k, int column) {
        return unpack<T>(static_cast<uint32_t>(all[column * 4 + (k % 8) / 2][4 + k / 8]), k % 2);
    };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; ++k) c[i] += element_a(row, k) * element_b(k, column);
    }
}

#define DYNAMIC_SHARED(name) unsigned char* name = emulator::block->shared.data()

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
    if (grid.y > 65535 || grid.z > 65535 || threads > 1024) return cudaErrorInvalidConfiguration;
    gridDim = grid;
    blockDim = dim3(threads);
    emulator::Block b;
    b.fibers = std::vector<emulator::Fiber>(threads);
    b.warps.resize(threads / emulator::LANES);
    b.slots.resize(threads / emulator::LANES);
    b.shared.resize(shared_bytes + emulator::FENCE);
    b.body = [&] { kernel(static_cast<Parameters>(arguments)...); };
    for (int i = 0; i < threads; ++i) b.fibers[i].thread = i;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                for (auto& fiber : b.fibers) fiber.started = fiber.done = false;
                emulator::run_block(b);
            }
    return cudaSuccess;
}
