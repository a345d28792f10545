// build: -DVALUE=float -DBINS=256 -DCOPIES=8
// build: -DVALUE=float -DBINS=2048 -DCOPIES=1
// build: -DVALUE=double -DBINS=256 -DCOPIES=8
// build: -DVALUE=double -DBINS=2048 -DCOPIES=1
// build: -DVALUE=int -DBINS=256 -DCOPIES=8
// build: -DVALUE=int -DBINS=2048 -DCOPIES=1
// build: -DVALUE=i64 -DBINS=256 -DCOPIES=8
// build: -DVALUE=i64 -DBINS=2048 -DCOPIES=1
//
// How many values lie between ascending edges. Where bins are few each block counts in shared memory, each of its
// warps in a copy of its own if there is room, and adds its counts to the whole once. Counts are integers, so the
// order of threads makes no difference.
typedef long long i64;

// The bin of a value that lies within the edges; the last bin has its upper edge. Guessed where edges are even.
__device__ __forceinline__ int bin_of(const double *edges, int bins, double value, double per_unit) {
    int bin = 0;
    if (per_unit > 0) {
        double guess = (value - edges[0]) * per_unit;
        bin = guess < bins - 1 ? (int)guess : bins - 1;
        while (bin > 0 && value < edges[bin]) --bin;
        while (bin + 1 < bins && value >= edges[bin + 1]) ++bin;
        return bin;
    }
    int beyond = bins;
    while (beyond - bin > 1) {
        int middle = (bin + beyond) / 2;
        if (value >= edges[middle]) bin = middle;
        else beyond = middle;
    }
    return bin;
}

extern "C" __global__ void histogram_few(const VALUE *__restrict__ values, const bool *__restrict__ valid,
                                         const int nullable, const double *__restrict__ edges, const int bins,
                                         const double per_unit, const i64 rows,
                                         unsigned long long *__restrict__ counts) {
    __shared__ double limits[BINS + 1];
    __shared__ unsigned own[COPIES * BINS];
    for (int at = threadIdx.x; at <= bins; at += blockDim.x) limits[at] = edges[at];
    for (int at = threadIdx.x; at < COPIES * BINS; at += blockDim.x) own[at] = 0;
    __syncthreads();
    unsigned *mine = own + (threadIdx.x / 32 % COPIES) * BINS;
    double first = limits[0], last = limits[bins];
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += step) {
        double value = (double)values[row];
        if ((!nullable || valid[row]) && value >= first && value <= last)
            atomicAdd(&mine[bin_of(limits, bins, value, per_unit)], 1u);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) {
        unsigned long long count = 0;
        for (int copy = 0; copy < COPIES; ++copy) count += own[copy * BINS + bin];
        if (count) atomicAdd(&counts[bin], count);
    }
}

extern "C" __global__ void histogram_many(const VALUE *__restrict__ values, const bool *__restrict__ valid,
                                          const int nullable, const double *__restrict__ edges, const int bins,
                                          const double per_unit, const i64 rows,
                                          unsigned long long *__restrict__ counts) {
    double first = edges[0], last = edges[bins];
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += step) {
        double value = (double)values[row];
        if ((!nullable || valid[row]) && value >= first && value <= last)
            atomicAdd(&counts[bin_of(edges, bins, value, per_unit)], 1ULL);
    }
}
