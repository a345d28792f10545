// Concatenation: pieces of arrays are copied to where they go, all in one launch.
//
// ``pieces`` has five words a piece: where it lies (0: it is ones), where it goes, its bytes, a power of two that these
// three are multiples of, at most 16, and how many blocks come before its own. A block copies BLOCK bytes.

typedef unsigned long long Word;

#define THREADS 256
#define BLOCK 16384

template <class Item>
static __device__ __forceinline__ void copy(const Word *piece, Word first, Word size) {
    const int each = BLOCK / THREADS / (int)sizeof(Item), ahead = each < 16 ? each : 16;
    const Item *__restrict__ in = (const Item *)(piece[0] + first);
    Item *__restrict__ out = (Item *)(piece[1] + first);
    const int items = (int)(size / sizeof(Item));
#pragma unroll 1
    for (int start = threadIdx.x; start < items; start += ahead * THREADS) {
        Item held[ahead];
#pragma unroll
        for (int i = 0; i < ahead; ++i)  // behind the last item it is that one again
            held[i] = in[start + i * THREADS < items ? start + i * THREADS : items - 1];
#pragma unroll
        for (int i = 0; i < ahead; ++i) out[start + i * THREADS < items ? start + i * THREADS : items - 1] = held[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) copy_pieces(const Word *pieces, int count) {
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (pieces[5 * middle + 4] <= blockIdx.x) low = middle;
        else high = middle;
    }
    const Word *piece = pieces + 5 * low;
    Word first = (blockIdx.x - piece[4]) * (Word)BLOCK, left = piece[2] - first, size = left < BLOCK ? left : BLOCK;
    if (!piece[0]) {
        unsigned char *out = (unsigned char *)(piece[1] + first);
        for (int i = threadIdx.x; i < (int)size; i += THREADS) out[i] = 1;
        return;
    }
    switch ((int)piece[3]) {
    case 16: copy<ulonglong2>(piece, first, size); break;
    case 8: copy<Word>(piece, first, size); break;
    case 4: copy<unsigned>(piece, first, size); break;
    case 2: copy<unsigned short>(piece, first, size); break;
    default: copy<unsigned char>(piece, first, size);
    }
}
