// Runs CUDA kernels on the CPU: every thread of a block is a fiber, blocks run one after another.
//
// Barriers and warp operations hand control to the next fiber, so that a kernel that forgets one, reads what
// another thread hasn't written yet, or waits where others don't, fails here as it would on a device.
// Fibers run in a shuffled order, so that nothing can depend on which thread comes first.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <csetjmp>
#include <functional>
#include <type_traits>
#include <ucontext.h>
#include <vector>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };

static dim3 gridDim, blockDim, blockIdx;
static thread_local dim3 threadIdx;
static const int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static
#define __align__(n) alignas(n)
#define __grid_constant__

namespace emulator {
enum State { READY, AT_BARRIER, AT_WARP, DONE };
struct Fiber {
    ucontext_t context;
    jmp_buf at;
    bool begun = false;
    State state = READY;
    unsigned mask = 0;
    dim3 index;
    std::vector<char> stack;
};
static std::vector<Fiber> fibers;
static ucontext_t home;
static jmp_buf back;
static Fiber *current;
static unsigned threads;
static std::function<void()> body;
static unsigned long long slots[1024];
static unsigned tag[1024];

static void enter() {
    body();
    current->state = DONE;
    _longjmp(back, 1);
}

static void yield(State state) {
    current->state = state;
    if (!_setjmp(current->at)) _longjmp(back, 1);
}

static void resume(Fiber &fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    fiber.state = READY;
    if (_setjmp(back)) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

static void fail(const char *why) {
    fprintf(stderr, "emulated kernel: %s (block %u, %u, %u)\n", why, blockIdx.x, blockIdx.y, blockIdx.z);
    abort();
}

static bool release_warps() {
    bool any = false;
    for (unsigned first = 0; first < threads; first += 32) {
        unsigned last = first + 32 < threads ? first + 32 : threads;
        for (unsigned t = first; t < last; ++t) {
            if (fibers[t].state != AT_WARP) continue;
            unsigned mask = fibers[t].mask;
            bool all = true;
            for (unsigned u = first; u < last && all; ++u)
                if (mask >> (u - first) & 1) all = fibers[u].state == AT_WARP && fibers[u].mask == mask;
            if (!all) continue;
            for (unsigned u = first; u < last; ++u)
                if (mask >> (u - first) & 1) fibers[u].state = READY;
            any = true;
        }
    }
    return any;
}

static void run_block(unsigned seed) {
    std::vector<unsigned> order(threads);
    for (unsigned t = 0; t < threads; ++t) order[t] = t;
    for (unsigned t = threads; t > 1; --t) {
        seed = seed * 1664525u + 1013904223u;
        std::swap(order[t - 1], order[(seed >> 8) % t]);
    }
    for (unsigned t = 0; t < threads; ++t) {
        Fiber &fiber = fibers[t];
        fiber.begun = false;
        fiber.state = READY;
        fiber.index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y));
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &home;
        makecontext(&fiber.context, enter, 0);
    }
    for (;;) {
        bool ran = false;
        for (unsigned t : order)
            if (fibers[t].state == READY) { resume(fibers[t]); ran = true; }
        if (ran) continue;
        if (release_warps()) continue;
        unsigned done = 0, waiting = 0;
        for (Fiber &fiber : fibers) { done += fiber.state == DONE; waiting += fiber.state == AT_BARRIER; }
        if (done == threads) return;
        if (waiting + done < threads) fail("a warp waits for lanes that don't come");
        if (done) fail("some threads ended while others wait at __syncthreads()");
        for (Fiber &fiber : fibers) fiber.state = READY;
    }
}

static void run(dim3 grid, dim3 block, std::function<void()> kernel) {
    gridDim = grid;
    blockDim = block;
    body = std::move(kernel);
    threads = block.x * block.y * block.z;
    if (threads > 1024) fail("more than 1024 threads in a block");
    fibers.resize(threads);
    for (Fiber &fiber : fibers) fiber.stack.resize(128 << 10);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(x * 2654435761u + y * 40503u + z + 1);
            }
}

static unsigned lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
static unsigned place() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

static void meet(unsigned mask) {
    unsigned first = place() - lane(), there = threads - first < 32 ? (1u << (threads - first)) - 1 : ~0u;
    if (!(mask >> lane() & 1)) fail("a lane calls a warp operation whose mask leaves it out");
    current->mask = mask & there;
    yield(AT_WARP);
}

template <class T> T exchange(unsigned mask, T value, unsigned from) {
    unsigned me = place(), first = me - lane();
    static_assert(sizeof(T) <= 8, "warp operations move at most 8 bytes");
    memcpy(&slots[me], &value, sizeof(T));
    meet(mask);
    T result = value;
    if (first + from < threads) memcpy(&result, &slots[first + from], sizeof(T));
    meet(mask);
    return result;
}

// What a kernel's parameters are: a letter for the kind, "*" for a pointer, "#" for one to vectors, and how many bytes.
struct Declared { int kind, size; };
template <class T> struct Kind {
    static constexpr Declared value{std::is_same<T, bool>::value       ? 'b'
                                    : std::is_floating_point<T>::value ? 'f'
                                    : std::is_signed<T>::value         ? 'i'
                                                                       : 'u', sizeof(T)};
};
template <class T> struct Kind<T *> {
    static constexpr Declared value{std::is_class<T>::value ? '#' : '*', sizeof(T)};
};
template <> struct Kind<void *> { static constexpr Declared value{'*', 1}; };
template <> struct Kind<const void *> { static constexpr Declared value{'*', 1}; };
template <class... Types> void declared(void (*)(Types...), Declared *to) {
    Declared all[] = {Kind<typename std::remove_cv<Types>::type>::value..., {0, 0}};
    memcpy(to, all, sizeof(Declared) * sizeof...(Types));
}
}  // namespace emulator

static inline void __syncthreads() { emulator::yield(emulator::AT_BARRIER); }
static inline void __syncwarp(unsigned mask = ~0u) { emulator::meet(mask); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned lane = emulator::lane();
    return emulator::exchange(mask, value, lane / width * width + source % width);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned lane = emulator::lane();
    return emulator::exchange(mask, value, lane % width >= delta ? lane - delta : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned lane = emulator::lane();
    return emulator::exchange(mask, value, lane % width + delta < (unsigned)width ? lane + delta : lane);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    unsigned lane = emulator::lane(), from = lane ^ lanes;
    return emulator::exchange(mask, value, from / width == lane / width ? from : lane);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned me = emulator::place(), first = me - emulator::lane(), result = 0;
    emulator::slots[me] = predicate != 0;
    emulator::meet(mask);
    for (unsigned l = 0; l < 32; ++l)
        if (mask >> l & 1 && first + l < emulator::threads && emulator::slots[first + l]) result |= 1u << l;
    emulator::meet(mask);
    return result;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T> unsigned __match_any_sync(unsigned mask, T value) {
    unsigned me = emulator::place(), first = me - emulator::lane(), result = 0;
    emulator::slots[me] = 0;
    memcpy(&emulator::slots[me], &value, sizeof(T));
    emulator::meet(mask);
    for (unsigned l = 0; l < 32; ++l)
        if (mask >> l & 1 && first + l < emulator::threads && emulator::slots[first + l] == emulator::slots[me])
            result |= 1u << l;
    emulator::meet(mask);
    return result;
}

template <class T, class U> T atomicAdd(T *at, U value) { T old = *at; *at = old + (T)value; return old; }
template <class T, class U> T atomicSub(T *at, U value) { T old = *at; *at = old - (T)value; return old; }
template <class T, class U> T atomicMin(T *at, U value) { T old = *at; if ((T)value < old) *at = (T)value; return old; }
template <class T, class U> T atomicMax(T *at, U value) { T old = *at; if ((T)value > old) *at = (T)value; return old; }
template <class T, class U> T atomicOr(T *at, U value) { T old = *at; *at = old | (T)value; return old; }
template <class T, class U> T atomicAnd(T *at, U value) { T old = *at; *at = old & (T)value; return old; }
template <class T, class U> T atomicExch(T *at, U value) { T old = *at; *at = (T)value; return old; }
template <class T, class U, class V> T atomicCAS(T *at, U expected, V value) {
    T old = *at;
    if (old == (T)expected) *at = (T)value;
    return old;
}

template <class T> T __ldg(const T *at) { return *at; }
template <class T> T __ldcs(const T *at) { return *at; }
template <class T> void __stcs(T *at, T value) { *at = value; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
template <class To, class From> To emulated_bits(From value) { To result; memcpy(&result, &value, sizeof(To)); return result; }
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define EMULATED_PAIR(T) \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_PAIR(int) EMULATED_PAIR(unsigned) EMULATED_PAIR(long) EMULATED_PAIR(unsigned long)
EMULATED_PAIR(long long) EMULATED_PAIR(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
using std::isnan; using std::isinf; using std::isfinite; using std::abs; using std::sqrt; using std::exp; using std::log;
using std::pow; using std::fabs; using std::floor; using std::ceil;
