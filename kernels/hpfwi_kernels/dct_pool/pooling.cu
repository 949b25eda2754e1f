// The multi-frequency pooling on a GPU, and its gradient: a block works on one plane, x is read once, nothing is added
// atomically. README.md has the equations. No header is included, so that any compiler of CUDA C++ takes the file as it is;
// the tests also compile it for the processor, with threads as fibers.
//
// Threads stand in `side` columns by a few slices of rows. Each walks down its column of the pooled plane and keeps the
// extremes for every distinct row frequency; slices and then columns are brought together in shared memory, in an order
// that keeps the first of equal cells.

typedef long long i64;

#define SEARCHERS 4  // threads that look for one frequency's extreme among the columns

// rows, columns: of a plane; slices: of rows, in a block; count: of frequencies; pitches: of lines of cosines.
#define SIZES int rows, int columns, int side, int slices, int count, int row_pitch, int column_pitch

// Whether a cell takes the place of the one found so far: NaN always does, and of equal ones that which comes first.
template <typename REAL>
__device__ inline bool replaces(REAL value, int cell, REAL found, int found_cell, bool largest) {
    return found_cell < 0 || (largest ? value > found : value < found) || (value == found && cell < found_cell) ||
           value != value;
}

// row_bins, column_bins [side, 2], weight [rows, columns], pairs [count, 2]; positions [plane, 2, count] or null. A block
// has side x slices threads.
template <typename REAL, int LINES>
__global__ void __launch_bounds__(256) forward(
    const REAL* x, const REAL* weight, const int* row_bins, const REAL* row_weight, const int* column_bins,
    const REAL* row_factor, const REAL* column_factor, const int* pairs, REAL* mean, REAL* high, REAL* low,
    int* positions, SIZES
) {
    extern __shared__ float memory[];
    const int threads = blockDim.x, me = threadIdx.x, j = me % side, part = me / side;
    const int searches = 2 * count * SEARCHERS;
    REAL* const extreme = (REAL*)memory;                // [largest, smallest][LINES][threads]
    REAL* const best = extreme + 2 * LINES * threads;   // [searches]
    REAL* const sums = best + searches;                 // [threads]
    int* const at = (int*)(sums + threads);             // rows of `extreme`
    int* const where = at + 2 * LINES * threads;        // cells of `best`
    const i64 q = blockIdx.x;
    const REAL* plane = x + q * rows * columns;

    REAL total = 0;
    for (int cell = me; cell < rows * columns; cell += threads) total += weight[cell] * plane[cell];
    sums[me] = total;

    const int first = column_bins[2 * j], end = column_bins[2 * j + 1];
    const REAL scale = REAL(1) / REAL(end - first);
    const int per_slice = (side + slices - 1) / slices, begin = part * per_slice, stop = min(begin + per_slice, side);
    REAL most[LINES] = {}, least[LINES] = {};
    int most_at[LINES], least_at[LINES];
#pragma unroll
    for (int u = 0; u < LINES; ++u) most_at[u] = least_at[u] = -1;  // none, as in a slice beyond the last row
    for (int i = begin; i < stop; ++i) {
        REAL value = 0;
        for (int r = row_bins[2 * i]; r < row_bins[2 * i + 1]; ++r)
            for (int c = first; c < end; ++c) value += plane[r * columns + c];
        value *= scale * row_weight[i];
#pragma unroll
        for (int u = 0; u < LINES; ++u) {
            const REAL p = row_factor[u * row_pitch + i] * value;
            if (replaces(p, i, most[u], most_at[u], true)) most[u] = p, most_at[u] = i;
            if (replaces(p, i, least[u], least_at[u], false)) least[u] = p, least_at[u] = i;
        }
    }
#pragma unroll
    for (int u = 0; u < LINES; ++u) {
        extreme[u * threads + me] = most[u], at[u * threads + me] = most_at[u];
        extreme[(LINES + u) * threads + me] = least[u], at[(LINES + u) * threads + me] = least_at[u];
    }
    __syncthreads();

    const int columns_per_search = (side + SEARCHERS - 1) / SEARCHERS;
    for (int search = me; search < searches; search += threads) {
        const int k = search / SEARCHERS, from = search % SEARCHERS * columns_per_search, n = k % count;
        const bool largest = k < count;
        const int u = pairs[2 * n], to = min(from + columns_per_search, side);
        REAL found = 0;
        int cell = -1;
        for (int c = from; c < to; ++c) {
            const REAL g = column_factor[pairs[2 * n + 1] * column_pitch + c];
            // A negative factor makes the column's smallest value its largest.
            const int line = (g >= 0) == largest ? u : LINES + u;
            for (int s = 0; s < slices; ++s) {
                const int place = line * threads + s * side + c;
                if (at[place] < 0) continue;
                const REAL value = g * extreme[place];
                const int here = at[place] * side + c;
                if (replaces(value, here, found, cell, largest)) found = value, cell = here;
            }
        }
        best[search] = found, where[search] = cell;
    }
    __syncthreads();

    if (me < 2) {
        REAL result = 0;
        for (int n = 0; n < count; ++n) {
            REAL found = 0;
            int cell = -1;
            for (int s = 0; s < SEARCHERS; ++s) {
                const int search = (me * count + n) * SEARCHERS + s;
                if (where[search] >= 0 && replaces(best[search], where[search], found, cell, me == 0))
                    found = best[search], cell = where[search];
            }
            result += found;
            if (positions) positions[(q * 2 + me) * count + n] = cell;
        }
        (me == 0 ? high : low)[q] = result / REAL(count);
    }
    if (me == 2) {
        // In order of the threads, so that the bits do not change from run to run.
        total = 0;
        for (int t = 0; t < threads; ++t) total += sums[t];
        mean[q] = total;
    }
}

// The gradient of x, cell by cell; every cell looks for the bins that hold it.
template <typename REAL>
__global__ void __launch_bounds__(128) gradient(
    REAL* out, const REAL* weight, const int* row_bins, const REAL* row_weight, const int* column_bins,
    const REAL* row_factor, const REAL* column_factor, const int* pairs, const REAL* mean, const REAL* high,
    const REAL* low, const int* positions, SIZES
) {
    extern __shared__ float memory[];
    const int points = 2 * count, me = threadIdx.x;
    REAL* const value = (REAL*)memory;           // [points]
    int* const limits = (int*)(value + points);  // [points][4]
    const i64 q = blockIdx.x;
    for (int point = me; point < points; point += blockDim.x) {
        const int n = point % count, cell = positions[q * points + point], i = cell / side, j = cell % side;
        int* own = limits + 4 * point;
        own[0] = row_bins[2 * i], own[1] = row_bins[2 * i + 1];
        own[2] = column_bins[2 * j], own[3] = column_bins[2 * j + 1];
        const REAL above = point < count ? high[q] : low[q], bin_weight = row_weight[i] / REAL(own[3] - own[2]);
        value[point] = above / REAL(count) * row_factor[pairs[2 * n] * row_pitch + i] *
                       column_factor[pairs[2 * n + 1] * column_pitch + j] * bin_weight;
    }
    __syncthreads();
    REAL* plane = out + q * rows * columns;
    for (int cell = me; cell < rows * columns; cell += blockDim.x) {
        const int r = cell / columns, c = cell % columns;
        REAL total = mean[q] * weight[cell];
        for (int point = 0; point < points; ++point) {
            const int* own = limits + 4 * point;
            if (own[0] <= r && r < own[1] && own[2] <= c && c < own[3]) total += value[point];
        }
        plane[cell] = total;
    }
}
