// One time step of every shot of a two-dimensional model in one launch, for fields that do not fit on chip.
//
// A thread updates ROWS rows of four cells; what its neighbours read too comes from the first cache, so there is no
// barrier and no shared memory. Blocks that no layer, image or edge touches run the plain update alone.
#include "cuda_streaming.cuh"

constexpr int ROWS = 4;
constexpr int WIDE = 32 * LANES;              // cells along x of a block: a warp takes a row
constexpr int TALL = THREADS / 32 * ROWS;     // and along z

// What N rows of a thread's cells read above and below: N + 2 R rows of its own columns.
template <int R, int N>
struct Columns {
    Four row[N + 2 * R];

    __device__ void read(const Params& p, const float* field, int z, int x, bool inner) {
#pragma unroll
        for (int i = 0; i < N + 2 * R; ++i)
            row[i] = inner || z + i < p.n[0] + 2 * R ? load4(field + (z + i - R) * p.pitch + x) : zero4();
    }

    __device__ float at(int j, int m, int k) const { return row[j + R + m].v[k]; }
};

struct Line {
    float v[3 * LANES];

    __device__ void read(const float* row, const Four& middle, int x) {
        set(load4(row + x - LANES), middle, load4(row + x + LANES));
    }

    __device__ void set(const Four& left, const Four& middle, const Four& right) {
#pragma unroll
        for (int k = 0; k < LANES; ++k) {
            v[k] = left.v[k];
            v[LANES + k] = middle.v[k];
            v[2 * LANES + k] = right.v[k];
        }
    }

    __device__ float at(int k, int m) const { return v[LANES + k + m]; }
};

// A line of packed memory or of a profile.
__device__ inline Line line_of(const float* middle) {
    Line line;
    line.set(load4(middle - LANES), load4(middle), load4(middle + LANES));
    return line;
}

template <int R>
__device__ inline Four layer_x(const Params& p, int parity, long long at, int x, const Line& u) {
    const Line psi = line_of(p.psi[parity] + at);
    const Four zeta = load4(p.zeta[0] + at);
    Four bracket, psi_after, zeta_after;
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
        const Term term = layer<R>(
            p, 2, profile_at(p, 2, x + k), zeta.v[k], [&](int m) { return u.at(k, m); },
            [&](int m) { return psi.at(k, m); });
        bracket.v[k] = term.bracket;
        psi_after.v[k] = term.psi;
        zeta_after.v[k] = term.zeta;
    }
    store4(p.psi[1 - parity] + at, psi_after);
    store4(p.zeta[0] + at, zeta_after);
    return bracket;
}

// Along z: `stride` floats from a row of packed memory to the next.
template <int R, int N>
__device__ inline Four layer_z(
    const Params& p, int parity, long long at, long long stride, int z, const Columns<R, N>& u, int j
) {
    Four psi[2 * R + 1];
#pragma unroll
    for (int m = -R; m <= R; ++m) psi[m + R] = load4(p.psi[parity] + at + m * stride);
    const Four zeta = load4(p.zeta[0] + at);
    const Profile profile = profile_at(p, 0, z);
    Four bracket, psi_after, zeta_after;
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
        const Term term = layer<R>(
            p, 0, profile, zeta.v[k], [&](int m) { return u.at(j, m, k); }, [&](int m) { return psi[m + R].v[k]; });
        bracket.v[k] = term.bracket;
        psi_after.v[k] = term.psi;
        zeta_after.v[k] = term.zeta;
    }
    store4(p.psi[1 - parity] + at, psi_after);
    store4(p.zeta[0] + at, zeta_after);
    return bracket;
}

template <int R>
__device__ inline Four layer_back_x(const Params& p, int parity, long long at, int x, const Line& mu) {
    const Line psi = line_of(p.psi[parity] + at), zeta = line_of(p.zeta[parity] + at);
    const Line plus = line_of(profile_of(p, 2, 1) + x), slope = line_of(profile_of(p, 2, 3) + x);
    const Four decay = load4(profile_of(p, 2, 0) + x), gain = load4(profile_of(p, 2, 2) + x);
    Four bracket, psi_after, zeta_after;
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
        const Term term = layer_back<R>(
            p, 2, decay.v[k], gain.v[k], [&](int m) { return mu.at(k, m); }, [&](int m) { return plus.at(k, m); },
            [&](int m) { return slope.at(k, m); }, [&](int m) { return psi.at(k, m); },
            [&](int m) { return zeta.at(k, m); });
        bracket.v[k] = term.bracket;
        psi_after.v[k] = term.psi;
        zeta_after.v[k] = term.zeta;
    }
    store4(p.psi[1 - parity] + at, psi_after);
    store4(p.zeta[1 - parity] + at, zeta_after);
    return bracket;
}

template <int R, int N>
__device__ inline Four layer_back_z(
    const Params& p, int parity, long long at, long long stride, int z, const Columns<R, N>& mu, int j
) {
    const float *plus = profile_of(p, 0, 1) + z, *slope = profile_of(p, 0, 3) + z;
    Four psi[2 * R + 1], zeta[2 * R + 1];
#pragma unroll
    for (int m = -R; m <= R; ++m) {
        psi[m + R] = load4(p.psi[parity] + at + m * stride);
        zeta[m + R] = load4(p.zeta[parity] + at + m * stride);
    }
    Four bracket, psi_after, zeta_after;
#pragma unroll
    for (int k = 0; k < LANES; ++k) {
        const Term term = layer_back<R>(
            p, 0, profile_of(p, 0, 0)[z], profile_of(p, 0, 2)[z], [&](int m) { return mu.at(j, m, k); },
            [&](int m) { return plus[m]; }, [&](int m) { return slope[m]; },
            [&](int m) { return psi[m + R].v[k]; }, [&](int m) { return zeta[m + R].v[k]; });
        bracket.v[k] = term.bracket;
        psi_after.v[k] = term.psi;
        zeta_after.v[k] = term.zeta;
    }
    store4(p.psi[1 - parity] + at, psi_after);
    store4(p.zeta[1 - parity] + at, zeta_after);
    return bracket;
}

// w of four cells: differences, and what the layers that act there add.
template <int R, int LAYER, bool BACK, bool INNER, int N>
__device__ inline Four bracket_of(
    const Params& p, int parity, int shot, int z, int x, const Columns<R, N>& u, int j, const Line& line
) {
    const int side_z = INNER || LAYER == SPONGE ? -1 : side_of(p, 0, z);
    const int side_x = INNER || LAYER == SPONGE ? -1 : side_of(p, 2, x);
    Four along, across;
    if (side_x >= 0) {
        const long long at = shot * p.packed_stride + packed_at<R>(p, 2, side_x, z, 0, x);
        along = BACK ? layer_back_x<R>(p, parity, at, x, line) : layer_x<R>(p, parity, at, x, line);
    } else {
#pragma unroll
        for (int k = 0; k < LANES; ++k) along.v[k] = second<R>(p.second[2], [&](int m) { return line.at(k, m); });
    }
    if (side_z >= 0) {
        const long long at = shot * p.packed_stride + packed_at<R>(p, 0, side_z, z, 0, x);
        across = BACK ? layer_back_z<R>(p, parity, at, p.columns, z, u, j)
                      : layer_z<R>(p, parity, at, p.columns, z, u, j);
    } else {
#pragma unroll
        for (int k = 0; k < LANES; ++k) across.v[k] = second<R>(p.second[0], [&](int m) { return u.at(j, m, k); });
    }
#pragma unroll
    for (int k = 0; k < LANES; ++k) across.v[k] += along.v[k];
    return across;
}

// One step, forward or back, on N rows of a thread's cells. KEEP: w is written (forward), or counted with mu (back).
template <int R, int LAYER, int KEEP, bool BACK, bool INNER, int N>
__device__ inline void update(const Params& p, int parity, int shot, int step, int z, int x) {
    const float* now = p.field[parity] + shot * p.field_stride;
    float* after = p.field[1 - parity] + shot * p.field_stride;
    const float* factor = p.factor + shot * p.factor_stride;
    const int valid = INNER ? LANES : least(LANES, p.n[2] - x);
    const bool aligned = p.aligned && valid == LANES;
    const long long kept = ((long long)shot * p.slots + (step - p.begin) / p.every) * p.cells;
    Columns<R, N> u;
    u.read(p, now, z, x, INNER);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int at = (z + j) * p.pitch + x;
        const Four middle = u.row[j + R], before = load4(after + at), c = load4(factor + at);
        const long long cell = (long long)(z + j) * p.n[2] + x;
        if (BACK && KEEP != NOTHING)
            count4(p, shot * p.cells + cell, middle, kept4<KEEP>(p.brackets, kept + cell, valid, aligned), 0, valid);
        Line line;
        line.read(now + (z + j) * p.pitch, middle, x);
        const Four w = bracket_of<R, LAYER, BACK, INNER>(p, parity, shot, z + j, x, u, j, line);
        if (!BACK && KEEP != NOTHING) keep4<KEEP>(p.brackets, kept + cell, w, valid, aligned);
        Four value;
#pragma unroll
        for (int k = 0; k < LANES; ++k) value.v[k] = c.v[k] * w.v[k] + (2.0f * middle.v[k] - before.v[k]);
        if (!INNER && LAYER == SPONGE) {
            const Four damping = load4(p.damping + at);
#pragma unroll
            for (int k = 0; k < LANES; ++k) value.v[k] -= damping.v[k] * (middle.v[k] - before.v[k]);
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
    const int shot = blockIdx.y, step = p.clock[parity];
    if (blockIdx.x == 0 && shot == 0 && threadIdx.x == 0) p.clock[1 - parity] = step + (BACK ? -1 : 1);
    if ((int)blockIdx.x < p.extra) {
        sample_points<R>(p, shot, step, p.field[parity] + shot * p.field_stride);
        return;
    }
    const int tile = blockIdx.x - p.extra;
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
            Line line;
            line.read(now + (z + j) * p.pitch, middle, x);
            const Four w = bracket_of<R, SPONGE, false, true>(p, parity, shot, z + j, x, u, j, line);
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
