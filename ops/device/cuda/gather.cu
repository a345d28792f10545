// build: -DWIDTH=1
// build: -DWIDTH=2
// build: -DWIDTH=4
// build: -DWIDTH=8
// Gather: the items of rows by their numbers, and zeros, marked as null, for rows below 0.

#if WIDTH == 1
typedef unsigned char Item;
#elif WIDTH == 2
typedef unsigned short Item;
#elif WIDTH == 4
typedef unsigned Item;
#else
typedef unsigned long long Item;
#endif

#define EACH 4

extern "C" __global__ void take_or_null(const Item *items, const unsigned char *valid, int nulls,
                                        const long long *rows, long long count, Item *out, unsigned char *marks) {
    long long first = (long long)blockIdx.x * blockDim.x * EACH + threadIdx.x;
    long long row[EACH];
    Item item[EACH];
    bool there[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long place = first + (long long)i * blockDim.x;
        row[i] = place < count ? rows[place] : -1;
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        item[i] = row[i] >= 0 ? items[row[i]] : (Item)0;
        there[i] = row[i] >= 0 && (!nulls || valid[row[i]]);
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        long long place = first + (long long)i * blockDim.x;
        if (place >= count) continue;
        out[place] = there[i] ? item[i] : (Item)0;
        marks[place] = there[i];
    }
}
