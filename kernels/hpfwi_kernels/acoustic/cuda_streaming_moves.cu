// What happens once per call: fields between the caller's dense layout and the pitched one, memories of the layers
// between dense and packed, profiles with guard cells, and which of the cells that a signal is added to lie in which tile.
#include "cuda_streaming.cuh"

__device__ inline long long worker() { return (long long)blockIdx.x * THREADS + threadIdx.x; }

__device__ inline long long workers() { return (long long)gridDim.x * THREADS; }

struct Place {
    int z, y, x;
};

__device__ inline Place place_of(const Params& p, long long cell) {
    const long long row = cell / p.n[2];
    return Place{(int)(row / p.n[1]), (int)(row % p.n[1]), (int)(cell % p.n[2])};
}

// dense[item dense_stride + cell] to or from field[item field_stride + ...], for the shots or models in blockIdx.y.
__global__ void __launch_bounds__(THREADS) to_field(
    const Params p, const float* dense, long long dense_stride, float* field, long long field_stride, int repeats
) {
    for (long long cell = worker(); cell < p.cells; cell += workers()) {
        const Place at = place_of(p, cell);
        const float value = dense[blockIdx.y * dense_stride + cell];
        float* own = field + blockIdx.y * field_stride;
        own[at.z * p.plane + (long long)at.y * p.pitch + at.x] = value;
        if (repeats) repeat(p, own, at.z, at.y, at.x, value);
    }
}

__global__ void __launch_bounds__(THREADS) from_field(
    const Params p, const float* field, long long field_stride, float* dense, long long dense_stride, int unused
) {
    for (long long cell = worker(); cell < p.cells; cell += workers()) {
        const Place at = place_of(p, cell);
        dense[blockIdx.y * dense_stride + cell] =
            field[blockIdx.y * field_stride + at.z * p.plane + (long long)at.y * p.pitch + at.x];
    }
}

template <int R>
__global__ void __launch_bounds__(THREADS) to_packed(
    const Params p, const float* dense, long long dense_stride, float* packed, long long unused, int axis
) {
    for (long long cell = worker(); cell < p.cells; cell += workers()) {
        const Place at = place_of(p, cell);
        const int side = side_of(p, axis, axis == 0 ? at.z : axis == 1 ? at.y : at.x);
        if (side >= 0)
            packed[blockIdx.y * p.packed_stride + packed_at<R>(p, axis, side, at.z, at.y, at.x)] =
                dense[blockIdx.y * dense_stride + cell];
    }
}

// Zero where the layer does not act.
template <int R>
__global__ void __launch_bounds__(THREADS) from_packed(
    const Params p, const float* packed, long long unused, float* dense, long long dense_stride, int axis
) {
    for (long long cell = worker(); cell < p.cells; cell += workers()) {
        const Place at = place_of(p, cell);
        const int side = side_of(p, axis, axis == 0 ? at.z : axis == 1 ? at.y : at.x);
        dense[blockIdx.y * dense_stride + cell] =
            side < 0 ? 0.0f
                     : packed[blockIdx.y * p.packed_stride + packed_at<R>(p, axis, side, at.z, at.y, at.x)];
    }
}

// Profiles, one of twelve per blockIdx.y, zero (1 + b: one) in the guard; and the first step.
__global__ void __launch_bounds__(THREADS) begin_call(const Params p, float* profile, int step) {
    const int axis = blockIdx.y / 4, which = blockIdx.y % 4;
    const float* from = p.profiles[axis][which];
    for (long long i = worker(); i < p.profile_stride; i += workers()) {
        const long long cell = i - LANES;
        const bool inside = from != nullptr && cell >= 0 && cell < p.n[axis];
        profile[(long long)blockIdx.y * p.profile_stride + i] = inside ? from[cell] : which == 1 ? 1.0f : 0.0f;
    }
    if (worker() == 0 && blockIdx.y == 0) {
        p.clock[0] = step;
        p.clock[1] = step;
    }
}

__device__ inline int tile_of(const Params& p, int cell) {
    const Place at = place_of(p, cell);
    return (at.z / p.tile[0] * p.tiles[1] + at.y / p.tile[1]) * p.tiles[2] + at.x / p.tile[2];
}

// How many groups each tile of each shot has. Counting is in any order; the counts are not.
__global__ void __launch_bounds__(THREADS) tile_count(const Params p) {
    const int shot = blockIdx.y, tiles = p.tiles[0] * p.tiles[1] * p.tiles[2];
    for (long long g = p.shot_groups[shot] + worker(); g < p.shot_groups[shot + 1]; g += workers())
        atomicAdd(p.tile_starts + 1 + shot * tiles + tile_of(p, p.group_cells[g]), 1);
}

// Counts become beginnings: one block, a run of tiles per thread, and then the runs.
__global__ void __launch_bounds__(THREADS) tile_scan(const Params p, int shots) {
    extern __shared__ float memory[];
    int* sums = reinterpret_cast<int*>(memory);
    const int all = shots * p.tiles[0] * p.tiles[1] * p.tiles[2], run = (all + THREADS - 1) / THREADS;
    const int me = threadIdx.x, begin = least(me * run, all), end = least(begin + run, all);
    int sum = 0;
    for (int n = begin; n < end; ++n) sum += p.tile_starts[1 + n];
    sums[me] = sum;
    __syncthreads();
    int before = 0;
    for (int other = 0; other < me; ++other) before += sums[other];
    for (int n = begin; n < end; ++n) {
        before += p.tile_starts[1 + n];
        p.tile_starts[1 + n] = before;
    }
}

// The groups of each tile. Their order within a tile may differ from run to run: each adds to a cell of its own.
__global__ void __launch_bounds__(THREADS) tile_fill(const Params p, int* cursor) {
    const int shot = blockIdx.y, tiles = p.tiles[0] * p.tiles[1] * p.tiles[2];
    for (long long g = p.shot_groups[shot] + worker(); g < p.shot_groups[shot + 1]; g += workers()) {
        const int tile = shot * tiles + tile_of(p, p.group_cells[g]);
        p.tile_groups[p.tile_starts[tile] + atomicAdd(cursor + tile, 1)] = (int)g;
    }
}

// The ring of the step that an adjoint run begins with.
template <int R>
__global__ void __launch_bounds__(THREADS) first_ring(const Params p, float* field, int step) {
    bring_ring<R>(p, blockIdx.y, step, field + blockIdx.y * p.field_stride);
}
