// A hash table of 64-bit keys with open addressing: a slot is a key and the first row that has it, 16 bytes.
//
// Threads claim slots by compare-and-swap, so which slot a key gets depends on who comes first; the least row that
// each slot keeps doesn't. An empty slot has the key EMPTY and no row; that key itself has a slot behind the others.

typedef unsigned long long uint64;

#define EMPTY (~0ull)

__device__ __forceinline__ uint64 mixed(uint64 key) {
    key = (key ^ key >> 33) * 0xff51afd7ed558ccdull;
    key = (key ^ key >> 33) * 0xc4ceb9fe1a85ec53ull;
    return key ^ key >> 33;
}

__device__ __forceinline__ void keep_least(uint64 *row, uint64 mine) {
    if (*(volatile uint64 *)row > mine) atomicMin(row, mine);
}

// Puts in the rows that are known. There are ``mask`` + 1 slots, a power of two above the rows, and the one behind.
extern "C" __global__ void insert_keys(const unsigned long long *keys, const unsigned char *known, long long rows,
                                       unsigned long long mask, unsigned long long *slots) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows || !known[row]) return;
    uint64 key = keys[row], slot = key == EMPTY ? mask + 1 : mixed(key) & mask;
    while (key != EMPTY) {
        uint64 there = *(volatile uint64 *)&slots[2 * slot];
        if (there == EMPTY) there = atomicCAS(&slots[2 * slot], EMPTY, key);
        if (there == EMPTY || there == key) break;
        slot = (slot + 1) & mask;
    }
    keep_least(&slots[2 * slot + 1], (uint64)row);
}

// The first row of each key, -1 for one that isn't there or isn't known.
extern "C" __global__ void find_keys(const unsigned long long *keys, const unsigned char *known, long long rows,
                                     unsigned long long mask, const unsigned long long *slots, long long *found) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    long long result = -1;
    if (known[row]) {
        uint64 key = keys[row], slot = key == EMPTY ? mask + 1 : mixed(key) & mask;
        for (;;) {
            ulonglong2 there = ((const ulonglong2 *)slots)[slot];
            if (there.x == key) {
                result = (long long)there.y;  // EMPTY's is ~0, which is -1, if no row has that key
                break;
            }
            if (there.x == EMPTY) break;
            slot = (slot + 1) & mask;
        }
    }
    found[row] = result;
}

// The same for keys that are places in an array of rows.
extern "C" __global__ void insert_places(const unsigned long long *keys, const unsigned char *known, long long rows,
                                         unsigned long long *firsts) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows && known[row]) keep_least(&firsts[keys[row]], (uint64)row);
}

extern "C" __global__ void find_places(const unsigned long long *keys, const unsigned char *known, long long rows,
                                       const long long *firsts, long long *found) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) found[row] = known[row] ? firsts[keys[row]] : -1;
}
