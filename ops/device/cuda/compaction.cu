// Compaction. A warp takes a tile of 1024 rows, and needs no other warp: its mask is 32 words of 32 bits, one a lane.

typedef unsigned long long Word;

#define ALL 0xffffffffu
#define TILE 1024
// loads of the mask that are on their way at once, a lane
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

// Writes the kept items of a tile of one column, EACH of a lane at a time. Lanes that have none left take the last one
// again, and write what stands there: with a condition, the compiler would have each load wait for the store before it.
template <class Item, int EACH>
static __device__ __forceinline__ void move(const Word *column, long long tile, long long start, int lane, int count,
                                            const unsigned short *list) {
    const Item *__restrict__ in = (const Item *)column[0] + tile * TILE;
    Item *__restrict__ out = (Item *)column[1] + start;
#pragma unroll 1
    for (int first = lane; first - lane < count; first += 32 * EACH) {
        Item held[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) held[i] = in[list[first + 32 * i < count ? first + 32 * i : count - 1]];
#pragma unroll
        for (int i = 0; i < EACH; ++i) out[first + 32 * i < count ? first + 32 * i : count - 1] = held[i];
    }
}

// Writes the kept items of all columns from where the tiles before each end. ``columns`` has three words a column:
// where it lies, where it goes, and its bytes an item. A warp lists the kept rows of its tile in shared memory. Told
// that four blocks on a multiprocessor will do, the compiler keeps all loads of a turn on their way; else it would save
// registers for eight.
extern "C" __global__ void __launch_bounds__(256, 4) move_kept(const Word *columns, int width, const unsigned *words,
                                                               const long long *starts, long long rows) {
    __shared__ unsigned short lists[8][TILE + 2];  // the last is for rows that aren't kept
    long long tile = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (tile * TILE >= rows) return;
    int lane = threadIdx.x % 32;
    unsigned short *list = lists[threadIdx.x / 32];
    unsigned mine = words[tile * 32 + lane], below = (1u << lane) - 1;
    int own = __popc(mine), upto = own;
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(ALL, upto, step);
        if (lane >= step) upto += other;
    }
#pragma unroll
    for (int k = 0; k < 32; ++k) {
        unsigned word = __shfl_sync(ALL, mine, k);
        int place = __shfl_sync(ALL, upto - own, k) + __popc(word & below);
        list[word >> lane & 1 ? place : TILE] = (unsigned short)(k * 32 + lane);
    }
    __syncwarp();
    int count = __shfl_sync(ALL, upto, 31);
    long long start = starts[tile];
    for (const Word *column = columns; column != columns + 3 * width; column += 3) {
        switch ((int)column[2]) {
        case 1: move<unsigned char, 16>(column, tile, start, lane, count, list); break;
        case 2: move<unsigned short, 16>(column, tile, start, lane, count, list); break;
        case 4: move<unsigned, 8>(column, tile, start, lane, count, list); break;
        default: move<Word, 8>(column, tile, start, lane, count, list);
        }
    }
}
