// Radix select: how the words of one prefix spread over the next 11 bits.

#define BINS 2048
#define EACH 16

// Counts words whose bits above ``shift + 11`` are ``prefix``, by the 11 bits above ``shift``. ``counts`` comes as zeros.
extern "C" __global__ void count_digits(const unsigned long long *words, long long rows, int shift,
                                        unsigned long long prefix, unsigned long long *counts) {
    __shared__ unsigned here[BINS];
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) here[bin] = 0;
    __syncthreads();
    long long tile = (long long)blockDim.x * EACH, stride = tile * gridDim.x;
    for (long long start = tile * blockIdx.x; start < rows; start += stride) {
        unsigned long long digits[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            long long row = start + (long long)i * blockDim.x + threadIdx.x;
            if (row < rows) digits[i] = words[row] >> shift;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            long long row = start + (long long)i * blockDim.x + threadIdx.x;
            if (row < rows && digits[i] >> 11 == prefix) atomicAdd(&here[digits[i] & (BINS - 1)], 1u);
        }
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        if (here[bin]) atomicAdd(&counts[bin], (unsigned long long)here[bin]);
}
