// build: -DBITS=8
// build: -DBITS=16
// build: -DBITS=32
// Partitioning: rows go to their segment, in order. A block takes a tile of 4096 rows, a warp 256 in a row of it.
//
// BITS is the width of a segment's number. Rows of a warp that have the same segment find each other by one ballot a
// bit of that number, so it doesn't matter how rows are spread over segments.

typedef unsigned long long Word;
#if BITS == 8
typedef unsigned char Segment;
#elif BITS == 16
typedef unsigned short Segment;
#else
typedef unsigned Segment;
#endif

#define THREADS 512
#define EACH 8
#define WARPS (THREADS / 32)
#define TILE (THREADS * EACH)
#define SLOTS 1024
#define ALL 0xffffffffu

// Which lanes hold a row of the same segment as this one.
static __device__ __forceinline__ unsigned alike(int segment, bool there, int bits) {
    unsigned lanes = __ballot_sync(ALL, there);
    for (int bit = 0; bit < bits; ++bit) {
        unsigned ones = __ballot_sync(ALL, segment >> bit & 1);
        lanes &= segment >> bit & 1 ? ones : ~ones;
    }
    return lanes;
}

// Reads the segments of this thread's rows, which are 32 apart; 0 where there is no row. The tile's first is at ``in``.
static __device__ __forceinline__ void read(const Segment *in, int first, int in_tile, int *mine) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) mine[i] = first + 32 * i < in_tile ? (int)in[first + 32 * i] : 0;
}

// Counts each tile's rows by segment; ``counts`` has, for one segment after another, one number a tile.
extern "C" __global__ void __launch_bounds__(THREADS) count_segments(const Segment *segments, long long rows, int count,
                                                                     int bits, unsigned *counts) {
    __shared__ int found[SLOTS];
    for (int s = threadIdx.x; s < count; s += THREADS) found[s] = 0;
    __syncthreads();
    long long tile = (long long)blockIdx.x * TILE;
    int in_tile = rows - tile < TILE ? (int)(rows - tile) : TILE;
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (32 * EACH) + lane;
    int mine[EACH];
    read(segments + tile, first, in_tile, mine);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        bool there = first + 32 * i < in_tile;
        unsigned lanes = alike(mine[i], there, bits);
        if (there && !(lanes & ((1u << lane) - 1))) atomicAdd(&found[mine[i]], __popc(lanes));
    }
    __syncthreads();
    for (int s = threadIdx.x; s < count; s += THREADS)
        counts[(long long)s * gridDim.x + blockIdx.x] = (unsigned)found[s];
}

// One of two numbers of 16 bits in a word: registers are what is short.
static __device__ __forceinline__ unsigned of_pair(const unsigned *pairs, int i) {
    return pairs[i / 2] >> (i % 2 * 16) & 0xffffu;
}

// Moves the tile's items of one column: to their place in the tile, and from there to the output in runs.
template <class Item>
static __device__ __forceinline__ void move(const Word *column, Word *room, int first, int in_tile,
                                            const unsigned *places, const unsigned *to) {
    const Item *in = (const Item *)column[0] + ((long long)blockIdx.x * TILE + first);
    Item *out = (Item *)column[1], *items = (Item *)room;
    Item held[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (first + 32 * i < in_tile) held[i] = in[32 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (first + 32 * i < in_tile) items[of_pair(places, i)] = held[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        int at = i * THREADS + threadIdx.x;
        if (at < in_tile) out[to[i]] = items[at];
    }
}

// Moves all columns, of less than 2**32 rows. ``columns`` has three words a column: where it lies, where it goes, and
// its bytes an item; ``ends`` are the running sums of the counts.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    move_rows(const Word *columns, int width, const Segment *segments, long long rows, int count, int bits,
              const unsigned *ends) {
    __shared__ Word room[TILE];  // one after another: counts by warp and segment, segments in order, items
    __shared__ unsigned shift[SLOTS];
    __shared__ int sums[WARPS];
    long long tile = (long long)blockIdx.x * TILE;
    int in_tile = rows - tile < TILE ? (int)(rows - tile) : TILE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp * (32 * EACH) + lane;
    unsigned short *before = (unsigned short *)room, *of_warp = before + warp * count;
    for (int i = threadIdx.x; i < WARPS * count; i += THREADS) before[i] = 0;
    int mine[EACH];
    read(segments + tile, first, in_tile, mine);
    // a thread has one segment or two; where their rows of this tile end is needed later
    int each = count > THREADS ? 2 : 1, segment = each * threadIdx.x;
    unsigned stop[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < 2; ++k)
        if (k < each && segment + k < count) stop[k] = ends[(long long)(segment + k) * gridDim.x + blockIdx.x];
    __syncthreads();

    // the place of each row among those of its warp and segment
    unsigned place[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        bool there = first + 32 * i < in_tile;
        unsigned lanes = alike(mine[i], there, bits), below = lanes & ((1u << lane) - 1);
        int known = of_warp[mine[i]];
        __syncwarp();
        if (there && !below) of_warp[mine[i]] = (unsigned short)(known + __popc(lanes));
        __syncwarp();
        place[i] = known + __popc(below);
    }
    __syncthreads();

    // where each segment begins in the tile, and how far the output lies from there
    int totals[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < 2; ++k)
        if (k < each && segment + k < count) {
#pragma unroll
            for (int w = 0; w < WARPS; ++w) totals[k] += before[w * count + segment + k];
        }
    int sum = totals[0] + totals[1];
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(ALL, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int begin = sum - totals[0] - totals[1];
    for (int w = 0; w < warp; ++w) begin += sums[w];
#pragma unroll
    for (int k = 0; k < 2; ++k)
        if (k < each && segment + k < count) {
            unsigned short known[WARPS], *of_segment = before + segment + k;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) known[w] = of_segment[w * count];
            shift[segment + k] = stop[k] - totals[k] - begin;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                of_segment[w * count] = (unsigned short)begin;
                begin += known[w];
            }
        }
    __syncthreads();

    // the place of each row in the tile, and where what comes to each place goes
#pragma unroll
    for (int i = 0; i < EACH; ++i) place[i] += of_warp[mine[i]];
    __syncthreads();
    unsigned short *ordered = (unsigned short *)room;
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (first + 32 * i < in_tile) ordered[place[i]] = (unsigned short)mine[i];
    __syncthreads();
    unsigned to[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        int at = i * THREADS + threadIdx.x;
        to[i] = at < in_tile ? shift[ordered[at]] + at : 0;
    }
    unsigned places[EACH / 2];
#pragma unroll
    for (int i = 0; i < EACH; i += 2) places[i / 2] = place[i] | place[i + 1] << 16;
    for (const Word *column = columns; column != columns + 3 * width; column += 3) {
#pragma unroll  // what the compiler can't see through it doesn't compute addresses of ahead, which would fill registers
        for (int i = 0; i < EACH; ++i) asm volatile("" : "+r"(places[i / 2]), "+r"(to[i]), "+r"(first), "+r"(in_tile));
        switch ((int)column[2]) {
        case 1: move<unsigned char>(column, room, first, in_tile, places, to); break;
        case 2: move<unsigned short>(column, room, first, in_tile, places, to); break;
        case 4: move<unsigned>(column, room, first, in_tile, places, to); break;
        default: move<Word>(column, room, first, in_tile, places, to);
        }
    }
}
