// One time step of every shot of a three-dimensional model in one launch.
//
// A block marches down a run of planes. Each of its 16 x 16 threads updates four cells of a plane and holds the 2 R + 1
// vectors above and below them in registers; the plane itself, with a halo, stands in shared memory, two planes in turn,
// so that one barrier per plane is enough. What the next plane needs is asked for before this one is computed. Where
// layers act and the stencil is long, registers are short: there the vectors above and below come from the first cache.
#include "cuda_streaming_layers.cuh"

constexpr int SIDE = 16;                       // threads along x, and along y
constexpr int WIDE = SIDE * LANES;             // cells along x
constexpr int ROW = WIDE + 2 * LANES;          // floats of a row in shared memory

enum Way { FORWARD, BACK, REWIND };

// The part of a plane's halo that a thread brings: one of 2 R rows of the tile's width, or of two columns of vectors.
struct Halo {
    int y, x, place;
    bool any;
};

template <int R>
__device__ inline Halo halo_of(const Params& p, const int* from) {
    const int me = threadIdx.x, rows = 2 * R * SIDE, row = me < rows ? me / SIDE : (me - rows) / 2;
    Halo halo;
    if (me < rows) {
        halo.y = row < R ? from[1] - R + row : from[1] + SIDE + row - R;
        halo.x = from[2] + me % SIDE * LANES;
        halo.place = (row < R ? row : row + SIDE) * ROW + LANES + me % SIDE * LANES;
    } else {
        const bool right = (me - rows) % 2;
        halo.y = from[1] + row;
        halo.x = right ? from[2] + WIDE : from[2] - LANES;
        halo.place = (R + row) * ROW + (right ? LANES + WIDE : 0);
    }
    halo.any = me < rows + 2 * SIDE;
    return halo;
}

// Rows have no guards along y and end with their frame along x: beyond it a plane is zero.
template <bool INNER>
__device__ inline Four read(const Params& p, const float* field, int z, int y, int x) {
    if (!INNER && (y < 0 || y >= p.n[1] || x >= p.n[2])) return zero4();
    return load4(field + z * p.plane + (long long)y * p.pitch + x);
}

template <int R, int LAYER, int KEEP, int WAY, bool INNER>
__device__ inline void march(const Params& p, int parity, int shot, int step, const int* from) {
    extern __shared__ float memory[];
    const float* now = (WAY == REWIND ? p.past[parity] : p.field[parity]) + shot * p.field_stride;
    float* after = (WAY == REWIND ? p.past[1 - parity] : p.field[1 - parity]) + shot * p.field_stride;
    const float* factor = p.factor + shot * p.factor_stride;
    const int across = threadIdx.x % SIDE, down = threadIdx.x / SIDE;
    const int y = from[1] + down, x = from[2] + across * LANES;
    const int* low = p.core_low;
    const int* high = p.core_high;
    const int begin = WAY == REWIND ? most(from[0], low[0]) : from[0];
    const int end = least(from[0] + p.tile[0], WAY == REWIND ? high[0] : p.n[0]);
    // Of a vector, the cells from `left` on and before `valid` are updated.
    const int left = WAY == REWIND && !INNER ? most(0, low[2] - x) : 0;
    const int valid = INNER ? LANES : least(LANES, (WAY == REWIND ? high[2] : p.n[2]) - x);
    const bool mine = INNER || (left < valid && (WAY == REWIND ? y >= low[1] && y < high[1] : y < p.n[1]));
    const bool whole = INNER || (left == 0 && valid == LANES);
    const long long kept = ((long long)shot * p.slots + (step - p.begin) / p.every) * p.n[0];  // plane of the bracket
    const Halo halo = halo_of<R>(p, from);
    float* const own = memory + (R + down) * ROW + LANES + across * LANES;
    constexpr bool PLAIN = INNER || WAY == REWIND;
    const float made_for = LAYER == SPONGE && !PLAIN ? p.sponges[shot] : 0.0f;
    constexpr int PLANE = (SIDE + 2 * R) * ROW;
    constexpr int HELD = INNER || R <= 2 ? R : 0;  // vectors held above, and below

    Four column[2 * HELD + 1], next = zero4(), edge = zero4(), before = zero4(), c = zero4();
#pragma unroll
    for (int i = 0; i < 2 * HELD; ++i) column[i] = read<INNER>(p, now, begin - HELD + i, y, x);
    if (begin < end) {
        next = read<INNER>(p, now, begin + HELD, y, x);
        if (halo.any) edge = read<INNER>(p, now, begin, halo.y, halo.x);
        before = read<INNER>(p, after, begin, y, x);
        c = read<INNER>(p, factor, begin, y, x);
    }
#pragma unroll 1
    for (int z = begin; z < end; ++z) {
        const int half = z % 2 * PLANE;
        column[2 * HELD] = next;
        const Four middle = column[HELD], before_now = before, c_now = c;
        store4(own + half, middle);
        if (halo.any) store4(memory + half + halo.place, edge);
        __syncthreads();
        if (z + 1 < end) {
            next = read<INNER>(p, now, z + 1 + HELD, y, x);
            if (halo.any) edge = read<INNER>(p, now, z + 1, halo.y, halo.x);
            before = read<INNER>(p, after, z + 1, y, x);
            c = read<INNER>(p, factor, z + 1, y, x);
        }
        if (mine) {
            const long long at = z * p.plane + (long long)y * p.pitch + x;
            const long long cell = ((long long)z * p.n[1] + y) * p.n[2] + x;
            const long long bracket = ((kept + z) * p.n[1] + y) * p.wide + x;
            if (WAY == BACK && KEEP != NOTHING)
                count4(p, shot * p.cells + cell, middle, kept4<KEEP>(p.brackets, bracket), 0, valid);
            Four w = across_x<R, LAYER, WAY == BACK, PLAIN>(
                p, 0, parity, shot, z, y, x,
                [&](int m) { return HELD == R || m == 0 ? column[HELD + m * (HELD == R)] : load4(now + at + m * p.plane); });
            const Four over = across_x<R, LAYER, WAY == BACK, PLAIN>(
                p, 1, parity, shot, z, y, x, [&](int m) { return m == 0 ? middle : load4(own + half + m * ROW); });
            Line line;
            line.set(load4(own + half - LANES), middle, load4(own + half + LANES));
            const Four along = along_x<R, LAYER, WAY == BACK, PLAIN>(p, parity, shot, z, y, x, line);
#pragma unroll
            for (int k = 0; k < LANES; ++k) w.v[k] += over.v[k] + along.v[k];
            if (WAY == FORWARD && KEEP != NOTHING) keep4<KEEP>(p.brackets, bracket, w);
            if (WAY == REWIND && KEEP != NOTHING)
                count4(p, shot * p.cells + cell, load4(p.field[parity] + shot * p.field_stride + at), w, left, valid);
            Four value;
#pragma unroll
            for (int k = 0; k < LANES; ++k)
                value.v[k] = c_now.v[k] * w.v[k] + (2.0f * middle.v[k] - before_now.v[k]);
            if (LAYER == SPONGE && !PLAIN) {
                const Four damping = load4(p.damping + at);
#pragma unroll
                for (int k = 0; k < LANES; ++k) value.v[k] -= made_for * damping.v[k] * (middle.v[k] - before_now.v[k]);
            }
            if (whole) {
                store4(after + at, value);
            } else {
#pragma unroll
                for (int k = 0; k < LANES; ++k)
                    if (k >= left && k < valid) after[at + k] = value.v[k];
            }
            if (!INNER && WAY != REWIND && p.free_surface && z <= R) {
#pragma unroll
                for (int k = 0; k < LANES; ++k)
                    if (k < valid) repeat(p, after, z, y, x + k, value.v[k]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * HELD; ++i) column[i] = column[i + 1];
    }
}

template <int R, int LAYER, int KEEP, int WAY>
__device__ inline void step_of_block(const Params& p, int parity) {
    const int shot = blockIdx.y, step = p.clock[parity], tile = tile_of_block<R, WAY == BACK>(p, parity, step);
    if (tile < 0) return;
    int from[3];
    tile_begin(p, tile, from);
    if (plain(p, from)) {
        march<R, LAYER, KEEP, WAY, true>(p, parity, shot, step, from);
    } else {
        march<R, LAYER, KEEP, WAY, false>(p, parity, shot, step, from);
    }
    add_points(p, shot, tile, step, p.field[1 - parity] + shot * p.field_stride, p.factor + shot * p.factor_stride,
               false);
}

template <int R, int LAYER, int KEEP>
__global__ void TWO_BLOCKS forward_3d(const Params p, int parity) {
    step_of_block<R, LAYER, KEEP, FORWARD>(p, parity);
}

template <int R, int LAYER, int KEEP>
__global__ void TWO_BLOCKS back_3d(const Params p, int parity) {
    step_of_block<R, LAYER, KEEP, BACK>(p, parity);
}

// As in two dimensions.
template <int R, bool COUNT>
__global__ void TWO_BLOCKS rewind_3d(const Params p, int parity) {
    const int shot = blockIdx.y, step = p.clock[1 - parity] + 1, tile = (int)blockIdx.x - p.extra;
    float* before = p.past[1 - parity] + shot * p.field_stride;
    if (tile < 0) {
        if (step > p.begin) bring_ring<R>(p, shot, step - 1, before);
        return;
    }
    int from[3];
    tile_begin(p, tile, from);
    bool inside = true;
#pragma unroll
    for (int axis = 1; axis < 3; ++axis)
        inside = inside && from[axis] >= most(R, p.core_low[axis]) &&
                 from[axis] + p.tile[axis] <= least(p.core_high[axis], p.n[axis] - R);
    if (inside) {
        march<R, SPONGE, COUNT ? FULL : NOTHING, REWIND, true>(p, parity, shot, step, from);
    } else {
        march<R, SPONGE, COUNT ? FULL : NOTHING, REWIND, false>(p, parity, shot, step, from);
    }
    add_points(p, shot, tile, step, before, p.factor + shot * p.factor_stride, true);
}
