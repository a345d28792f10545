// build: -DT=i8
// build: -DT=u8
// build: -DT=i16
// build: -DT=u16
// build: -DT=i32
// build: -DT=u32
// build: -DT=i64
// build: -DT=u64
// build: -DT=f32
// build: -DT=f64
// build: -DKEY=u32 -DWEIGHTED=0
// build: -DKEY=u64 -DWEIGHTED=0
// build: -DKEY=u32 -DWEIGHTED=1
//
// Buckets of quantiles, which are values rounded to a few bits of the mantissa, and counts of rows by group and bucket.
// All of it is of integers, so the order of threads makes no difference.
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#ifndef T
#define T f64
#endif
#ifndef KEY
#define KEY u32
#define WEIGHTED 0
#endif

// the bucket of a row that is null
#define NONE (-2147483647 - 1)
#define EACH 8
#define FULL 0xffffffffu

// The bucket of each value, and the least and the greatest of those of values that aren't null.
extern "C" __global__ void number_buckets(const T *__restrict__ values, const bool *__restrict__ valid,
                                          const int nullable, const i64 rows, const int bits,
                                          int *__restrict__ buckets, int *__restrict__ range) {
    const int shift = 52 - bits, infinite = 0x7ff << bits;
    int least = 2147483647, greatest = NONE;
    i64 row = (i64)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    for (int turn = 0; turn < EACH && row < rows; ++turn, row += blockDim.x) {
        int bucket = NONE;
        if (!nullable || valid[row]) {
            i64 word = __double_as_longlong((double)values[row]);
            i64 magnitude = word & 0x7fffffffffffffffLL;
            if (magnitude > 0x7ff0000000000000LL) {
                bucket = infinite + 1;
            } else {
                bucket = (int)((magnitude + (1LL << (shift - 1))) >> shift);
                if (bucket >= infinite && magnitude < 0x7ff0000000000000LL) bucket = infinite - 1;
                if (word < 0) bucket = -bucket;
            }
            least = bucket < least ? bucket : least;
            greatest = bucket > greatest ? bucket : greatest;
        }
        buckets[row] = bucket;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        int other = __shfl_xor_sync(FULL, least, lanes);
        least = other < least ? other : least;
        other = __shfl_xor_sync(FULL, greatest, lanes);
        greatest = other > greatest ? other : greatest;
    }
    if (threadIdx.x % 32 == 0 && greatest != NONE) {
        atomicMin(&range[0], least);
        atomicMax(&range[1], greatest);
    }
}

// Which buckets there are; all that write a mark write the same.
extern "C" __global__ void mark_buckets(const int *__restrict__ buckets, const i64 rows, const int low,
                                        u8 *__restrict__ marks) {
    i64 row = (i64)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    for (int turn = 0; turn < EACH && row < rows; ++turn, row += blockDim.x)
        if (buckets[row] != NONE) marks[buckets[row] - low] = 1;
}

// The place of a row among all pairs of group and bucket; ranks, if there are any, number the buckets there are.
__device__ __forceinline__ u64 place_of(const int *codes, const int *buckets, const int *ranks, int ranked, i64 row,
                                        int low, u64 span) {
    int bucket = buckets[row] - low;
    return (u64)codes[row] * span + (ranked ? ranks[bucket] : bucket);
}

// Rows of each pair. Where a warp has but one pair, as of a constant, one lane adds for all.
extern "C" __global__ void count_pairs(const int *__restrict__ codes, const int *__restrict__ buckets,
                                       const i64 *__restrict__ weights, const i64 rows, const int low,
                                       const int *__restrict__ ranks, const int ranked, const u64 span,
                                       u64 *__restrict__ counts) {
    i64 row = (i64)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    for (int turn = 0; turn < EACH; ++turn, row += blockDim.x) {
        bool there = row < rows && buckets[row] != NONE;
        u64 place = there ? place_of(codes, buckets, ranks, ranked, row, low, span) : ~0ULL;
#if WEIGHTED
        if (there) atomicAdd(&counts[place], (u64)weights[row]);
#else
        u64 first = __shfl_sync(FULL, place, 0);
        bool alike = __all_sync(FULL, place == first);
        if (there && (!alike || threadIdx.x % 32 == 0)) atomicAdd(&counts[place], alike ? 32ULL : 1ULL);
#endif
    }
}

// The place of each row as a key to sort by; ``none`` of nulls, above all others.
extern "C" __global__ void pair_keys(const int *__restrict__ codes, const int *__restrict__ buckets, const i64 rows,
                                     const int low, const int *__restrict__ ranks, const int ranked, const u64 span,
                                     const u64 none, KEY *__restrict__ keys) {
    i64 row = (i64)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    for (int turn = 0; turn < EACH && row < rows; ++turn, row += blockDim.x)
        keys[row] = (KEY)(buckets[row] == NONE ? none : place_of(codes, buckets, ranks, ranked, row, low, span));
}
