// build: -DREAL=float -DLANES=4 -DLAST=DESCENT -DSLOTS=0
// build: -DREAL=float -DLANES=4 -DLAST=MOMENTUM -DSLOTS=1
// build: -DREAL=float -DLANES=4 -DLAST=NESTEROV -DSLOTS=1
// build: -DREAL=float -DLANES=4 -DLAST=ADAGRAD -DSLOTS=1
// build: -DREAL=float -DLANES=4 -DLAST=ADAM -DSLOTS=2
// build: -DREAL=float -DLANES=4 -DLAST=LION -DSLOTS=1
// build: -DREAL=float -DLANES=4 -DLAST=DIRECTION -DSLOTS=2
// build: -DREAL=float -DLANES=1 -DLAST=ADAM -DSLOTS=2
// build: -DREAL=float -DLANES=4 -DFIRST=DECAY -DLAST=ADAM -DSLOTS=2
// build: -DREAL=float -DLANES=4 -DFIRST=DECAY -DLAST=LION -DSLOTS=1
// build: -DREAL=float -DLANES=4 -DFIRST=ADD_PARAMS -DLAST=DESCENT -DSLOTS=0
// build: -DREAL=float -DLANES=4 -DFIRST=SCALE -DSECOND=CLIP -DTHIRD=ADD_PARAMS -DLAST=ADAM -DSLOTS=2
// build: -DREAL=double -DLANES=2 -DLAST=DESCENT -DSLOTS=0
// build: -DREAL=double -DLANES=2 -DLAST=ADAM -DSLOTS=2
// build: -DREAL=double -DLANES=1 -DFIRST=SCALE -DLAST=DIRECTION -DSLOTS=2
//
// One step of an optimizer on each element: up to three changes before (FIRST, SECOND, THIRD, with one number each: a,
// b, c), then the step itself (LAST, with numbers n0 to n4 and SLOTS state arrays s and t). Each is written operation
// by operation as its part in ops/optim, in the type of the parameters; nothing is contracted, so bits are NumPy's.
// Other combinations than those above are compiled when a chain asks for them.

typedef REAL T;

#ifndef FIRST
#define FIRST NOTHING
#endif
#ifndef SECOND
#define SECOND NOTHING
#endif
#ifndef THIRD
#define THIRD NOTHING
#endif

#define NOTHING(number)
#define SCALE(number) g = g * number;
// comparisons are false for NaN, which stays
#define CLIP(number) g = g < -number ? -number : g; g = g > number ? number : g;
#define ADD_PARAMS(number) g = g + p * number;
#define DECAY(number) p = p * number;

#define DESCENT p = p - g * n0;
#define MOMENTUM s = s * n1; s = s + g; p = p - s * n0;
#define NESTEROV s = s * n1; s = s + g; p = p - (s * n1 + g) * n0;
#define ADAGRAD s = s + g * g; p = p - g / (root(s) + n1) * n0;
#define MOMENTS s = s + (g - s) * n2; t = t * n3 + g * g * n4;
#define ADAM MOMENTS p = p - s / (root(t) + n1) * n0;
#define DIRECTION MOMENTS g = s / (root(t) + n1) * n0;
#define LION \
    T away = g - s; \
    T sign = away * n1 + s; \
    s = s + away * n2; \
    T size = sign < 0 ? -sign : sign; \
    size = size < n3 ? n3 : size; \
    p = p - sign / size * n0;
#define KEEP

__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

struct __align__(sizeof(T) * LANES) Pack { T v[LANES]; };

// params, s and t are changed in place; kept gets the gradient as it was left, where that is wanted. Arrays that a
// step doesn't have aren't touched: SLOTS says how many there are, so that all loads come first; moves, whether params
// change.
extern "C" __global__ void optimizer_step(T *params, const T *grads, T *first_slot, T *second_slot, T *kept,
                                          int moves, int keep, long long n, T a, T b, T c, T n0, T n1,
                                          T n2, T n3, T n4) {
    long long begin = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    if (begin + LANES <= n) {
        Pack param = *(const Pack *)(params + begin), grad = *(const Pack *)(grads + begin), one, two;
        if (SLOTS > 0) one = *(const Pack *)(first_slot + begin);
        if (SLOTS > 1) two = *(const Pack *)(second_slot + begin);
#pragma unroll
        for (int i = 0; i < LANES; ++i) {
            T p = param.v[i], g = grad.v[i], s = one.v[i], t = two.v[i];
            FIRST(a) SECOND(b) THIRD(c)
            { LAST }
            param.v[i] = p; grad.v[i] = g; one.v[i] = s; two.v[i] = t;
        }
        if (moves) *(Pack *)(params + begin) = param;
        if (keep) *(Pack *)(kept + begin) = grad;
        if (SLOTS > 0) *(Pack *)(first_slot + begin) = one;
        if (SLOTS > 1) *(Pack *)(second_slot + begin) = two;
        return;
    }
    for (long long at = begin; at < n; ++at) {
        T p = params[at], g = grads[at], s = SLOTS > 0 ? first_slot[at] : T(0), t = SLOTS > 1 ? second_slot[at] : T(0);
        FIRST(a) SECOND(b) THIRD(c)
        { LAST }
        if (moves) params[at] = p;
        if (keep) kept[at] = g;
        if (SLOTS > 0) first_slot[at] = s;
        if (SLOTS > 1) second_slot[at] = t;
    }
}
