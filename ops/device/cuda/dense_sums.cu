// Sums of floats by group where groups are few: partial sums of tiles of rows in shared memory, then of the tiles.
// Every addition has its place by the number of the row; what is added where stands in segmented.py.
// build: -DT=f32
// build: -DT=f64
// build: -DSPREAD=1 -DT=f32
// build: -DSPREAD=1 -DT=f64
typedef unsigned char u8;
typedef float f32;
typedef double f64;
typedef long long i64;

#define TILE 4096
#define THREADS 256
#define WARPS 8
#define RUN (TILE / WARPS)
#define FEW 16
#define WIDE 512

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

// at most FEW groups: thread t owns rows t, t + 256, ... of the tile, and a sum for each group
extern "C" __global__ void __launch_bounds__(THREADS) sum_few(const T *values, const int *codes, i64 rows, int groups,
                                                              const f64 *means, const u8 *valid, int nullable,
                                                              f64 *partials) {
    __shared__ f64 sums[FEW * THREADS];
    int t = threadIdx.x;
    i64 start = blockIdx.x * (i64)TILE + t, tiles = gridDim.x;
    if (groups == 1) {
        f64 sum = 0;
        #pragma unroll
        for (int k = 0; k < TILE; k += THREADS)
            if (start + k < rows) sum += term(values, start + k, 0, means, valid, nullable);
        sums[t] = sum;
    } else {
        for (int g = 0; g < groups; ++g) sums[g * THREADS + t] = 0;
        for (int k = 0; k < TILE; k += 8 * THREADS) {
            f64 value[8];
            int code[8];
            #pragma unroll
            for (int j = 0; j < 8; ++j) {
                i64 row = start + k + j * THREADS;
                code[j] = row < rows ? codes[row] : 0;
                value[j] = row < rows ? term(values, row, code[j], means, valid, nullable) : 0;
            }
            #pragma unroll
            for (int j = 0; j < 8; ++j) sums[code[j] * THREADS + t] += value[j];
        }
    }
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        for (int i = t; i < groups * half; i += THREADS) {
            int at = i / half * THREADS + i % half;
            sums[at] += sums[at + half];
        }
    }
    __syncthreads();
    if (t < groups) partials[t * tiles + blockIdx.x] = sums[t * THREADS];
}

// more groups, WIDE of them a block: each warp owns a run of rows, and a sum for each group. Where lanes of a warp
// have the same group, they add one after another, in the order of rows
extern "C" __global__ void __launch_bounds__(THREADS) sum_many(const T *values, const int *codes, i64 rows, int groups,
                                                               const f64 *means, const u8 *valid, int nullable,
                                                               f64 *partials) {
    __shared__ f64 sums[WARPS * WIDE];
    int t = threadIdx.x, lane = t % 32, low = blockIdx.y * WIDE;
    int here = groups - low < WIDE ? groups - low : WIDE;
    f64 *own = sums + t / 32 * WIDE;
    unsigned before = (1u << lane) - 1;
    i64 start = blockIdx.x * (i64)TILE + t / 32 * RUN + lane, tiles = gridDim.x;
    for (int g = lane; g < here; g += 32) own[g] = 0;
    __syncwarp();
    for (int k = 0; k < RUN; k += 4 * 32) {
        f64 value[4];
        int code[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            i64 row = start + k + j * 32;
            code[j] = row < rows ? codes[row] - low : -1;
            if (code[j] < 0 || code[j] >= here) code[j] = -1;
            value[j] = code[j] < 0 ? 0 : term(values, row, low + code[j], means, valid, nullable);
        }
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            unsigned peers = __match_any_sync(~0u, code[j]);
            int turn = code[j] < 0 ? -1 : __popc(peers & before);
            for (int now = 0; __any_sync(~0u, turn >= now); ++now) {
                if (turn == now) own[code[j]] += value[j];
                __syncwarp();
            }
        }
    }
    __syncthreads();
    for (int g = t; g < here; g += THREADS) {
        f64 sum[WARPS];
        #pragma unroll
        for (int w = 0; w < WARPS; ++w) sum[w] = sums[w * WIDE + g];
        #pragma unroll
        for (int half = WARPS / 2; half; half /= 2)
            #pragma unroll
            for (int w = 0; w < half; ++w) sum[w] += sum[w + half];
        partials[(low + g) * tiles + blockIdx.x] = sum[0];
    }
}

// width threads a group: thread t adds tiles t, t + width, ..., then the threads' sums in halves
extern "C" __global__ void __launch_bounds__(THREADS) sum_tiles(const f64 *partials, i64 tiles, int groups, int width,
                                                                f64 *totals) {
    __shared__ f64 sums[THREADS];
    int t = threadIdx.x, lane = t % width;
    i64 g = (blockIdx.x * (i64)THREADS + t) / width;
    f64 sum = 0;
    for (i64 tile = lane; g < groups && tile < tiles; tile += width) sum += partials[g * tiles + tile];
    sums[t] = sum;
    for (int half = width / 2; half; half /= 2) {
        __syncthreads();
        if (lane < half) sums[t] += sums[t + half];
    }
    if (lane == 0 && g < groups) totals[g] = sums[t];
}
