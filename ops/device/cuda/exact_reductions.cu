// Reductions by group whose result doesn't depend on order: sums of integers, modulo 2^64, and extremes. Atomics are
// on integers, in shared memory where groups are few.
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
extern "C" __global__ void add_integers(const T *values, const int *codes, i64 rows, int groups, u64 *totals) {
    __shared__ u64 here[FEW];
    bool few = groups <= FEW;
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x) here[g] = 0;
    __syncthreads();
    i64 start = blockIdx.x * (i64)TILE;
    u64 alone = 0;
    for (int k = threadIdx.x; k < TILE; k += blockDim.x) {
        i64 row = start + k;
        if (row >= rows) break;
        u64 value = (u64)(i64)values[row];
        if (groups == 1) alone += value;
        else if (few) atomicAdd(&here[codes[row]], value);
        else atomicAdd(&totals[codes[row]], value);
    }
    if (groups == 1) {
        for (int step = 16; step; step >>= 1) alone += __shfl_xor_sync(~0u, alone, step);
        if (threadIdx.x % 32 == 0) atomicAdd(&here[0], alone);
    }
    __syncthreads();
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x)
        if (here[g]) atomicAdd(&totals[g], here[g]);
}

// best is preset to the least number there is; for the smallest value, numbers are inverted
extern "C" __global__ void extremes(const T *values, const u8 *valid, int nullable, const int *codes, i64 rows,
                                    int groups, int largest, i64 *best) {
    __shared__ i64 here[FEW];
    const i64 none = -0x7fffffffffffffffll - 1;
    bool few = groups <= FEW;
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x) here[g] = none;
    __syncthreads();
    i64 start = blockIdx.x * (i64)TILE;
    for (int k = threadIdx.x; k < TILE; k += blockDim.x) {
        i64 row = start + k;
        if (row >= rows) break;
        if (nullable && !valid[row]) continue;
        i64 number = ordered(values[row]);
        number = largest ? number : ~number;
        int code = groups == 1 ? 0 : codes[row];
        i64 *at = few ? &here[code] : &best[code];
        if (number > *(volatile i64 *)at) atomicMax(at, number);
    }
    __syncthreads();
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x)
        if (here[g] > *(volatile i64 *)&best[g]) atomicMax(&best[g], here[g]);
}
