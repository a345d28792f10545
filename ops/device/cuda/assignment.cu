// build: -DREAL=float
// build: -DREAL=double
//
// Rows are put to the nearest of k centers, and summed for each of them, in one pass. A block takes a tile of 2048
// rows, a part of them at a time in shared memory, column by column; a thread scores one row against some of the
// centers. The part's rows are then sorted by center, stably, and each (center, column) belongs to one thread, which
// adds its rows from the first to the last. So sums don't depend on how large a part is.

typedef REAL T;

#define THREADS 256
#define TILE 2048
// items of a part's rows, and of the centers that it is scored against at a time
#define ROOM (34304 / (int)sizeof(T))
#define CENTERS (8192 / (int)sizeof(T))
// (center, column) pairs of a thread
#define EACH 16
#define ALL 0xffffffffu
#define PACKED (16 / (int)sizeof(T))

struct __align__(16) Pack { T v[PACKED]; };

// x: row i, column j at i * row_step + j * column_step. centers: -2 times the centers, shape (d, padded), and norms:
// their squared lengths; both padded to a multiple of 8 centers, of norm infinity. part: rows at a time, 32 to 256.
// Either labels are given, or computed and written. Sums: shape (tiles, k, d + 1), the last column for ones; a block
// makes the columns from blockIdx.y * columns, at most EACH * THREADS pairs; no sums if columns is 0.
extern "C" __global__ void __launch_bounds__(THREADS)
put_to_centers(const T *x, long long row_step, long long column_step, long long rows, int d, const T *mean,
               const T *centers, const T *norms, int k, int padded, int part, const T *weights, int weighted,
               int *labels, int labelled, int columns, double *sums) {
    __shared__ T room[ROOM];
    __shared__ Pack packs[CENTERS / PACKED];
    __shared__ T weight[THREADS];
    __shared__ int label_of[THREADS];
    __shared__ int starts[2 * THREADS];
    __shared__ unsigned short order[THREADS];
    T *near = packs[0].v;
    int t = threadIdx.x, lane = t % 32, row = t % part, group = t / part, groups = THREADS / part, stride = part + 1;
    int first_column = blockIdx.y * columns;
    int across = columns < d + 1 - first_column ? columns : d + 1 - first_column;
    int low = labelled ? first_column : 0, high = labelled && first_column + across < d ? first_column + across : d;
    int width = high - low, chunk = CENTERS / d / 8 * 8;
    long long first = (long long)blockIdx.x * TILE, last = first + TILE < rows ? first + TILE : rows;
    double total[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) total[e] = 0;
    if (group == 0) room[(d - low) * stride + row] = 1;

    for (long long begin = first; begin < last; begin += part) {
        int here = last - begin < part ? (int)(last - begin) : part;
        __syncthreads();
        if (column_step == 1) {
            int r = width ? t / width : part, j = width ? t % width : 0;
            int rows_on = width ? THREADS / width : 0, columns_on = width ? THREADS % width : 0;
#pragma unroll 4
            while (r < here) {
                room[j * stride + r] = x[(begin + r) * row_step + low + j] - mean[low + j];
                r += rows_on;
                j += columns_on;
                if (j >= width) { j -= width; ++r; }
            }
        } else if (row < here) {
#pragma unroll 4
            for (int j = group; j < width; j += groups)
                room[j * stride + row] = x[(begin + row) * row_step + (low + j) * column_step] - mean[low + j];
        }
        if (group == 0 && weighted && row < here) weight[row] = weights[begin + row];

        T best = (T)__int_as_float(0x7f800000);
        int label = 0;
        if (!labelled) {
            for (int base = 0; base < padded; base += chunk) {
                int count = padded - base < chunk ? padded - base : chunk;
                __syncthreads();
                for (int i = t; i < d * count; i += THREADS)
                    near[i / count * chunk + i % count] = centers[(long long)(i / count) * padded + base + i % count];
                __syncthreads();
                for (int at = 8 * group; at < count; at += 8 * groups) {
                    T score[8];
#pragma unroll
                    for (int i = 0; i < 8; ++i) score[i] = 0;
                    for (int j = 0; j < d; ++j) {
                        T value = room[j * stride + row];
#pragma unroll
                        for (int q = 0; q < 8 / PACKED; ++q) {
                            Pack some = *(const Pack *)(near + j * chunk + at + q * PACKED);
#pragma unroll
                            for (int i = 0; i < PACKED; ++i)
                                score[q * PACKED + i] = score[q * PACKED + i] + value * some.v[i];
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        T full = score[i] + norms[base + at + i];
                        if (full < best) { best = full; label = base + at + i; }
                    }
                }
            }
            if (groups > 1) {  // the best of the groups; of equal ones that of the lowest number
                __syncthreads();
                near[t] = best;
                label_of[t] = label;
                __syncthreads();
                for (int g = 0; group == 0 && g < groups; ++g) {
                    T other = near[g * part + row];
                    int number = label_of[g * part + row];
                    if (other < best || (other == best && number < label)) { best = other; label = number; }
                }
                __syncthreads();
            }
            if (group == 0 && row < here && blockIdx.y == 0) labels[begin + row] = label;
        } else if (group == 0 && row < here) {
            label = labels[begin + row];
        }
        if (!columns) continue;

        if (row >= here) label = k;
        starts[2 * t] = 0;
        starts[2 * t + 1] = 0;
        __syncthreads();
        int rank = 0;
        for (int warp = 0; warp < part / 32; ++warp) {
            if (t / 32 == warp) {
                unsigned same = __match_any_sync(ALL, label);
                int before = starts[label];
                __syncwarp();
                rank = before + __popc(same & ((1u << lane) - 1));
                if (lane == __ffs(same) - 1) starts[label] = before + __popc(same);
            }
            __syncthreads();
        }
        int one = starts[2 * t], two = starts[2 * t + 1], running = one + two;
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(ALL, running, step);
            if (lane >= step) running += other;
        }
        if (lane == 31) label_of[t / 32] = running;
        __syncthreads();
        int before = running - one - two;
        for (int warp = 0; warp < t / 32; ++warp) before += label_of[warp];
        starts[2 * t] = before;
        starts[2 * t + 1] = before + one;
        __syncthreads();
        if (group == 0) order[starts[label] + rank] = (unsigned short)row;
        __syncthreads();
        int center = t / across, column = t % across;
        int centers_on = THREADS / across, columns_on = THREADS % across;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            if (center < k) {
                const T *mine = room + (first_column - low + column) * stride;
                double sum = total[e];
                int end = starts[center + 1];
                for (int i = starts[center]; i < end; ++i) {
                    int r = order[i];
                    sum += weighted ? (double)mine[r] * (double)weight[r] : (double)mine[r];
                }
                total[e] = sum;
            }
            center += centers_on;
            column += columns_on;
            if (column >= across) { column -= across; ++center; }
        }
    }
    if (!columns) return;
    double *out = sums + (long long)blockIdx.x * k * (d + 1) + first_column;
    int center = t / across, column = t % across;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        if (center < k) out[(long long)center * (d + 1) + column] = total[e];
        center += THREADS / across;
        column += THREADS % across;
        if (column >= across) { column -= across; ++center; }
    }
}
