// Join: where the rows of each key stand, how many matches a row has, and the pairs of rows, one thread a pair.

#define EACH 4

// Where the rows of each key begin and end. ``firsts`` has, ascending, the first row of each row's key.
extern "C" __global__ void mark_spans(const long long *firsts, long long rows, long long *spans) {
    long long place = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= rows) return;
    long long first = firsts[place];
    if (place == 0 || firsts[place - 1] != first) spans[2 * first] = place;
    if (place == rows - 1 || firsts[place + 1] != first) spans[2 * first + 1] = place + 1;
}

// How many pairs each left row makes; ``least`` is 1 if one without a match makes one.
extern "C" __global__ void count_pairs(const long long *codes, long long rows, const long long *spans, int least,
                                       long long *counts) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    long long count = least, code = codes[row];
    if (code >= 0) {
        longlong2 span = ((const longlong2 *)spans)[code];
        count = span.y - span.x;
    }
    counts[row] = count;
}

// The first row at ``low`` or behind whose pairs end above ``pair``; it is at most ``high``.
__device__ __forceinline__ long long row_of(const long long *ends, long long low, long long high, long long pair) {
    while (low < high) {
        long long middle = low + (high - low) / 2;
        if (ends[middle] > pair) high = middle;
        else low = middle + 1;
    }
    return low;
}

// Pairs ``start`` to ``stop``, in the order of the left rows and then of ``order``; -1 stands for no right row.
// ``ends`` are the running sums of the pairs that left rows make. A block finds the left rows of its own pairs first.
extern "C" __global__ void expand_pairs(const long long *codes, const long long *ends, long long rows,
                                        const long long *spans, const long long *order, long long start,
                                        long long stop, long long *left, long long *right) {
    __shared__ long long range[2];
    long long tile = start + (long long)blockIdx.x * blockDim.x * EACH;
    long long last = tile + (long long)blockDim.x * EACH - 1;
    if (last >= stop) last = stop - 1;
    if (threadIdx.x == 0) range[0] = row_of(ends, 0, rows - 1, tile);
    if (threadIdx.x == 32) range[1] = row_of(ends, 0, rows - 1, last);
    __syncthreads();
    long long low = range[0], high = range[1];
    for (int i = 0; i < EACH; ++i) {
        long long pair = tile + (long long)i * blockDim.x + threadIdx.x;
        if (pair >= stop) return;
        long long row = row_of(ends, low, high, pair);
        long long rank = pair - (row ? ends[row - 1] : 0), code = codes[row];
        left[pair - start] = row;
        right[pair - start] = code < 0 ? -1 : order[spans[2 * code] + rank];
    }
}
