// build: -DBITS=8
// build: -DBITS=16
// build: -DBITS=32
// Row hashes: all columns are absorbed in one pass, and what the hash is for is made of it in registers.
//
// ``columns`` has five words a column: where the values lie, where the validity bytes lie (0: there are none), the
// kind, and for strings where the bounds of the dictionary's words lie, and these words. The kinds are numbered as in
// row_hash.py. A block takes 1024 rows, a thread four of them.

typedef unsigned long long Word;
#if BITS == 8
typedef unsigned char Segment;
#elif BITS == 16
typedef unsigned short Segment;
#else
typedef unsigned Segment;
#endif

#define THREADS 256
#define EACH 4
#define NULL_WORD 0xA0761D6478BD642Full
#define ALL 0xffffffffu

static __device__ __forceinline__ Word mix(Word word) {
    word ^= word >> 27;
    word *= 0x3C79AC492BA7B653ull;
    word ^= word >> 33;
    word *= 0x1C69B3F74AC4AE35ull;
    return word ^ word >> 27;
}

static __device__ __forceinline__ Word float_word(double value, int exact) {
    if (value != value) return 0x7ff8000000000000ull;
    if (value == 0 && !exact) return 0;
    return (Word)__double_as_longlong(value);
}

template <class T>
static __device__ __forceinline__ void read(const Word *column, const long long *rows, Word *words) {
    const T *values = (const T *)column[0];
#pragma unroll
    for (int i = 0; i < EACH; ++i) words[i] = (Word)(long long)values[rows[i]];
}

template <class T>
static __device__ __forceinline__ void read_floats(const Word *column, const long long *rows, int exact, Word *words) {
    const T *values = (const T *)column[0];
#pragma unroll
    for (int i = 0; i < EACH; ++i) words[i] = float_word((double)values[rows[i]], exact);
}

// The hashes of four rows; rows that there aren't are given as ones that there are.
static __device__ __forceinline__ void hash(const Word *columns, int count, Word start, int exact,
                                            const long long *rows, Word *states) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) states[i] = start;
    for (const Word *column = columns; column != columns + 5 * count; column += 5) {
        const unsigned char *valid = (const unsigned char *)column[1];
        bool known[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) known[i] = !valid || valid[rows[i]];
        Word words[EACH];
        int kind = (int)column[2];
        switch (kind) {
        case 0: read<unsigned char>(column, rows, words); break;
        case 1: read<unsigned short>(column, rows, words); break;
        case 2: read<unsigned>(column, rows, words); break;
        case 3: read<signed char>(column, rows, words); break;
        case 4: read<short>(column, rows, words); break;
        case 5: read<int>(column, rows, words); break;
        case 6: read_floats<float>(column, rows, exact, words); break;
        case 7: read_floats<double>(column, rows, exact, words); break;
        case 10: {
            const int *codes = (const int *)column[0];
            const long long *bounds = (const long long *)column[3];
            const Word *text = (const Word *)column[4];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                words[i] = NULL_WORD;
                if (!known[i]) continue;
                int code = codes[rows[i]];
                long long at = bounds[code], last = bounds[code + 1] - 1;
                for (; at < last; ++at) states[i] = mix(states[i] ^ text[at]);
                words[i] = text[last];
            }
            break;
        }
        default: read<long long>(column, rows, words);  // 8: of 64 bits; 9: decimals
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) states[i] = mix(states[i] ^ (known[i] ? words[i] : NULL_WORD));
        if (kind == 9) {
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                states[i] = mix(states[i] ^ (known[i] ? (Word)((long long)words[i] >> 63) : NULL_WORD));
        }
    }
}

static __device__ __forceinline__ void hash_block(const Word *columns, int count, Word start, int exact, long long first,
                                                  long long rows, Word *states) {
    long long places[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + i * THREADS + threadIdx.x;
        places[i] = row < 0 ? 0 : row < rows ? row : rows - 1;
    }
    hash(columns, count, start, exact, places, states);
}

extern "C" __global__ void __launch_bounds__(THREADS) hash_rows(const Word *columns, int count, Word start, int exact,
                                                                long long rows, Word *out) {
    long long first = (long long)blockIdx.x * (THREADS * EACH);
    Word states[EACH];
    hash_block(columns, count, start, exact, first, rows, states);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + i * THREADS + threadIdx.x;
        if (row < rows) out[row] = states[i];
    }
}

// Writes the segment of each row, below ``parts``, in BITS bits.
extern "C" __global__ void __launch_bounds__(THREADS) hash_segments(const Word *columns, int count, Word start, int parts,
                                                                    long long rows, Segment *out) {
    long long first = (long long)blockIdx.x * (THREADS * EACH);
    Word states[EACH];
    hash_block(columns, count, start, 0, first, rows, states);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long row = first + i * THREADS + threadIdx.x;
        if (row < rows) out[row] = (Segment)((states[i] >> 32) * (Word)parts >> 32);
    }
}

// The two lanes of each tile's polynomial. The last tile is full: the first one begins ``lead`` rows before row 0, and
// those count nothing. ``weights`` has, for each lane, the ratio to the powers 1023 to 0, then the ratio to the 1024.
extern "C" __global__ void __launch_bounds__(THREADS)
    fingerprint_tiles(const Word *columns, int count, Word start, Word second, long long lead, long long rows, int steps,
                      const Word *weights, Word *out) {
    __shared__ Word sums[2][THREADS / 32];
    const int width = THREADS * EACH;
    Word lanes[2] = {0, 0};
    long long first = (long long)blockIdx.x * steps * width - lead;
    for (int step = 0; step < steps; ++step, first += width) {
        if (first + width <= 0) continue;
        Word states[EACH];
        hash_block(columns, count, start, 1, first, rows, states);
        for (int lane = 0; lane < 2; ++lane) lanes[lane] *= weights[lane * (width + 1) + width];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int place = i * THREADS + threadIdx.x;
            if (first + place < 0) continue;
            lanes[0] += states[i] * weights[place];
            lanes[1] += mix(states[i] ^ second) * weights[width + 1 + place];
        }
    }
    for (int lane = 0; lane < 2; ++lane) {
        Word sum = lanes[lane];
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
        if (threadIdx.x % 32 == 0) sums[lane][threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
        Word sum = 0;
        for (int warp = 0; warp < THREADS / 32; ++warp) sum += sums[threadIdx.x][warp];
        out[blockIdx.x * 2 + threadIdx.x] = sum;
    }
}
