// build: -DBITS=8
// build: -DBITS=16
// build: -DBITS=32
// Range segments: how many of the sorted boundaries each row doesn't come before, in BITS bits.
//
// ``keys`` has five words a key: where its values lie, the kind (numbered as in row_hash.py; 11 is a validity byte),
// what the word of a value is flipped with, for strings where the codes' ranks lie, and where the boundaries' words
// lie. Words are in the order of the values.

typedef unsigned long long Word;
#if BITS == 8
typedef unsigned char Segment;
#elif BITS == 16
typedef unsigned short Segment;
#else
typedef unsigned Segment;
#endif

#define SIGN (1ull << 63)

static __device__ __forceinline__ Word ordered(double value) {
    if (value != value) return 0xfff8000000000000ull;
    if (value == 0) return SIGN;
    Word bits = (Word)__double_as_longlong(value);
    return bits & SIGN ? ~bits : bits | SIGN;
}

static __device__ __forceinline__ Word word_of(const Word *key, long long row) {
    switch ((int)key[1]) {
    case 0: case 11: return ((const unsigned char *)key[0])[row];
    case 1: return ((const unsigned short *)key[0])[row];
    case 2: return ((const unsigned *)key[0])[row];
    case 3: return (Word)(long long)((const signed char *)key[0])[row] ^ SIGN;
    case 4: return (Word)(long long)((const short *)key[0])[row] ^ SIGN;
    case 5: return (Word)(long long)((const int *)key[0])[row] ^ SIGN;
    case 6: return ordered((double)((const float *)key[0])[row]);
    case 7: return ordered(((const double *)key[0])[row]);
    case 10: return ((const Word *)key[3])[((const int *)key[0])[row]];
    case 12: return ((const Word *)key[0])[row];
    default: return ((const Word *)key[0])[row] ^ SIGN;  // 8: int64; 9: decimals
    }
}

extern "C" __global__ void range_segments(const Word *keys, int count, int boundaries, long long rows, Segment *out) {
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int low = 0, high = boundaries;
    for (int k = 0; k < count && low < high; ++k) {
        const Word *key = keys + 5 * k, *bounds = (const Word *)key[4];
        Word word = word_of(key, row) ^ key[2];
        int first = low, last = high;  // the first boundary that isn't below the row
        while (first < last) {
            int middle = (first + last) >> 1;
            if (bounds[middle] < word) first = middle + 1;
            else last = middle;
        }
        low = first;
        if (first == high || bounds[first] != word) break;
        if (k == count - 1) {  // boundaries differ, so one at most is equal in all keys
            ++low;
            break;
        }
        last = high;
        while (first < last) {
            int middle = (first + last) >> 1;
            if (bounds[middle] <= word) first = middle + 1;
            else last = middle;
        }
        high = first;
    }
    out[row] = (Segment)low;
}
