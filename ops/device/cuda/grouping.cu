// Groups of rows with equal key words. A slot ends up with the first row of its key, whichever thread comes first:
// a row once written to a slot is only ever replaced by an earlier row of the same key.
typedef unsigned char u8;
typedef unsigned long long u64;
typedef long long i64;

#define FREE 0x7fffffff
#define TILE 4096
#define FEW 1024

__device__ __forceinline__ u64 mixed(u64 h) {
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}

// words: count x rows; owners: mask + 1 slots, preset to FREE; slots: the slot of each row
extern "C" __global__ void claim_hashed(const u64 *words, int count, int rows, int *owners, u64 mask, unsigned *slots) {
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
            const u64 *word = words + (i64)w * rows;
            same = word[owner] == word[row];
        }
        if (!same) continue;
        if (row < owner) atomicMin(&owners[slot], row);
        break;
    }
    slots[row] = (unsigned)slot;
}

// one word a row, below the number of slots
extern "C" __global__ void claim_direct(const u64 *word, int rows, int *owners) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int *owner = &owners[word[row]];
    if (row < *(volatile int *)owner) atomicMin(owner, row);
}

// firsts: the first row that is equal to each; marks: 1 where that is the row itself. One of slots and word is used
extern "C" __global__ void find_firsts(const int *owners, const unsigned *slots, const u64 *word, int direct, int rows,
                                       int *firsts, int *marks) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int first = owners[direct ? (i64)word[row] : (i64)slots[row]];
    firsts[row] = first;
    marks[row] = first == row;
}

// running: sums of the marks; firsts become codes
extern "C" __global__ void number_rows(const int *running, int rows, int *firsts, i64 *first_rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int first = firsts[row], code = running[first] - 1;
    firsts[row] = code;
    if (first == row) first_rows[code] = row;
}

// numbers: the code of each slot
extern "C" __global__ void look_up(const u64 *word, const int *numbers, int rows, int *codes) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) codes[row] = numbers[word[row]];
}

// how many rows of each group are valid; counts are preset to 0
extern "C" __global__ void count_rows(const int *codes, const u8 *valid, int nullable, int rows, int groups,
                                      u64 *counts) {
    __shared__ unsigned here[FEW];
    bool few = groups <= FEW;
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x) here[g] = 0;
    __syncthreads();
    i64 start = blockIdx.x * (i64)TILE;
    unsigned lane = threadIdx.x % 32;
    for (int k = threadIdx.x; k < TILE; k += blockDim.x) {
        i64 row = start + k;
        int code = row < rows && (!nullable || valid[row]) ? codes[row] : -1;
        unsigned peers = __match_any_sync(~0u, code);
        if (code < 0 || (int)lane != __ffs(peers) - 1) continue;
        if (few) atomicAdd(&here[code], (unsigned)__popc(peers));
        else atomicAdd(&counts[code], (u64)__popc(peers));
    }
    __syncthreads();
    for (int g = threadIdx.x; few && g < groups; g += blockDim.x)
        if (here[g]) atomicAdd(&counts[g], (u64)here[g]);
}
