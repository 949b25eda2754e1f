// One time step of every shot of a two-dimensional model in one launch, for fields that do not fit on chip.
//
// A thread updates ROWS rows of four cells; what its neighbours read too comes from the first cache, so there is no
// barrier and no shared memory. Blocks that no layer, image or edge touches run the plain update alone.
#include "cuda_streaming_layers.cuh"

constexpr int ROWS = 4;  // a block's tile: a warp takes 128 cells of a row, eight warps 32 rows

// What N rows of a thread's cells read above and below: N + 2 R rows of its own columns.
template <int R, int N>
struct Columns {
    Four row[N + 2 * R];

    __device__ void read(const Params& p, const float* field, int z, int x, bool inner) {
#pragma unroll
        for (int i = 0; i < N + 2 * R; ++i)
            row[i] = inner || z + i < p.n[0] + 2 * R ? load4(field + (z + i - R) * p.pitch + x) : zero4();
    }
};

// w of four cells: row j of those that u holds.
template <int R, int LAYER, bool BACK, bool INNER, int N>
__device__ inline Four bracket_of(
    const Params& p, int parity, int shot, int z, int x, const Columns<R, N>& u, int j, const float* row
) {
    Line line;
    line.read(row, u.row[j + R], x);
    const Four along = along_x<R, LAYER, BACK, INNER>(p, parity, shot, z, 0, x, line);
    Four w = across_x<R, LAYER, BACK, INNER>(p, 0, parity, shot, z, 0, x, [&](int m) { return u.row[j + R + m]; });
#pragma unroll
    for (int k = 0; k < LANES; ++k) w.v[k] += along.v[k];
    return w;
}

// One step, forward or back, on N rows of a thread's cells. KEEP: w is written (forward), or counted with mu (back).
template <int R, int LAYER, int KEEP, bool BACK, bool INNER, int N>
__device__ inline void update(const Params& p, int parity, int shot, int step, int z, int x) {
    const float* now = p.field[parity] + shot * p.field_stride;
    float* after = p.field[1 - parity] + shot * p.field_stride;
    const float* factor = p.factor + shot * p.factor_stride;
    const int valid = INNER ? LANES : least(LANES, p.n[2] - x);
    const long long kept = ((long long)shot * p.slots + (step - p.begin) / p.every) * p.n[0];  // row of the bracket
    Columns<R, N> u;
    u.read(p, now, z, x, INNER);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int at = (z + j) * p.pitch + x;
        const Four middle = u.row[j + R], before = load4(after + at), c = load4(factor + at);
        const long long bracket = (kept + z + j) * p.wide + x;
        if (BACK && KEEP != NOTHING)
            count4(p, shot * p.cells + (long long)(z + j) * p.n[2] + x, middle, kept4<KEEP>(p.brackets, bracket), 0, valid);
        const Four w = bracket_of<R, LAYER, BACK, INNER>(p, parity, shot, z + j, x, u, j, now + (z + j) * p.pitch);
        if (!BACK && KEEP != NOTHING) keep4<KEEP>(p.brackets, bracket, w);
        Four value;
#pragma unroll
        for (int k = 0; k < LANES; ++k) value.v[k] = c.v[k] * w.v[k] + (2.0f * middle.v[k] - before.v[k]);
        if (!INNER && LAYER == SPONGE) {
            const Four damping = load4(p.damping + at);
            const float made_for = p.sponges[shot];
#pragma unroll
            for (int k = 0; k < LANES; ++k) value.v[k] -= made_for * damping.v[k] * (middle.v[k] - before.v[k]);
        }
        if (valid == LANES) {
            store4(after + at, value);
        } else {
#pragma unroll
            for (int k = 0; k < LANES; ++k)
                if (k < valid) after[at + k] = value.v[k];
        }
        if (!INNER && (p.free_surface || p.periodic)) {
#pragma unroll
            for (int k = 0; k < LANES; ++k)
                if (k < valid) repeat(p, after, z + j, 0, x + k, value.v[k]);
        }
    }
}

template <int R, int LAYER, int KEEP, bool BACK>
__device__ inline void step_of_block(const Params& p, int parity) {
    const int shot = blockIdx.y, step = p.clock[parity], tile = tile_of_block<R, BACK>(p, parity, step);
    if (tile < 0) return;
    int from[3];
    tile_begin(p, tile, from);
    const int z = from[0] + (int)threadIdx.x / 32 * ROWS, x = from[2] + (int)threadIdx.x % 32 * LANES;
    if (plain(p, from)) {
        update<R, LAYER, KEEP, BACK, true, ROWS>(p, parity, shot, step, z, x);
    } else if (x < p.n[2]) {
        // Row by row: what layers need leaves no registers for more.
#pragma unroll 1
        for (int row = z; row < least(z + ROWS, p.n[0]); ++row)
            update<R, LAYER, KEEP, BACK, false, 1>(p, parity, shot, step, row, x);
    }
    add_points(p, shot, tile, step, p.field[1 - parity] + shot * p.field_stride,
                  p.factor + shot * p.factor_stride, false);
}

template <int R, int LAYER, int KEEP>
__global__ void TWO_BLOCKS forward_2d(const Params p, int parity) {
    step_of_block<R, LAYER, KEEP, false>(p, parity);
}

template <int R, int LAYER, int KEEP>
__global__ void TWO_BLOCKS back_2d(const Params p, int parity) {
    step_of_block<R, LAYER, KEEP, true>(p, parity);
}

// Runs the field one step backwards in the core, from u(t + 1) and u(t) to u(t - 1) in the place of the former; w(t) is
// counted with mu(t + 1), which stands in field[parity], where COUNT says so. Its own `extra` blocks bring the ring.
template <int R, bool COUNT>
__global__ void TWO_BLOCKS rewind_2d(const Params p, int parity) {
    const int shot = blockIdx.y, step = p.clock[1 - parity] + 1;  // the adjoint's step has passed the clock on
    const float* now = p.past[parity] + shot * p.field_stride;
    float* before = p.past[1 - parity] + shot * p.field_stride;
    if ((int)blockIdx.x < p.extra) {
        if (step > p.begin) bring_ring<R>(p, shot, step - 1, before);
        return;
    }
    const int tile = blockIdx.x - p.extra;
    int from[3];
    tile_begin(p, tile, from);
    const int z = from[0] + (int)threadIdx.x / 32 * ROWS, x = from[2] + (int)threadIdx.x % 32 * LANES;
    const int first = most(0, p.core_low[2] - x), last = least(LANES, p.core_high[2] - x);
    const float* factor = p.factor + shot * p.factor_stride;
    if (first < last) {
        Columns<R, ROWS> u;
        u.read(p, now, z, x, false);
#pragma unroll
        for (int j = 0; j < ROWS; ++j) {
            if (z + j < p.core_low[0] || z + j >= p.core_high[0]) continue;
            const int at = (z + j) * p.pitch + x;
            const Four middle = u.row[j + R], after = load4(before + at), c = load4(factor + at);
            const Four w = bracket_of<R, SPONGE, false, true>(p, parity, shot, z + j, x, u, j, now + (z + j) * p.pitch);
            if (COUNT) {
                const Four mu = load4(p.field[parity] + shot * p.field_stride + at);
                count4(p, shot * p.cells + (long long)(z + j) * p.n[2] + x, mu, w, first, last);
            }
#pragma unroll
            for (int k = 0; k < LANES; ++k)
                if (k >= first && k < last) before[at + k] = c.v[k] * w.v[k] + (2.0f * middle.v[k] - after.v[k]);
        }
    }
    add_points(p, shot, tile, step, before, factor, true);
}
