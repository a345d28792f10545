// build: -DVALUE=bool
// build: -DVALUE=int8
// build: -DVALUE=int16
// build: -DVALUE=int32
// build: -DVALUE=int64
// build: -DVALUE=uint8
// build: -DVALUE=uint16
// build: -DVALUE=uint32
// build: -DVALUE=uint64
// build: -DVALUE=float
// build: -DVALUE=double
// Keys as unsigned words of the same order: which range a column takes, and its part of a row's word.

typedef signed char int8;
typedef short int16;
typedef int int32;
typedef long long int64;
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned uint32;
typedef unsigned long long uint64;

#define SIGN 0x8000000000000000ull
#define ALL 0xffffffffu
// rows that a thread takes, a block's threads beside each other; it loads all of them before it stores
#define EACH 8

__device__ __forceinline__ uint64 ordered(bool v) { return v ? SIGN + 1 : SIGN; }
__device__ __forceinline__ uint64 ordered(int8 v) { return (uint64)(int64)v ^ SIGN; }
__device__ __forceinline__ uint64 ordered(int16 v) { return (uint64)(int64)v ^ SIGN; }
__device__ __forceinline__ uint64 ordered(int32 v) { return (uint64)(int64)v ^ SIGN; }
__device__ __forceinline__ uint64 ordered(int64 v) { return (uint64)v ^ SIGN; }
__device__ __forceinline__ uint64 ordered(uint8 v) { return v; }
__device__ __forceinline__ uint64 ordered(uint16 v) { return v; }
__device__ __forceinline__ uint64 ordered(uint32 v) { return v; }
__device__ __forceinline__ uint64 ordered(uint64 v) { return v; }
// one NaN, above every number, and one zero
__device__ __forceinline__ uint64 ordered(float v) {
    int32 bits = v != v ? 0x7fc00000 : __float_as_int(v + 0.0f);
    return ordered(bits < 0 ? bits ^ 0x7fffffff : bits);
}
__device__ __forceinline__ uint64 ordered(double v) {
    int64 bits = v != v ? 0x7ff8000000000000ll : __double_as_longlong(v + 0.0);
    return ordered(bits < 0 ? bits ^ 0x7fffffffffffffffll : bits);
}

// The least and the greatest word of the rows that aren't null; ``range`` comes as the greatest and the least there are.
extern "C" __global__ void key_range(const VALUE *values, const unsigned char *valid, int nulls, long long rows,
                                     int descending, unsigned long long *range) {
    __shared__ uint64 lows[32], highs[32];
    uint64 low = ~0ull, high = 0, flip = descending ? ~0ull : 0;
    long long first = (long long)blockIdx.x * blockDim.x * EACH + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows && (!nulls || valid[row])) {
            uint64 word = ordered(values[row]) ^ flip;
            if (word < low) low = word;
            if (word > high) high = word;
        }
    }
    for (int step = 16; step; step /= 2) {
        uint64 other = __shfl_xor_sync(ALL, low, step);
        if (other < low) low = other;
        other = __shfl_xor_sync(ALL, high, step);
        if (other > high) high = other;
    }
    if (threadIdx.x % 32 == 0) {
        lows[threadIdx.x / 32] = low;
        highs[threadIdx.x / 32] = high;
    }
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) {
        if (lows[warp] < low) low = lows[warp];
        if (highs[warp] > high) high = highs[warp];
    }
    if (low > high) return;
    atomicMin(&range[0], low);
    atomicMax(&range[1], high);
}

// Appends a key to words: ``words * factor + (word - low)``, and ``null`` in place of the difference for nulls.
// A factor of 0 begins the words. ``low`` may wrap, to leave room below the values.
extern "C" __global__ void pack_key(const VALUE *values, const unsigned char *valid, int nulls, long long rows,
                                    int descending, unsigned long long low, unsigned long long null,
                                    unsigned long long factor, unsigned long long *words) {
    uint64 flip = descending ? ~0ull : 0;
    long long first = (long long)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    VALUE value[EACH];
    bool there[EACH];
    uint64 word[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows) {
            value[i] = values[row];
            there[i] = !nulls || valid[row];
            word[i] = factor ? words[row] * factor : 0;
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows) words[row] = word[i] + (there[i] ? (ordered(value[i]) ^ flip) - low : null);
    }
}

// Appends a key to words as ``pack_key``, for a search: a row that is null or outside of ``low`` to ``high`` can match
// nothing, and loses its mark in ``known``. ``begin`` sets the marks of the others, too.
extern "C" __global__ void match_key(const VALUE *values, const unsigned char *valid, int nulls, long long rows,
                                     unsigned long long low, unsigned long long high, unsigned long long factor,
                                     int begin, unsigned long long *words, unsigned char *known) {
    long long first = (long long)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    VALUE value[EACH];
    bool there[EACH];
    uint64 word[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows) {
            value[i] = values[row];
            there[i] = !nulls || valid[row];
            word[i] = factor ? words[row] * factor : 0;
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows) {
            uint64 key = ordered(value[i]);
            bool in = there[i] && key >= low && key <= high;
            if (begin || !in) known[row] = in;
            words[row] = word[i] + (in ? key - low : 0);
        }
    }
}

// Puts the number of each row, of so many bits, below its word, which is moved to the right before.
extern "C" __global__ void number_rows(const unsigned long long *words, long long rows, int shift, int bits,
                                       unsigned long long *out) {
    long long first = (long long)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    uint64 word[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows) word[i] = words[row];
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + (long long)i * blockDim.x;
        if (row < rows) out[row] = (word[i] >> shift) << bits | (uint64)row;
    }
}
