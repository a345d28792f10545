// Groups of rows with equal key words. A slot ends up with the first row of its key, whichever thread comes first:
// a row once written to a slot is only ever replaced by an earlier row of the same key.
// build: -DWORD=u32
// build: -DWORD=u64
typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;
typedef long long i64;

#define FREE 0x7fffffff
#define TILE 4096
#define FEW 1024
// rows of a thread that are loaded at once
#define AHEAD 8

__device__ __forceinline__ u64 mixed(u64 h) {
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}

// words: count x rows; owners: mask + 1 slots, preset to FREE; slots: the slot of each row
extern "C" __global__ void claim_hashed(const WORD *words, int count, int rows, int *owners, u64 mask, unsigned *slots) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    u64 hash = 0;
    for (int w = 0; w < count; ++w) hash = mixed(hash ^ words[(i64)w * rows + row]);
    u64 slot = hash & mask;
    for (;; slot = (slot + 1) & mask) {
        int owner = *(volatile int *)&owners[slot];
        if (owner == FREE) {
            owner = atomicCAS(&owners[slot], FREE, row);
            if (owner == FREE) break;
        }
        bool same = true;
        for (int w = 0; w < count && same; ++w) {
            const WORD *word = words + (i64)w * rows;
            same = word[owner] == word[row];
        }
        if (!same) continue;
        if (row < owner) atomicMin(&owners[slot], row);
        break;
    }
    slots[row] = (unsigned)slot;
}

// The kernels below take EACH rows a thread, a block's width apart, and load all of them before they use one. Where
// that changes nothing, rows behind the last are the last again: conditions would part loads from each other.
#define EACH 4
#define FIRST_ROW ((i64)blockIdx.x * blockDim.x * EACH + threadIdx.x)
#define ROW_OR_LAST(first, k) ((first) + (k) * blockDim.x < rows ? (first) + (k) * blockDim.x : rows - 1)

// one word a row, below the number of slots
extern "C" __global__ void claim_direct(const WORD *__restrict__ word, int rows, int *owners) {
    i64 first = FIRST_ROW;
    int *owner[EACH], held[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) owner[k] = owners + word[ROW_OR_LAST(first, k)];
#pragma unroll
    for (int k = 0; k < EACH; ++k) held[k] = *(volatile int *)owner[k];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        i64 row = first + k * blockDim.x;
        if (row < rows && row < held[k]) atomicMin(owner[k], (int)row);
    }
}

// firsts: the first row that is equal to each; marks: 1 where that is the row itself. One of slots and word is used
extern "C" __global__ void find_firsts(const int *__restrict__ owners, const unsigned *__restrict__ slots,
                                       const WORD *__restrict__ word, int direct, int rows, int *__restrict__ firsts,
                                       int *__restrict__ marks) {
    i64 start = FIRST_ROW;
    i64 slot[EACH];
    int first[EACH];
    if (direct) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) slot[k] = (i64)word[ROW_OR_LAST(start, k)];
    } else {
#pragma unroll
        for (int k = 0; k < EACH; ++k) slot[k] = slots[ROW_OR_LAST(start, k)];
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) first[k] = owners[slot[k]];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        i64 row = ROW_OR_LAST(start, k);
        firsts[row] = first[k];
        marks[row] = first[k] == row;
    }
}

template <bool WHOLE>
static __device__ __forceinline__ void number(const int *__restrict__ running, i64 start, int rows,
                                              int *__restrict__ firsts, i64 *__restrict__ first_rows) {
    int first[EACH], code[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        i64 row = start + k * blockDim.x;
        first[k] = WHOLE || row < rows ? firsts[row] : 0;
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) code[k] = running[first[k]] - 1;
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        i64 row = start + k * blockDim.x;
        if (!WHOLE && row >= rows) return;
        firsts[row] = code[k];
        if (first[k] == row) first_rows[code[k]] = row;
    }
}

// running: sums of the marks; firsts become codes
extern "C" __global__ void number_rows(const int *__restrict__ running, int rows, int *__restrict__ firsts,
                                       i64 *__restrict__ first_rows) {
    if ((blockIdx.x + 1) * (i64)blockDim.x * EACH <= rows) number<true>(running, FIRST_ROW, rows, firsts, first_rows);
    else number<false>(running, FIRST_ROW, rows, firsts, first_rows);
}

// numbers: the code of each slot
extern "C" __global__ void look_up(const WORD *__restrict__ word, const int *__restrict__ numbers, int rows,
                                   int *__restrict__ codes) {
    i64 first = FIRST_ROW;
    WORD slot[EACH];
    int code[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) slot[k] = word[ROW_OR_LAST(first, k)];
#pragma unroll
    for (int k = 0; k < EACH; ++k) code[k] = numbers[slot[k]];
#pragma unroll
    for (int k = 0; k < EACH; ++k) codes[ROW_OR_LAST(first, k)] = code[k];
}

// how many rows of each group are valid; counts are preset to 0
extern "C" __global__ void count_rows(const int *__restrict__ codes, const u8 *__restrict__ valid, int nullable,
                                      int rows, int groups, u64 *counts) {
    __shared__ unsigned here[FEW];
    bool few = groups <= FEW;
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x) here[g] = 0;
    __syncthreads();
    i64 start = blockIdx.x * (i64)TILE + threadIdx.x;
    unsigned lane = threadIdx.x % 32;
    for (int first = 0; first < TILE; first += AHEAD * blockDim.x) {
        int code[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            i64 row = start + first + k * blockDim.x;
            code[k] = row < rows ? codes[row] : -1;
            if (nullable && row < rows && !valid[row]) code[k] = -1;
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            unsigned peers = __match_any_sync(~0u, code[k]);
            if (code[k] < 0 || (int)lane != __ffs(peers) - 1) continue;
            if (few) atomicAdd(&here[code[k]], (unsigned)__popc(peers));
            else atomicAdd(&counts[code[k]], (u64)__popc(peers));
        }
    }
    __syncthreads();
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x)
        if (here[g]) atomicAdd(&counts[g], (u64)here[g]);
}
