// What generated kernels begin with: functions of one row that C lacks or defines otherwise. No kernels are here.

template <class T> __device__ __forceinline__ T floor_divide(T a, T b) {
    if (b == 0) return 0;
    if (b == (T)-1 && (T)-1 < 0) return (T)(0ULL - (unsigned long long)a);  // the least number wraps
    T quotient = (T)(a / b);
    return (T)(quotient - (T)((a % b != 0) && ((a < 0) != (b < 0))));
}

template <class T> __device__ __forceinline__ T modulo(T a, T b) {
    if (b == 0 || (b == (T)-1 && (T)-1 < 0)) return 0;
    T rest = (T)(a % b);
    return (T)(rest != 0 && ((rest < 0) != (b < 0)) ? rest + b : rest);
}

__device__ __forceinline__ double exact_rest(double a, double b) { return fmod(a, b); }
__device__ __forceinline__ float exact_rest(float a, float b) { return fmodf(a, b); }

// The rest of a / b with the sign of b, and the quotient rounded down (as NumPy's divmod).
template <class T> __device__ __forceinline__ T modulo_float(T a, T b) {
    T rest = exact_rest(a, b);
    if (b == 0) return rest;
    if (rest == 0) return (T)copysign((double)0, (double)b);
    return (b < 0) != (rest < 0) ? rest + b : rest;
}

template <class T> __device__ __forceinline__ T floor_divide_float(T a, T b) {
    if (b == 0) return a / b;
    T rest = exact_rest(a, b), quotient = (a - rest) / b;
    if (rest != 0 && (b < 0) != (rest < 0)) quotient -= (T)1;
    if (quotient == 0) return (T)copysign((double)0, (double)(a / b));
    T down = (T)floor((double)quotient);
    return quotient - down > (T)0.5 ? down + (T)1 : down;
}

__device__ __forceinline__ unsigned long long power(unsigned long long base, unsigned long long exponent) {
    unsigned long long result = 1;
    for (; exponent; exponent >>= 1, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

// A float as an integer; what has no place there is the least integer, as on the CPU.
__device__ __forceinline__ long long to_integer(double x) {
    return x >= -9223372036854775808.0 && x < 9223372036854775808.0 ? (long long)x : -9223372036854775807LL - 1;
}

// -1, 0 or 1: how a signed and an unsigned integer of 64 bits compare.
__device__ __forceinline__ int order(long long a, unsigned long long b) {
    return a < 0 || (unsigned long long)a < b ? -1 : (unsigned long long)a > b;
}
__device__ __forceinline__ int order(unsigned long long a, long long b) { return -order(b, a); }

__device__ __forceinline__ long long round_half_away(long long value, long long unit) {
    long long down = value / unit, rest = value % unit;
    if (rest < 0) rest = -rest;
    return rest >= unit - rest ? down + (value < 0 ? -1 : 1) : down;
}

__device__ __forceinline__ long long half_even(long long down, long long rest, long long unit) {
    return down + (rest > unit - rest || (rest == unit - rest && (down & 1)));
}

// Rounds to a multiple of ten's power or of its inverse; not finite where the way there isn't.
template <class T> __device__ __forceinline__ T round_half_even(T x, T ten, bool fraction, bool scaled_up) {
    if (!isfinite(x)) return x;
    T scaled = scaled_up ? x * ten : x / ten;
    T rest = scaled - (T)floor((double)scaled);
    if (rest == 0) return x;
    scaled = rest == (T)0.5 ? (T)round((double)(scaled * (T)0.5)) * (T)2 : (T)round((double)scaled);
    return fraction ? scaled / ten : scaled * ten;
}

// The place of a value among ascending ones, or -1.
template <class T> __device__ __forceinline__ int find(const T *members, int count, T value) {
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (members[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low < count && members[low] == value ? low : -1;
}

// How many ascending values are at most a value; all for NaN.
__device__ __forceinline__ int count_up_to(const double *edges, int count, double value) {
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (!(edges[middle] > value)) low = middle + 1;
        else high = middle;
    }
    return low;
}

// The host's row hash (lineage/hashing.py).
__device__ __forceinline__ unsigned long long mix(unsigned long long word) {
    word = (word ^ word >> 27) * 0x3C79AC492BA7B653ULL;
    word = (word ^ word >> 33) * 0x1C69B3F74AC4AE35ULL;
    return word ^ word >> 27;
}

__device__ __forceinline__ unsigned long long float_word(double x) {
    if (x != x) return 0x7FF8000000000000ULL;
    return (unsigned long long)__double_as_longlong(x + 0.0);
}

// Dates from days since 1970 and back, after H. Hinnant, "chrono-compatible low-level date algorithms" (2013):
// years begin in March, so that the day that some lack comes last.
struct date_parts {
    long long year;
    int month, day;
};

__device__ __forceinline__ date_parts date_of(long long days) {
    long long shifted = days + 719468, era = floor_divide(shifted, 146097LL);
    unsigned in_era = (unsigned)(shifted - era * 146097);
    unsigned year = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    unsigned in_year = in_era - (365 * year + year / 4 - year / 100), march = (5 * in_year + 2) / 153;
    date_parts parts;
    parts.day = (int)(in_year - (153 * march + 2) / 5 + 1);
    parts.month = (int)(march < 10 ? march + 3 : march - 9);
    parts.year = (long long)year + era * 400 + (parts.month <= 2);
    return parts;
}

__device__ __forceinline__ long long days_of(long long year, int month, int day) {
    year -= month <= 2;
    long long era = floor_divide(year, 400LL);
    unsigned in_era = (unsigned)(year - era * 400);
    unsigned in_year = (153 * (unsigned)(month > 2 ? month - 3 : month + 9) + 2) / 5 + (unsigned)day - 1;
    return era * 146097 + (long long)(in_era * 365 + in_era / 4 - in_era / 100 + in_year) - 719468;
}

__device__ __forceinline__ long long year_of(long long days) { return date_of(days).year; }
__device__ __forceinline__ long long month_of(long long days) { return date_of(days).month; }
__device__ __forceinline__ long long day_of(long long days) { return date_of(days).day; }
__device__ __forceinline__ long long day_of_year(long long days) {
    return days - days_of(date_of(days).year, 1, 1) + 1;
}
__device__ __forceinline__ long long iso_week(long long days) {
    long long thursday = floor_divide(days + 3, 7LL) * 7;  // the Monday is 3 days earlier
    return (thursday - days_of(date_of(thursday).year, 1, 1)) / 7 + 1;
}
// The first day of the span of so many months, counted from a year's January, that a day lies in.
__device__ __forceinline__ long long month_start(long long days, long long months, long long origin) {
    date_parts parts = date_of(days);
    long long first = floor_divide((parts.year - origin) * 12 + parts.month - 1, months) * months;
    long long year = floor_divide(first, 12LL);
    return days_of(origin + year, (int)(first - year * 12) + 1, 1);
}
