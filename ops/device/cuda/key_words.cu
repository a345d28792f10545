// Keys as words of 64 bits that are equal where the keys are: the range of a column's values, and one column
// appended to a word.
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

// rows of a thread that are loaded at once
#define EACH 4
#define SIGN 0x8000000000000000ull

// integers keep their value, modulo 2^64; floats become their bits, with one zero and one NaN
__device__ __forceinline__ u64 bits(f32 value) {
    if (value != value) return 0x7fc00000ull;
    return value == 0.0f ? 0ull : (u64)__float_as_uint(value);
}
__device__ __forceinline__ u64 bits(f64 value) {
    if (value != value) return 0x7ff8000000000000ull;
    return value == 0.0 ? 0ull : (u64)__double_as_longlong(value);
}
template <class V> __device__ __forceinline__ u64 bits(V value) { return (u64)value; }

// in the order of the values, as signed numbers
__device__ __forceinline__ i64 ordered(u64 value) { return (i64)(value ^ SIGN); }
template <class V> __device__ __forceinline__ i64 ordered(V value) { return (i64)value; }

// range: least and greatest, preset to the greatest and least number there is
extern "C" __global__ void key_range(const T *values, const u8 *valid, int nullable, i64 rows, i64 *range) {
    __shared__ i64 lows[32], highs[32];
    i64 low = 0x7fffffffffffffffll, high = -0x7fffffffffffffffll - 1;
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 row = blockIdx.x * (i64)blockDim.x + threadIdx.x; row < rows; row += EACH * stride) {
        T value[EACH];
        bool known[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) {  // behind the last row it is this one again
            i64 at = row + k * stride < rows ? row + k * stride : row;
            value[k] = values[at];
            known[k] = !nullable || valid[at];
        }
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            if (!known[k]) continue;
            i64 number = ordered(value[k]);
            low = number < low ? number : low;
            high = number > high ? number : high;
        }
    }
    for (int step = 16; step; step >>= 1) {
        i64 lower = __shfl_xor_sync(~0u, low, step), higher = __shfl_xor_sync(~0u, high, step);
        low = lower < low ? lower : low;
        high = higher > high ? higher : high;
    }
    if (threadIdx.x % 32 == 0) lows[threadIdx.x / 32] = low, highs[threadIdx.x / 32] = high;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) {
        low = lows[warp] < low ? lows[warp] : low;
        high = highs[warp] > high ? highs[warp] : high;
    }
    if (low < range[0]) atomicMin(&range[0], low);
    if (high > range[1]) atomicMax(&range[1], high);
}

template <bool WHOLE, class Word>
static __device__ __forceinline__ void append(const T *__restrict__ values, const u8 *__restrict__ valid, int nullable,
                                              int flags, u64 low, u64 size, int first, i64 start, i64 rows,
                                              Word *__restrict__ word) {
    u64 code[EACH], before[EACH];
    u8 known[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        i64 row = start + k * blockDim.x;
        if (!WHOLE && row >= rows) break;
        code[k] = flags ? 0 : bits(values[row]) - low;
        known[k] = nullable || flags ? valid[row] : 1;
        before[k] = first ? 0 : word[row];
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        i64 row = start + k * blockDim.x;
        if (!WHOLE && row >= rows) break;
        if (flags) code[k] = known[k] != 0;
        else if (nullable) code[k] = known[k] ? code[k] + 1 : 0;
        word[row] = (Word)(before[k] * size + code[k]);
    }
}

template <class Word>
static __device__ __forceinline__ void append_rows(const T *values, const u8 *valid, int nullable, int flags, u64 low,
                                                   u64 size, int first, i64 rows, Word *word) {
    i64 block = (i64)blockIdx.x * blockDim.x * EACH, start = block + threadIdx.x;
    if (block + (i64)blockDim.x * EACH <= rows)
        append<true>(values, valid, nullable, flags, low, size, first, start, rows, word);
    else
        append<false>(values, valid, nullable, flags, low, size, first, start, rows, word);
}

// word * size + (value - low); with nulls 0 stands for null and values count from 1; flags: only whether not null.
// A thread takes EACH rows, a block's width apart.
extern "C" __global__ void append_key(const T *values, const u8 *valid, int nullable, int flags, u64 low, u64 size,
                                      int first, i64 rows, u64 *word) {
    append_rows(values, valid, nullable, flags, low, size, first, rows, word);
}

// The same where words have 32 bits.
extern "C" __global__ void append_narrow(const T *values, const u8 *valid, int nullable, int flags, u64 low, u64 size,
                                         int first, i64 rows, u32 *word) {
    append_rows(values, valid, nullable, flags, low, size, first, rows, word);
}
