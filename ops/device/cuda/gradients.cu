// build: -DREAL=float
// build: -DREAL=double
//
// Losses of rows and their derivatives by the predictor, and for narrow linear models the whole gradient in one pass.

typedef REAL T;

#define THREADS 256
#define TILE 2048
#define STRIPES 8
// bytes of a block's rows in shared memory
#define ROOM 34816
// (stripe, column) pairs of a thread: 131 columns at most
#define EACH 5
#define ALL 0xffffffffu

#define SQUARED 0
#define LOGISTIC 1

__device__ __forceinline__ float power(float x) { return expf(x); }
__device__ __forceinline__ double power(double x) { return exp(x); }
__device__ __forceinline__ float natural(float x) { return logf(x); }
__device__ __forceinline__ double natural(double x) { return log(x); }
__device__ __forceinline__ float natural1(float x) { return log1pf(x); }
__device__ __forceinline__ double natural1(double x) { return log1p(x); }

// operation by operation as ops/objectives/losses.py
__device__ __forceinline__ void row_loss(int kind, T z, T y, T *loss, T *slope) {
    if (kind == SQUARED) {
        T error = z - y;
        *loss = T(0.5) * error * error;
        *slope = error;
    } else {
        T small = power(z < 0 ? z : -z);
        T high = z < 0 ? T(0) : z;
        *loss = high - y * z + natural1(small);
        *slope = (z >= 0 ? T(1) : small) / (1 + small) - y;
    }
}

// a row's share of the mean: a division by the number of rows, or its weight over the sum of weights
__device__ __forceinline__ T shared_out(T slope, const T *weights, long long row, int weighted, double total) {
    return weighted ? slope * (T)((double)weights[row] / total) : slope / (T)total;
}

// One row a thread.
extern "C" __global__ void residuals(int kind, const T *z, const T *y, const T *weights, int weighted, double total,
                                     long long rows, T *losses, T *slopes) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    T loss, slope;
    row_loss(kind, z[row], y[row], &loss, &slope);
    losses[row] = loss;
    slopes[row] = shared_out(slope, weights, row, weighted, total);
}

// Classes. Some lanes of a warp take a row: as many as there are classes, or the power of two above, or all 32.
// A class that isn't there makes the loss NaN.
extern "C" __global__ void softmax_residuals(const T *z, const long long *y, const T *weights, int weighted, double total,
                                             long long rows, int classes, int lanes, T *losses, T *slopes) {
    long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / lanes;
    int lane = threadIdx.x % lanes;
    bool live = row < rows;
    if (!live) row = rows - 1;
    const T *mine = z + row * classes;
    T largest = -(T)__int_as_float(0x7f800000);
    for (int c = lane; c < classes; c += lanes) {
        T value = mine[c];
        if (value > largest || value != value) largest = value;
    }
    for (int step = lanes / 2; step; step /= 2) {
        T other = __shfl_xor_sync(ALL, largest, step);
        if (other > largest || other != other) largest = other;
    }
    T sum = 0;
    for (int c = lane; c < classes; c += lanes) sum = sum + power(mine[c] - largest);
    for (int step = lanes / 2; step; step /= 2) sum = sum + __shfl_xor_sync(ALL, sum, step);
    if (!live) return;
    long long label = y[row];
    bool known = label >= 0 && label < classes;
    if (lane == 0) losses[row] = known ? natural(sum) - (mine[label] - largest) : (T)__int_as_float(0x7fc00000);
    for (int c = lane; c < classes; c += lanes) {
        T slope = power(mine[c] - largest) / sum;
        if (c == label) slope = slope - 1;
        slopes[row * classes + c] = shared_out(slope, weights, row, weighted, total);
    }
}

// A linear model's gradient. A block takes a tile of rows, a part of them at a time in shared memory, column by column,
// with columns of ones, losses and ones behind them; columns are summed in 8 stripes, times the derivative and the
// weight, or for the last two times the weight. partial: shape (tiles, d + 3).
extern "C" __global__ void __launch_bounds__(THREADS)
linear_gradient(int kind, const T *x, long long rows, int d, const T *y, const T *weights, int weighted,
                const T *coefficients, const T *intercept, int with_intercept, int part, double *partial) {
    __shared__ double raw[ROOM / 8];
    __shared__ double by_slope[THREADS];
    __shared__ double by_weight[THREADS];
    __shared__ T factors[THREADS];
    T *room = (T *)raw;
    int t = threadIdx.x, across = d + 3, stride = part + 1;
    long long first = (long long)blockIdx.x * TILE, last = first + TILE < rows ? first + TILE : rows;
    double total[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) total[e] = 0;
    if (t < d) factors[t] = coefficients[t];
    T shift = with_intercept ? *intercept : T(0);

    for (long long begin = first; begin < last; begin += part) {
        int here = last - begin < part ? (int)(last - begin) : part;
        __syncthreads();
        int r = t / d, j = t % d, rows_on = THREADS / d, columns_on = THREADS % d;
        const T *from = x + begin * d + t;
#pragma unroll 4
        while (r < here) {
            room[j * stride + r] = *from;
            from += THREADS;
            r += rows_on;
            j += columns_on;
            if (j >= d) { j -= d; ++r; }
        }
        __syncthreads();
        if (t < here) {
            T z = 0;
            for (int column = 0; column < d; ++column) z = z + room[column * stride + t] * factors[column];
            if (with_intercept) z = z + shift;
            T loss, slope;
            row_loss(kind, z, y[begin + t], &loss, &slope);
            double weight = weighted ? (double)weights[begin + t] : 1.0;
            room[d * stride + t] = 1;
            room[(d + 1) * stride + t] = loss;
            room[(d + 2) * stride + t] = 1;
            by_slope[t] = (double)slope * weight;
            by_weight[t] = weight;
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            int pair = t + e * THREADS, column = pair % across, stripe = pair / across;
            if (stripe < STRIPES) {
                const double *times = column <= d ? by_slope : by_weight;
                double sum = total[e];
                for (int row = stripe; row < here; row += STRIPES) sum += (double)room[column * stride + row] * times[row];
                total[e] = sum;
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (t + e * THREADS < STRIPES * across) raw[t + e * THREADS] = total[e];
    __syncthreads();
    if (t < across) {
        const double *v = raw + t;
        double a = v[0] + v[4 * across], b = v[across] + v[5 * across];
        double c = v[2 * across] + v[6 * across], e = v[3 * across] + v[7 * across];
        partial[(long long)blockIdx.x * across + t] = (a + c) + (b + e);
    }
}
