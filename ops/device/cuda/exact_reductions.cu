// Reductions by group whose result doesn't depend on order: sums of integers, modulo 2^64, and extremes. Atomics are
// on integers, in shared memory where groups are few. Shared memory adds 32 bits natively, and 64 by trying again and
// again; so a sum is two words there, and where groups are fewest each thread has its own.
// build: -DT=u8
// build: -DT=i8
// build: -DT=u16
// build: -DT=i16
// build: -DT=u32
// build: -DT=i32
// build: -DT=u64
// build: -DT=i64
// build: -DT=f32
// build: -DT=f64
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;

#define TILE 4096
#define THREADS 256
// rows of a thread that are loaded at once
#define AHEAD 8
// groups whose sums each thread has for itself, and those whose sums a block has
#define OWN 16
#define FEW 1024

// integers in the order of the values; one zero, and NaN above every number
__device__ __forceinline__ i64 ordered(f32 value) {
    if (value != value) return 0x7fc00000ll;
    int bits = __float_as_int(value == 0.0f ? 0.0f : value);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}
__device__ __forceinline__ i64 ordered(f64 value) {
    if (value != value) return 0x7ff8000000000000ll;
    i64 bits = __double_as_longlong(value == 0.0 ? 0.0 : value);
    return bits < 0 ? bits ^ 0x7fffffffffffffffll : bits;
}
__device__ __forceinline__ i64 ordered(u64 value) { return (i64)(value ^ 0x8000000000000000ull); }
template <class V> __device__ __forceinline__ i64 ordered(V value) { return (i64)value; }

// totals are preset to 0; values are 0 where they are null
extern "C" __global__ void __launch_bounds__(THREADS) add_integers(const T *__restrict__ values,
                                                                   const int *__restrict__ codes, i64 rows,
                                                                   int groups, u64 *totals) {
    __shared__ u64 here[OWN * THREADS];
    u32 *lows = (u32 *)here, *highs = lows + FEW;
    int t = threadIdx.x, used = groups == 1 ? 0 : groups <= OWN ? groups * THREADS : groups <= FEW ? FEW : 0;
    for (int i = t; i < used; i += THREADS) here[i] = 0;
    __syncthreads();
    i64 start = blockIdx.x * (i64)TILE + t;
    u64 alone = 0;
    for (int first = 0; first < TILE; first += AHEAD * THREADS) {
        u64 value[AHEAD];
        int code[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            i64 row = start + first + k * THREADS;
            value[k] = row < rows ? (u64)(i64)values[row] : 0;
            code[k] = groups > 1 && row < rows ? codes[row] : 0;
        }
        if (groups == 1) {
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) alone += value[k];
        } else if (groups <= OWN) {
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) here[code[k] * THREADS + t] += value[k];
        } else if (groups <= FEW) {
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                u32 low = (u32)value[k], high = (u32)(value[k] >> 32);
                if (low && atomicAdd(&lows[code[k]], low) > ~low) ++high;
                if (high) atomicAdd(&highs[code[k]], high);
            }
        } else {
#pragma unroll
            for (int k = 0; k < AHEAD; ++k)
                if (value[k]) atomicAdd(&totals[code[k]], value[k]);
        }
    }
    if (groups == 1) {
        for (int step = 16; step; step >>= 1) alone += __shfl_xor_sync(~0u, alone, step);
        if (t % 32 == 0) atomicAdd(&totals[0], alone);
    } else if (groups <= OWN) {
        for (int half = THREADS / 2; half; half /= 2) {
            __syncthreads();
            for (int i = t; i < groups * half; i += THREADS) {
                int at = i / half * THREADS + i % half;
                here[at] += here[at + half];
            }
        }
        __syncthreads();
        if (t < groups) atomicAdd(&totals[t], here[t * THREADS]);
    } else if (groups <= FEW) {
        __syncthreads();
        for (int g = t; g < groups; g += THREADS)
            if (lows[g] | highs[g]) atomicAdd(&totals[g], (u64)highs[g] << 32 | lows[g]);
    }
}

// best is preset to the least number there is; for the smallest value, numbers are inverted
extern "C" __global__ void __launch_bounds__(THREADS) extremes(const T *__restrict__ values,
                                                               const u8 *__restrict__ valid, int nullable,
                                                               const int *__restrict__ codes, i64 rows, int groups,
                                                               int largest, i64 *best) {
    __shared__ i64 here[FEW];
    const i64 none = -0x7fffffffffffffffll - 1;
    bool few = groups > 1 && groups <= FEW;
    for (int g = threadIdx.x; few && g < groups; g += THREADS) here[g] = none;
    __syncthreads();
    i64 start = blockIdx.x * (i64)TILE + threadIdx.x, alone = none;
    for (int first = 0; first < TILE; first += AHEAD * THREADS) {
        T value[AHEAD];
        int code[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            i64 row = start + first + k * THREADS;
            value[k] = row < rows ? values[row] : T(0);
            code[k] = row >= rows ? -1 : groups > 1 ? codes[row] : 0;
            if (nullable && row < rows && !valid[row]) code[k] = -1;
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            if (code[k] < 0) continue;
            i64 number = ordered(value[k]);
            number = largest ? number : ~number;
            if (groups == 1) {
                alone = number > alone ? number : alone;
                continue;
            }
            i64 *at = few ? &here[code[k]] : &best[code[k]];
            if (number > *(volatile i64 *)at) atomicMax(at, number);
        }
    }
    if (groups == 1) {
        for (int step = 16; step; step >>= 1) {
            i64 other = __shfl_xor_sync(~0u, alone, step);
            alone = other > alone ? other : alone;
        }
        if (threadIdx.x % 32 == 0 && alone > *(volatile i64 *)best) atomicMax(best, alone);
        return;
    }
    __syncthreads();
    for (int g = threadIdx.x; few && g < groups; g += THREADS)
        if (here[g] > *(volatile i64 *)&best[g]) atomicMax(&best[g], here[g]);
}
