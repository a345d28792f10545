// build: -DWIDTH=1
// build: -DWIDTH=2
// build: -DWIDTH=4
// build: -DWIDTH=8
// Compaction. A warp takes a tile of 1024 rows, and needs no other warp: its mask is 32 words of 32 bits, one a lane.

#if WIDTH == 1
typedef unsigned char Item;
#elif WIDTH == 2
typedef unsigned short Item;
#elif WIDTH == 4
typedef unsigned Item;
#else
typedef unsigned long long Item;
#endif

#define ALL 0xffffffffu
// loads that are on their way at once, a lane
#define AHEAD 16

// Packs the mask into words, and counts what each tile keeps. ``words`` has 32 a tile.
extern "C" __global__ void pack_mask(const unsigned char *keep, long long rows, unsigned *words, int *counts) {
    long long tile = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (tile * 1024 >= rows) return;
    unsigned mine = 0;
    for (int first = 0; first < 32; first += AHEAD) {
        unsigned char bytes[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            long long row = tile * 1024 + (first + i) * 32 + lane;
            bytes[i] = row < rows ? keep[row] : 0;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            unsigned word = __ballot_sync(ALL, bytes[i] != 0);
            if (lane == first + i) mine = word;
        }
    }
    words[tile * 32 + lane] = mine;
    int count = __popc(mine);
    for (int step = 16; step; step /= 2) count += __shfl_xor_sync(ALL, count, step);
    if (lane == 0) counts[tile] = count;
}

// Sums of the counts before each tile, then of all, then the flag. One block, whose threads take 4 counts at a time.
extern "C" __global__ void __launch_bounds__(1024) scan_counts(const int *counts, long long tiles, const int *failed,
                                                               int fails, long long *starts) {
    __shared__ int sums[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    long long before = 0;
    for (long long first = 0; first < tiles; first += 4 * blockDim.x) {
        long long at = first + 4 * threadIdx.x;
        int mine[4], sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += mine[i] = at + i < tiles ? counts[at + i] : 0;
        int upto = sum;
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(ALL, upto, step);
            if (lane >= step) upto += other;
        }
        if (lane == 31) sums[warp] = upto;
        __syncthreads();
        int earlier = 0, all = 0;
        for (int w = 0; w < warps; ++w) {
            if (w < warp) earlier += sums[w];
            all += sums[w];
        }
        __syncthreads();
        long long start = before + earlier + upto - sum;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (at + i < tiles) starts[at + i] = start;
            start += mine[i];
        }
        before += all;
    }
    if (threadIdx.x == 0) {
        starts[tiles] = before;
        starts[tiles + 1] = fails ? failed[0] : 0;
    }
}

// Writes the kept items of each tile from where the tiles before it end.
extern "C" __global__ void move_kept(const Item *items, const unsigned *words, const long long *starts,
                                     long long rows, Item *out) {
    long long tile = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (tile * 1024 >= rows) return;
    unsigned mine = words[tile * 32 + lane];
    const Item *in = items + tile * 1024 + lane;
    out += starts[tile];
    for (int first = 0; first < 32; first += AHEAD) {
        Item held[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
            if (__shfl_sync(ALL, mine, first + i) >> lane & 1) held[i] = in[(first + i) * 32];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            unsigned word = __shfl_sync(ALL, mine, first + i);
            if (word >> lane & 1) out[__popc(word & ((1u << lane) - 1))] = held[i];
            out += __popc(word);
        }
    }
}
