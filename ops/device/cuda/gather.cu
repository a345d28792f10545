// build: -DINDEX=int -DNULLS=0
// build: -DINDEX=i64 -DNULLS=0
// build: -DINDEX=i64 -DNULLS=1
// Gather: the items of rows by their numbers, of all columns at once. With NULLS, rows below 0 give zeros, marked as
// null.
//
// ``columns`` has five words a column: where it lies, where it goes, its bytes an item; and with NULLS, where its
// validity bytes lie (0: there are none), and where those of the result go. A thread takes EACH rows, a block's width
// apart; those behind the last are the last again, as conditions would part loads from each other.

typedef unsigned long long Word;
typedef long long i64;

#define EACH 4

template <class Item>
static __device__ __forceinline__ void gather(const Word *column, const INDEX *row, const i64 *place) {
    const Item *items = (const Item *)column[0];
    Item *out = (Item *)column[1], item[EACH];
#if NULLS
    const unsigned char *valid = (const unsigned char *)column[3];
    unsigned char *marks = (unsigned char *)column[4];
    bool there[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        there[i] = row[i] >= 0;
        item[i] = there[i] ? items[row[i]] : (Item)0;
    }
    if (valid) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) there[i] = there[i] && valid[row[i]];
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        out[place[i]] = there[i] ? item[i] : (Item)0;
        marks[place[i]] = there[i];
    }
#else
#pragma unroll
    for (int i = 0; i < EACH; ++i) item[i] = items[row[i]];
#pragma unroll
    for (int i = 0; i < EACH; ++i) out[place[i]] = item[i];
#endif
}

extern "C" __global__ void __launch_bounds__(256) take_columns(const Word *columns, int width,
                                                               const INDEX *__restrict__ rows, i64 count) {
    i64 first = (i64)blockIdx.x * (256 * EACH) + threadIdx.x, place[EACH];
    INDEX row[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) place[i] = first + i * 256 < count ? first + i * 256 : count - 1;
#pragma unroll
    for (int i = 0; i < EACH; ++i) row[i] = rows[place[i]];
    for (const Word *column = columns; column != columns + 5 * width; column += 5) {
        switch ((int)column[2]) {
        case 1: gather<unsigned char>(column, row, place); break;
        case 2: gather<unsigned short>(column, row, place); break;
        case 4: gather<unsigned>(column, row, place); break;
        default: gather<Word>(column, row, place);
        }
    }
}
