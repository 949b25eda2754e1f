// Differences, and what a C-PML adds along one axis to the update of four cells.
#pragma once
#include "cuda_streaming.cuh"

// Second and first difference of what `at` says of a cell's neighbours; weights hold the spacing.
template <int R, class At>
__device__ inline float second(const float* weight, At at) {
    float sum = weight[0] * at(0);
#pragma unroll
    for (int m = 1; m <= R; ++m) sum += weight[m] * (at(m) + at(-m));
    return sum;
}

template <int R, class At>
__device__ inline float first(const float* weight, At at) {
    float sum = weight[0] * (at(1) - at(-1));
#pragma unroll
    for (int m = 2; m <= R; ++m) sum += weight[m - 1] * (at(m) - at(-m));
    return sum;
}

// Differences of whole vectors, across x.
template <int R, class At>
__device__ inline Four second4(const float* weight, At at) {
    Four sum = at(0);
#pragma unroll
    for (int k = 0; k < LANES; ++k) sum.v[k] *= weight[0];
#pragma unroll
    for (int m = 1; m <= R; ++m) {
        const Four above = at(-m), below = at(m);
#pragma unroll
        for (int k = 0; k < LANES; ++k) sum.v[k] += weight[m] * (above.v[k] + below.v[k]);
    }
    return sum;
}

template <int R, class At>
__device__ inline Four first4(const float* weight, At at) {
    Four sum = zero4();
#pragma unroll
    for (int m = 1; m <= R; ++m) {
        const Four above = at(-m), below = at(m);
#pragma unroll
        for (int k = 0; k < LANES; ++k) sum.v[k] += weight[m - 1] * (below.v[k] - above.v[k]);
    }
    return sum;
}

// Twelve cells along x: a thread's own in the middle.
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

// One axis of a C-PML on one cell: its share of the bracket, and its memories after the step.
struct Term {
    float bracket, psi, zeta;
};

struct After {
    Four bracket, psi, zeta;

    __device__ void set(int k, const Term& term) {
        bracket.v[k] = term.bracket;
        psi.v[k] = term.psi;
        zeta.v[k] = term.zeta;
    }

    __device__ Four stored(float* psi_after, float* zeta_after) const {
        store4(psi_after, psi);
        store4(zeta_after, zeta);
        return bracket;
    }
};

// a, 1 + b, b, b' of an axis.
__device__ inline const float* profile_of(const Params& p, int axis, int which) {
    return p.profile + (4 * axis + which) * p.profile_stride + LANES;
}

// Forward: psi and zeta hold a psi and a zeta.
__device__ inline Term layer(
    float decay, float plus, float gain, float slope, float first_of_u, float second_of_u, float first_of_psi, float psi,
    float zeta
) {
    const float t = plus * second_of_u + slope * first_of_u + first_of_psi;
    return Term{plus * t + zeta, decay * (gain * first_of_u + psi), decay * (gain * t + zeta)};
}

template <int R>
__device__ inline Four layer_x(const Params& p, int parity, long long at, int x, const Line& u) {
    const Line psi = line_of(p.psi[parity] + at);
    const Four zeta = load4(p.zeta[0] + at), decay = load4(profile_of(p, 2, 0) + x),
               plus = load4(profile_of(p, 2, 1) + x), gain = load4(profile_of(p, 2, 2) + x),
               slope = load4(profile_of(p, 2, 3) + x);
    After after;
#pragma unroll
    for (int k = 0; k < LANES; ++k)
        after.set(k, layer(decay.v[k], plus.v[k], gain.v[k], slope.v[k],
                           first<R>(p.first[2], [&](int m) { return u.at(k, m); }),
                           second<R>(p.second[2], [&](int m) { return u.at(k, m); }),
                           first<R>(p.first[2], [&](int m) { return psi.at(k, m); }), psi.at(k, 0), zeta.v[k]));
    return after.stored(p.psi[1 - parity] + at, p.zeta[0] + at);
}

// Along z or y, at row or plane i; `stride` floats from one to the next in packed memory, u(m) the vector m away.
template <int R, class At>
__device__ inline Four layer_across(const Params& p, int axis, int parity, long long at, long long stride, int i, At u) {
    const float* memory = p.psi[parity] + at;
    const Four psi = load4(memory), zeta = load4(p.zeta[0] + at);
    const Four q = first4<R>(p.first[axis], u), bend = second4<R>(p.second[axis], u),
               drift = first4<R>(p.first[axis], [&](int m) { return load4(memory + m * stride); });
    const float decay = profile_of(p, axis, 0)[i], plus = profile_of(p, axis, 1)[i], gain = profile_of(p, axis, 2)[i],
                slope = profile_of(p, axis, 3)[i];
    After after;
#pragma unroll
    for (int k = 0; k < LANES; ++k)
        after.set(k, layer(decay, plus, gain, slope, q.v[k], bend.v[k], drift.v[k], psi.v[k], zeta.v[k]));
    return after.stored(p.psi[1 - parity] + at, p.zeta[0] + at);
}

// The transpose; psi and zeta hold b P and b Z. With T = (1 + b) mu + b Z: `lift` is D2 (1 + b) T, `flow` D1 (b' T + b P),
// `drift` D1 T.
__device__ inline Term layer_back(
    float decay, float gain, float lift, float flow, float drift, float mu, float psi, float zeta
) {
    return Term{lift - flow, decay * (psi - gain * drift), decay * (gain * mu + zeta)};
}

template <int R>
__device__ inline Four layer_back_x(const Params& p, int parity, long long at, int x, const Line& mu) {
    const Line plus = line_of(profile_of(p, 2, 1) + x), slope = line_of(profile_of(p, 2, 3) + x);
    const Line psi = line_of(p.psi[parity] + at), zeta = line_of(p.zeta[parity] + at);
    Line t, flow, lift;
#pragma unroll
    for (int i = 0; i < 3 * LANES; ++i) {
        t.v[i] = plus.v[i] * mu.v[i] + zeta.v[i];
        flow.v[i] = slope.v[i] * t.v[i] + psi.v[i];
        lift.v[i] = plus.v[i] * t.v[i];
    }
    const Four decay = load4(profile_of(p, 2, 0) + x), gain = load4(profile_of(p, 2, 2) + x);
    After after;
#pragma unroll
    for (int k = 0; k < LANES; ++k)
        after.set(k, layer_back(decay.v[k], gain.v[k],
                                second<R>(p.second[2], [&](int m) { return lift.at(k, m); }),
                                first<R>(p.first[2], [&](int m) { return flow.at(k, m); }),
                                first<R>(p.first[2], [&](int m) { return t.at(k, m); }), mu.at(k, 0), psi.at(k, 0),
                                zeta.at(k, 0)));
    return after.stored(p.psi[1 - parity] + at, p.zeta[1 - parity] + at);
}

template <int R, class At>
__device__ inline Four layer_back_across(
    const Params& p, int axis, int parity, long long at, long long stride, int i, At mu
) {
    const float *plus = profile_of(p, axis, 1) + i, *slope = profile_of(p, axis, 3) + i;
    const float *psi = p.psi[parity] + at, *zeta = p.zeta[parity] + at;
    const Four own = mu(0), own_psi = load4(psi), own_zeta = load4(zeta);
    Four lift, flow = zero4(), drift = zero4();
#pragma unroll
    for (int k = 0; k < LANES; ++k)
        lift.v[k] = p.second[axis][0] * (plus[0] * (plus[0] * own.v[k] + own_zeta.v[k]));
    // Neighbour by neighbour, since a whole line of each memory would leave no registers.
#pragma unroll
    for (int m = 1; m <= R; ++m) {
#pragma unroll
        for (int side = -1; side <= 1; side += 2) {
            const Four near = mu(side * m), near_psi = load4(psi + side * m * stride),
                       near_zeta = load4(zeta + side * m * stride);
            const float near_plus = plus[side * m], near_slope = slope[side * m], weight = side * p.first[axis][m - 1];
#pragma unroll
            for (int k = 0; k < LANES; ++k) {
                const float t = near_plus * near.v[k] + near_zeta.v[k];
                lift.v[k] += p.second[axis][m] * (near_plus * t);
                flow.v[k] += weight * (near_slope * t + near_psi.v[k]);
                drift.v[k] += weight * t;
            }
        }
    }
    After after;
#pragma unroll
    for (int k = 0; k < LANES; ++k)
        after.set(k, layer_back(profile_of(p, axis, 0)[i], profile_of(p, axis, 2)[i], lift.v[k], flow.v[k], drift.v[k],
                                own.v[k], own_psi.v[k], own_zeta.v[k]));
    return after.stored(p.psi[1 - parity] + at, p.zeta[1 - parity] + at);
}

// What one axis adds to w on four cells: the second difference, or what the layer says that acts there.
template <int R, int LAYER, bool BACK, bool INNER>
__device__ inline Four along_x(const Params& p, int parity, int shot, int z, int y, int x, const Line& line) {
    const int side = INNER || LAYER == SPONGE ? -1 : side_of(p, 2, x);
    if (side >= 0) {
        const long long at = shot * p.packed_stride + packed_at<R>(p, 2, side, z, y, x);
        return BACK ? layer_back_x<R>(p, parity, at, x, line) : layer_x<R>(p, parity, at, x, line);
    }
    Four w;
#pragma unroll
    for (int k = 0; k < LANES; ++k) w.v[k] = second<R>(p.second[2], [&](int m) { return line.at(k, m); });
    return w;
}

// Along z (axis 0) or y (1); u(m) is the vector m rows or planes away.
template <int R, int LAYER, bool BACK, bool INNER, class At>
__device__ inline Four across_x(const Params& p, int axis, int parity, int shot, int z, int y, int x, At u) {
    const int i = axis == 0 ? z : y, side = INNER || LAYER == SPONGE ? -1 : side_of(p, axis, i);
    if (side >= 0) {
        const long long at = shot * p.packed_stride + packed_at<R>(p, axis, side, z, y, x);
        const long long stride = axis == 0 ? (long long)p.n[1] * p.columns : p.columns;
        return BACK ? layer_back_across<R>(p, axis, parity, at, stride, i, u)
                    : layer_across<R>(p, axis, parity, at, stride, i, u);
    }
    return second4<R>(p.second[axis], u);
}
