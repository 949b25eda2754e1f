// What the streaming kernels share: the call's description, vectors of four cells, differences, layers, points, tiles.
//
// Fields are pitched: cell (z, y, x) of a shot lies z plane + y pitch + x floats after its first cell, in a frame of zeros
// or, in two dimensions, of images. Memories of absorbing layers are packed: only the cells a layer acts on, face by face.
#pragma once
#ifdef __CUDACC__
#define TWO_BLOCKS __launch_bounds__(256, 2)  // on a multiprocessor at the same time: at most 128 registers
#else
#include <cstring>
#define TWO_BLOCKS
#endif

constexpr int LANES = 4;     // cells along x that a thread updates, and the margin on both ends of a packed row
constexpr int THREADS = 256;
constexpr long long NOWHERE = -(1LL << 62);

enum Layer { CPML, SPONGE };
enum Keep { NOTHING, FULL, HALF };  // brackets: none in this step, float32, bfloat16

// One call. The host fills it field by field from a NumPy structure of the same layout.
struct Params {
    float* field[2];      // now and after at even steps, after and now at odd ones
    float* psi[2];        // a psi, or in the adjoint b P; the same
    float* zeta[2];       // a zeta, in place in [0], or in the adjoint b Z; the same
    float* past[2];       // the field that is run backwards
    const float* factor;
    const float* damping;  // of a sponge made for 1 m/s
    const float* sponges;  // [shot] what its sponge is made for
    const float* profile;  // [axis][a, 1 + b, b, b'][profile_stride], LANES guard cells first
    int* clock;            // the step, read from [parity] and passed on to the other
    const int* point_starts;
    const int* tap_cells;
    const int* tap_points;
    const float* tap_weights;
    float* samples;
    float* product;
    const int* shot_groups;
    const int* group_cells;
    const int* group_starts;
    const int* group_taps;
    const int* added_points;
    const float* added_weights;
    const float* signal;
    int* tile_starts;  // [shot tiles + 1], then [shot tiles] that tile_fill counts with
    int* tile_groups;
    void* brackets;
    float* total;
    float* ring;
    const float* profiles[3][4];  // the caller's, without guard cells
    long long field_stride, factor_stride, packed_stride, plane, cells, ring_cells;
    long long sample_shot, sample_step, sample_point, signal_shot, signal_step, signal_point;
    long long packed[3][2];  // where a face begins, by axis and side
    int n[3], pitch, columns, wide;  // of a row: in a field, packed, of a bracket
    int tiles[3], tile[3], extra;
    int low[3], high[3];            // a layer acts below and from
    int inner_low[3], inner_high[3];  // nothing but the plain update there
    int core_low[3], core_high[3];
    int points, steps, begin, every, slots, shots, models;
    int radius, profile_stride, flat, free_surface, periodic, saves_ring, aligned;
    float second[3][5], first[3][4];
};

__device__ inline int least(int a, int b) { return a < b ? a : b; }

__device__ inline int most(int a, int b) { return a > b ? a : b; }

struct alignas(16) Four {
    float v[LANES];
};

struct alignas(8) Halves {
    unsigned short v[LANES];
};

__device__ inline Four load4(const float* at) { return *reinterpret_cast<const Four*>(at); }

__device__ inline void store4(float* at, const Four& value) { *reinterpret_cast<Four*>(at) = value; }

__device__ inline Four zero4() { return Four{{0.0f, 0.0f, 0.0f, 0.0f}}; }

// The four first numbers of 16 bits of a float, rounded to even.
__device__ inline unsigned short bfloat_of(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ inline float of_bfloat(unsigned short half) {
    const unsigned bits = (unsigned)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Four cells of a bracket, whose rows are padded to whole vectors.
template <int KEEP>
__device__ inline void keep4(void* brackets, long long at, const Four& w) {
    if (KEEP == FULL) {
        store4((float*)brackets + at, w);
    } else {
        Halves halves;
#pragma unroll
        for (int k = 0; k < LANES; ++k) halves.v[k] = bfloat_of(w.v[k]);
        *reinterpret_cast<Halves*>((unsigned short*)brackets + at) = halves;
    }
}

template <int KEEP>
__device__ inline Four kept4(const void* brackets, long long at) {
    if (KEEP == FULL) return load4((const float*)brackets + at);
    const Halves halves = *reinterpret_cast<const Halves*>((const unsigned short*)brackets + at);
    Four w;
#pragma unroll
    for (int k = 0; k < LANES; ++k) w.v[k] = of_bfloat(halves.v[k]);
    return w;
}

// total += mu w on four cells; its rows, the caller's, begin on 16 bytes only where that is `aligned`.
__device__ inline void count4(const Params& p, long long at, const Four& mu, const Four& w, int first, int last) {
    float* to = p.total + at;
    if (p.aligned && first == 0 && last == LANES) {
        Four sum = load4(to);
#pragma unroll
        for (int k = 0; k < LANES; ++k) sum.v[k] += mu.v[k] * w.v[k];
        store4(to, sum);
    } else {
#pragma unroll
        for (int k = 0; k < LANES; ++k)
            if (k >= first && k < last) to[k] += mu.v[k] * w.v[k];
    }
}

// Which layer acts at i along an axis: 0 or 1, or -1 for none.
__device__ inline int side_of(const Params& p, int axis, int i) {
    return i < p.low[axis] ? 0 : i >= p.high[axis] ? 1 : -1;
}

// Where the memory of a face's cell lies; R guard cells stand on both ends of its own axis (LANES along x).
template <int R>
__device__ inline long long packed_at(const Params& p, int axis, int side, int z, int y, int x) {
    const int from = side == 0 ? 0 : p.high[axis], width = side == 0 ? p.low[axis] : p.n[axis] - p.high[axis];
    long long at = p.packed[axis][side];
    if (axis == 2) {
        const int row = (width + LANES - 1) / LANES * LANES + 2 * LANES;
        return at + ((long long)z * p.n[1] + y) * row + LANES + (x - from);
    }
    if (axis == 1) return at + ((long long)z * (width + 2 * R) + (y - from + R)) * p.columns + x;
    return at + ((long long)(z - from + R) * p.n[1] + y) * p.columns + x;
}

// Stores a cell's new value where the frame repeats it: odd above a free surface, or on the other side.
__device__ inline void repeat(const Params& p, float* field, int z, int y, int x, float value) {
    const int R = p.radius;
    if (p.free_surface && z >= 1 && z <= R) field[-(long long)z * p.plane + (long long)y * p.pitch + x] = -value;
    if (p.periodic) {
        const long long rows = p.n[0], columns = p.n[2];
        for (long long other = z + rows; other < rows + R; other += rows) field[other * p.plane + x] = value;
        for (long long other = z - rows; other >= -R; other -= rows) field[other * p.plane + x] = value;
        for (long long other = x + columns; other < columns + R; other += columns) field[z * p.plane + other] = value;
        for (long long other = x - columns; other >= -R; other -= columns) field[z * p.plane + other] = value;
    }
}

__device__ inline bool plain(const Params& p, const int* from) {
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
        inside = inside && from[axis] >= p.inner_low[axis] && from[axis] + p.tile[axis] <= p.inner_high[axis];
    return inside;
}

__device__ inline long long cell_of(const Params& p, int cell) {
    const int x = cell % p.n[2], row = cell / p.n[2];
    return (long long)(row / p.n[1]) * p.plane + (long long)(row % p.n[1]) * p.pitch + x;
}

// First cell of a tile along every axis.
__device__ inline void tile_begin(const Params& p, int tile, int* from) {
    from[2] = tile % p.tiles[2] * p.tile[2];
    from[1] = tile / p.tiles[2] % p.tiles[1] * p.tile[1];
    from[0] = tile / (p.tiles[2] * p.tiles[1]) * p.tile[0];
}

// Adds the signal to the cells of a tile after a step: a thread per cell, so every sum has one order.
__device__ inline void add_points(
    const Params& p, int shot, int tile, int step, float* field, const float* factor, bool core_only
) {
    const int tiles = p.tiles[0] * p.tiles[1] * p.tiles[2];
    const int begin = p.tile_starts[shot * tiles + tile], end = p.tile_starts[shot * tiles + tile + 1];
    if (begin == end) return;
    __syncthreads();
    for (int n = begin + (int)threadIdx.x; n < end; n += THREADS) {
        const int group = p.tile_groups[n], cell = p.group_cells[group];
        const int x = cell % p.n[2], y = cell / p.n[2] % p.n[1], z = cell / p.n[2] / p.n[1];
        if (core_only && (z < p.core_low[0] || z >= p.core_high[0] || y < p.core_low[1] || y >= p.core_high[1] ||
                          x < p.core_low[2] || x >= p.core_high[2]))
            continue;
        float sum = 0.0f;
        for (int k = p.group_starts[group]; k < p.group_starts[group + 1]; ++k) {
            const int tap = p.group_taps[k];
            sum += p.added_weights[tap] *
                   p.signal[shot * p.signal_shot + step * p.signal_step + p.added_points[tap] * p.signal_point];
        }
        const long long at = (long long)z * p.plane + (long long)y * p.pitch + x;
        const float value = field[at] + factor[at] * sum;
        field[at] = value;
        if (!core_only) repeat(p, field, z, y, x, value);
    }
}

// The n-th cell of the ring: the low and the high face of each axis in turn, R cells thick, each in C order.
template <int R>
__device__ inline long long ring_at(const Params& p, long long n) {
    int size[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) size[axis] = p.core_high[axis] - p.core_low[axis];
    for (int axis = 0; axis < 3; ++axis) {
        if (axis == 1 && p.flat) continue;
        const int along[3] = {axis == 0 ? R : size[0], axis == 1 ? R : size[1], axis == 2 ? R : size[2]};
        const long long face = (long long)along[0] * along[1] * along[2];
        for (int side = 0; side < 2; ++side, n -= face) {
            if (n >= face) continue;
            int cell[3] = {(int)(n / ((long long)along[1] * along[2])), (int)(n / along[2] % along[1]),
                           (int)(n % along[2])};
#pragma unroll
            for (int k = 0; k < 3; ++k)
                cell[k] += k != axis ? p.core_low[k] : side == 0 ? p.core_low[k] - R : p.core_high[k];
            // Rows have no guards along y: what lies there is zero, and left out.
            if (cell[1] < 0 || cell[1] >= p.n[1]) return NOWHERE;
            return cell[0] * p.plane + (long long)cell[1] * p.pitch + cell[2];
        }
    }
    return NOWHERE;
}

// The blocks before the tiles: points that read the field as it is before the step, and the ring around the core.
template <int R>
__device__ inline void sample_points(const Params& p, int shot, int step, const float* field) {
    const long long worker = (long long)blockIdx.x * THREADS + threadIdx.x, workers = (long long)p.extra * THREADS;
    if (p.samples != nullptr) {
        for (long long point = worker; point < p.points; point += workers) {
            const int begin = p.point_starts[shot * p.points + point], end = p.point_starts[shot * p.points + point + 1];
            float sum = 0.0f;
#pragma unroll 4
            for (int tap = begin; tap < end; ++tap) {
                const float value = p.tap_weights[tap] * field[cell_of(p, p.tap_cells[tap])];
                sum += value;
                if (p.product != nullptr) p.product[(long long)tap * p.steps + step] = value;
            }
            p.samples[shot * p.sample_shot + step * p.sample_step + point * p.sample_point] = sum;
        }
    }
    if (p.saves_ring) {
        float* ring = p.ring + ((long long)shot * p.steps + step) * p.ring_cells;
        for (long long n = worker; n < p.ring_cells; n += workers) {
            const long long at = ring_at<R>(p, n);
            if (at != NOWHERE) ring[n] = field[at];
        }
    }
}

// Puts the ring of a step around the core.
template <int R>
__device__ inline void bring_ring(const Params& p, int shot, int step, float* field) {
    const float* ring = p.ring + ((long long)shot * p.steps + step) * p.ring_cells;
    for (long long n = (long long)blockIdx.x * THREADS + threadIdx.x; n < p.ring_cells; n += (long long)p.extra * THREADS) {
        const long long at = ring_at<R>(p, n);
        if (at != NOWHERE) field[at] = ring[n];
    }
}

// Passes the step on, and gathers in the blocks before the tiles. Returns the tile of a block, -1 for those.
template <int R, bool BACK>
__device__ inline int tile_of_block(const Params& p, int parity, int step) {
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) p.clock[1 - parity] = step + (BACK ? -1 : 1);
    const int tile = (int)blockIdx.x - p.extra;
    if (tile < 0) sample_points<R>(p, blockIdx.y, step, p.field[parity] + blockIdx.y * p.field_stride);
    return tile;
}
