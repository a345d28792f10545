// build: -DREAL=float
// build: -DREAL=double
// Sums over rows in an order that is fixed by the rows alone. A tile of 2048 rows is summed in stripes (rows s, s + S,
// s + 2 S, ...), from the first row to the last, and the stripes by halves; tiles are summed 16 at a time from left to
// right, and so are those groups. All in double.

#define TILE 2048
#define GROUP 16
#define THREADS 256

// Partial sums of each column of a matrix, rows times a factor where there is one. Blocks: (tiles, strips of columns);
// a block has S stripes of THREADS / S columns.
extern "C" __global__ void column_sums(const REAL *values, const REAL *factors, int weighted, long long rows,
                                       int width, int stripes, double *partial) {
    __shared__ double shared[THREADS];
    int across = THREADS / stripes, stripe = threadIdx.x / across, lane = threadIdx.x % across;
    int column = blockIdx.y * across + lane;
    long long first = (long long)blockIdx.x * TILE, last = first + TILE < rows ? first + TILE : rows;
    double sum = 0;
    if (column < width) {
#pragma unroll 8
        for (long long row = first + stripe; row < last; row += stripes) {
            double value = (double)values[row * width + column];
            sum += weighted ? value * (double)factors[row] : value;
        }
    }
    shared[threadIdx.x] = sum;
    for (int half = stripes / 2; half; half /= 2) {
        __syncthreads();
        if (stripe < half) shared[threadIdx.x] += shared[threadIdx.x + half * across];
    }
    if (stripe == 0 && column < width) partial[(long long)blockIdx.x * width + column] = shared[threadIdx.x];
}

// Sums of up to 16 tiles each, from left to right. One thread a group and column.
extern "C" __global__ void sum_groups(const double *partial, long long tiles, long long width, double *groups) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long group = at / width, column = at % width;
    if (group * GROUP >= tiles) return;
    const double *mine = partial + group * GROUP * width + column;
    double sum = 0;
    if ((group + 1) * GROUP <= tiles) {
        double held[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; ++i) held[i] = mine[i * width];
#pragma unroll
        for (int i = 0; i < GROUP; ++i) sum += held[i];
    } else {
        for (long long i = 0; group * GROUP + i < tiles; ++i) sum += mine[i * width];
    }
    groups[at] = sum;
}

// Adds groups to totals, from left to right. One thread a column.
extern "C" __global__ void add_groups(const double *groups, long long count, long long width, double *totals) {
    long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    double sum = totals[column];
#pragma unroll 8
    for (long long group = 0; group < count; ++group) sum += groups[group * width + column];
    totals[column] = sum;
}
