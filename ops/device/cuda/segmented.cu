// Sums of floats by group where groups are many: of rows in the order of groups, in chunks from each group's start.
// build: -DT=f32
// build: -DT=f64
// build: -DSPREAD=1 -DT=f32
// build: -DSPREAD=1 -DT=f64
typedef unsigned char u8;
typedef float f32;
typedef double f64;
typedef long long i64;

#define CHUNK 32

// what a row adds to its group: its value, or the square of its distance from the group's mean
__device__ __forceinline__ f64 term(const T *values, i64 row, i64 code, const f64 *means, const u8 *valid,
                                    int nullable) {
#ifdef SPREAD
    if (nullable && !valid[row]) return 0;
    f64 distance = (f64)values[row] - means[code];
    return distance * distance;
#else
    return (f64)values[row];
#endif
}

// a thread a chunk; order: which value stands where, if ordered; firsts: the first chunk of each group, ascending
extern "C" __global__ void sum_chunks(const T *values, const i64 *order, int ordered, const i64 *starts,
                                      const i64 *sizes, const i64 *firsts, i64 groups, i64 chunks,
                                      const f64 *means, const u8 *valid, int nullable, f64 *sums) {
    i64 chunk = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    i64 g = chunk;
    if (chunks != groups) {
        i64 low = 0, high = groups;
        while (high - low > 1) {
            i64 middle = (low + high) / 2;
            if (firsts[middle] <= chunk) low = middle;
            else high = middle;
        }
        g = low;
    }
    i64 start = starts[g] + (chunk - firsts[g]) * CHUNK, stop = starts[g] + sizes[g];
    stop = start + CHUNK < stop ? start + CHUNK : stop;
    f64 sum = 0;
    for (i64 place = start; place < stop; ++place) sum += term(values, ordered ? order[place] : place, g, means, valid, nullable);
    sums[chunk] = sum;
}
