// Sums of rows of a matrix that stand side by side, from the first to the last of a segment. One thread a segment and
// column; ``starts`` has one more than there are segments.
extern "C" __global__ void segment_rows(const double *values, const long long *starts, long long segments, int width,
                                        double *sums) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long segment = at / width;
    if (segment >= segments) return;
    const double *mine = values + at % width;
    long long row = starts[segment], last = starts[segment + 1];
    double sum = 0;
#pragma unroll 4
    for (; row < last; ++row) sum += mine[row * width];
    sums[at] = sum;
}
