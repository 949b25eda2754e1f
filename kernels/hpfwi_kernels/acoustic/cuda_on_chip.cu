// The 2-D propagator with a shot's state on chip: all time steps of a shot in one launch, forward, backwards in the core,
// and adjoint. README.md has the equations, cuda_device.cuh (put before this file) what is asked of a GPU.
//
// A team of blocks shares a shot in bands of rows: one block, a cluster, or a grid of blocks that are all resident. A
// thread owns a tile of ROWS x 4 cells: c and the field one step away from the present one stay in its registers. Shared
// memory holds the present field u, and of the layers' memory what lies in layers. Two barriers make a step:
//
//   1. every thread computes the next field into its registers, from u and the layers' memory around its tile; before
//      that, the last threads take samples of u, and bring what is added to cells                                barrier
//   2. and puts it into shared memory, adds sources, and sends the first and last rows to the bands next to it   barrier
//
// What a band receives, and the layers' memory, is held twice and used in turn, so that a team needs one barrier of all
// its blocks per step; a chain needs none, for a barrier of a cluster waits until all that its threads have stored
// anywhere is seen everywhere. The memory is kept multiplied with its profile (a psi, a zeta; adjoint b P, b Z): neighbours
// then need no profile of their own. Tiles that touch a lateral layer go to the first threads, so that few warps diverge.

// A cluster's size is known when the kernel is compiled.
#ifdef CLUSTER_BLOCKS
#define TOGETHER __cluster_dims__(CLUSTER_BLOCKS)
#else
#define TOGETHER
#endif

enum { FORWARD, UNWIND, ADJOINT };
enum { DECAY, GROWN, GAIN, SLOPE };  // a, 1 + b, b, b'
enum { MOST_BLOCKS = 256, PLACE_BITS = 5, PLACES = 1 << PLACE_BITS };  // places: cells of the largest tile

struct Gather {
    const int *point_parts, *part_taps, *part_rows, *part_points, *cells;
    const float* weights;
    float *out, *product, *sums;
    int points, point_stride, step_stride, several, parts;
};

struct Scatter {
    const int *shot_groups, *group_cells, *group_starts, *group_taps, *tap_points;
    const float *weights, *values;
    int points, point_stride, step_stride, most_groups;
};

// Sizes, in cells.
struct Shape {
    int rows, columns, low[2], high[2];  // widths of layers, of z and of x
    int free_surface, periodic;
    int blocks, tile_rows;  // of a team; of its widest band
};

// Where a band keeps what layers hold: floats from its first, floats of one memory, and `Held`'s numbers.
struct alignas(16) Neighbour {
    int begins, memory, upper, lower;
};

struct Call {
    const float *factor, *damping, *sponges;
    const float* profile[2][4];  // of z, of x
    Gather gather;
    Scatter scatter;
    const float* state_in;
    float *state_out, *total, *sum, *ring, *field, *exchange;
    void* brackets;
    u32* counters;
    float second[2][5], first[2][4];
    Shape shape;
    int core[2][2];
    int shots, models, steps, begin, end, store_every, slots, half;
    int bands[MOST_BLOCKS + 1];
};

template <int ORDER, int ROWS, int THREADS, int TEAM, int MODE, bool LAYERED>
__global__ void __launch_bounds__(THREADS, 1) TOGETHER on_chip(const Call call) {
    const Shape& shape = call.shape;
    constexpr int R = ORDER / 2, WINDOW = 2 * R + 1;
    constexpr int REACH = MODE == ADJOINT ? 2 * R : R;  // cells next to a layer that its memory reaches
    constexpr int CARRIED = MODE == ADJOINT ? 2 : 1;    // memories that neighbours read, of each axis
    constexpr bool CLUSTERED = TEAM == CLUSTER || TEAM == CHAIN;
    // A launch has a row of blocks for each team, so that a block's rank is the same to the compiler for all its threads.
    const int rank = TEAM == BLOCK ? 0 : blockIdx.x, team = TEAM == BLOCK ? blockIdx.x : blockIdx.y;
    const int teams = TEAM == BLOCK ? gridDim.x : gridDim.y;
    const int columns = shape.columns, pitch = (columns + 3) / 4 * 4, stride = pitch + 8, tiles_x = pitch / 4;
    const int wide = (columns + 7) / 8 * 8;  // columns of a row of brackets
    const int y0 = TEAM == BLOCK ? 0 : call.bands[rank];
    const int n = TEAM == BLOCK ? shape.rows : call.bands[rank + 1] - y0;
    const i64 cells = i64(shape.rows) * columns;

    // Tiles of this thread: those of lateral layers come first.
    int left = 0, right = 0;
    if (LAYERED) {
        left = shape.low[1] > 0 ? (shape.low[1] + REACH + 3) / 4 : 0;
        right = shape.high[1] > 0 ? tiles_x - max(columns - shape.high[1] - REACH, 0) / 4 : 0;
        if (left + right > tiles_x) left = tiles_x, right = 0;
    }
    const int strip = left + right, edge = strip * shape.tile_rows, thread = threadIdx.x;
    const bool in_x = LAYERED && thread < edge;
    const int across = in_x ? strip : max(tiles_x - strip, 1), place = in_x ? thread : thread - edge;
    const int turn_in_row = place % across;
    int r0 = place / across * ROWS;
    int tx = !in_x ? left + turn_in_row : turn_in_row < left ? turn_in_row : tiles_x - strip + turn_in_row;
    const bool active = thread < tiles_x * shape.tile_rows;
    const int mine = active ? min(max(n - r0, 0), ROWS) : 0;
    const bool in_z = LAYERED && ((shape.low[0] > 0 && y0 + r0 < shape.low[0] + REACH) ||
                                  (shape.high[0] > 0 && y0 + r0 + mine > shape.rows - shape.high[0] - REACH));

    // Where layers' memory lies: columns in tiles, rows one by one.
    const int left_tiles = (shape.low[1] + 3) / 4;
    const int right_tile = shape.high[1] > 0 ? max(left_tiles, (columns - shape.high[1]) / 4) : tiles_x;
    const int pitch_x = 4 * (left_tiles + tiles_x - right_tile);
    auto lateral = [&](int tile) { return u32(tile) < u32(left_tiles) || u32(tile - right_tile) < u32(tiles_x - right_tile); };
    auto slot_x = [&](int tile) { return 4 * (tile - (tile < left_tiles ? 0 : right_tile - left_tiles)); };
    // Of the rows in layers, a band holds its own and the R around it, those of the upper layer first. A row has its place
    // among them after as many as are said here.
    struct Held {
        int upper, lower, rows;
    };
    const int lower_begins = shape.rows - shape.high[0];
    auto held_by = [&](int of) {
        const int first = TEAM == BLOCK ? 0 : max(call.bands[of] - R, 0);
        const int last = TEAM == BLOCK ? shape.rows : min(call.bands[of + 1] + R, shape.rows);
        const int above = max(min(shape.low[0], last) - first, 0), begins = max(lower_begins, first);
        return Held{first, begins - above, above + max(last - begins, 0)};
    };
    const Held held = held_by(rank);
    auto in_layers = [&](int y) { return u32(y) < u32(shape.low[0]) || u32(y - lower_begins) < u32(shape.high[0]); };
    auto slot_z = [&](int y) { return (y - (y < shape.low[0] ? held.upper : held.lower)) * pitch; };

    // Shared memory: rows from neighbours and the band's own, then what layers hold in it.
    const int halo = TEAM == BLOCK ? R : 2 * R;
    // In a chain, first of all, at the same place in every band: arrivals of both turns, and how many bytes there are.
    u64* const arrivals = (u64*)shared_memory();
    float* const u = shared_memory() + (TEAM == CHAIN ? 8 : 0);
    const int layer_x = n * pitch_x, layer_z = LAYERED ? held.rows * pitch : 0;
    float* const carried_z = u + (2 * halo + n) * stride;
    float* const carried_x = carried_z + (LAYERED ? 2 * CARRIED * layer_z : 0);
    float* const zeta_x = carried_x + (LAYERED ? 2 * CARRIED * layer_x : 0);
    float* const zeta_z = zeta_x + (LAYERED && MODE == FORWARD ? layer_x : 0);
    float* const profile_x = zeta_z + (LAYERED && MODE == FORWARD ? layer_z : 0);
    float* const profile_z = profile_x + (LAYERED ? 4 * stride : 0);
    const int length_z = (n + 2 * R + 3) / 4 * 4;
    float* const damping = profile_z + (LAYERED ? 4 * length_z : 0);
    Neighbour* const neighbours = (Neighbour*)(damping + (!LAYERED && call.damping ? n * pitch : 0));
    int* const chain = (int*)(neighbours + (LAYERED && CLUSTERED ? 2 : 0));
    float* const amounts = (float*)(chain + call.scatter.most_groups);
    const int floats = int((float*)chain - u);

    // Row r of the band, with the R rows around it that the bands next to it have sent.
    auto row_of = [&](int r, int turn) {
        if (TEAM == BLOCK) return u + (r + R) * stride + 4;
        const int from_own = r < 0 ? turn * R - 3 * R : r < n ? 0 : turn * R - 2 * R - n;
        return u + (4 * R + r + from_own) * stride + 4;
    };
    auto own_row = [&](int r) { return u + ((TEAM == BLOCK ? R : 4 * R) + r) * stride + 4; };

    if (TEAM == CHAIN && thread == 0) {
        begin_arrivals(arrivals), begin_arrivals(arrivals + 1);
        int rows = 0;
        for (int r = -R; r < n + R; r = r == -1 ? n : r + 1) {
            const int y = y0 + r;
            if (y >= 0 && y < shape.rows) rows += 1 + (LAYERED && in_layers(y) ? CARRIED : 0);
            else if (shape.periodic) rows += 1;
        }
        arrivals[2] = 4 * rows * pitch;
    }
    for (int shot = team; shot < call.shots; shot += teams) {
        // Where the shot's arrays begin: found again where they are used, not held.
        auto factor = [&] { return call.factor + (call.models > 1 ? shot : 0) * cells; };
        auto state_in = [&] { return call.state_in + (LAYERED ? 6 : 2) * cells * shot; };
        auto state_out = [&] { return call.state_out + (LAYERED ? 6 : 2) * cells * shot; };
        auto sum = [&] { return call.sum + (i64(shot) * shape.rows + y0) * wide + 4 * tx; };
        auto samples = [&] { return call.gather.out + i64(shot) * call.gather.points * call.steps; };
        float c[ROWS][4], old[ROWS][4];
        auto in_core = [&](int y, int x) {
            return y >= call.core[0][0] && y < call.core[0][1] && x >= call.core[1][0] && x < call.core[1][1];
        };

        // One field of a state, from global to shared memory or back, at this thread's cells.
        auto move_layers = [&](bool out, int turn) {
            float *const own_x = carried_x + turn * CARRIED * layer_x, *const own_z = carried_z + turn * CARRIED * layer_z;
            for (int field = 0; field < 4; ++field) {
                // psi or P of z, of x; zeta or Z of z, of x.
                const bool along_x = field % 2, second = field >= 2;
                if (along_x ? !in_x : !in_z) continue;
                const i64 offset = (2 + field) * cells;
                for (int j = 0; j < mine; ++j) {
                    const int r = r0 + j, slot = along_x ? slot_x(tx) : slot_z(y0 + r);
                    if (along_x ? !lateral(tx) : !in_layers(y0 + r)) continue;
                    float* memory = along_x ? (second && MODE == FORWARD ? zeta_x : own_x + second * layer_x)
                                                  + r * pitch_x + slot
                                            : (second && MODE == FORWARD ? zeta_z : own_z + second * layer_z)
                                                  + slot + 4 * tx;
                    for (int i = 0; i < 4 && 4 * tx + i < columns; ++i) {
                        const i64 cell = offset + i64(y0 + r) * columns + 4 * tx + i;
                        if (out) state_out()[cell] = memory[i];
                        else memory[i] = state_in()[cell];
                    }
                }
            }
        };

        // Sends the first and last rows of the present field to where the bands next to this one read them at `turn`, and
        // with them the layers' memory of that turn.
        auto send = [&](int to, bool below, int row, int turn, float4 value, int layer, int y) {
            // layer -1: the field; else one of the carried memories of z.
            if (TEAM == GRID) {
                const int kinds = LAYERED ? 1 + CARRIED : 1;
                const i64 at = ((((i64(team) * shape.blocks + to) * 2 + turn) * 2 + below) * kinds + 1 + layer) * R + row;
                store4(call.exchange + at * pitch + 4 * tx, value);
                return;
            }
            float* target;
            if (layer < 0) {
                const int at = TEAM == BLOCK ? (below ? R + n + row : row) : (below ? 2 * R : 0) + turn * R + row;
                target = u + at * stride + 4;
            } else {
                const Neighbour there = neighbours[to > rank];
                const int slot = (y - (y < shape.low[0] ? there.upper : there.lower)) * pitch;
                target = u + there.begins + (turn * CARRIED + layer) * there.memory + slot;
            }
            if (TEAM == CHAIN) send4(target + 4 * tx, value, arrivals + turn, to);
            else store4((TEAM == CLUSTER ? shared_of(target, to) : target) + 4 * tx, value);
        };
        auto publish = [&](int turn) {
            if (TEAM == BLOCK && !shape.periodic && !shape.free_surface) return;
            const int above = rank > 0 ? rank - 1 : shape.periodic ? shape.blocks - 1 : -1;
            const int below = rank + 1 < shape.blocks ? rank + 1 : shape.periodic ? 0 : -1;
            if (TEAM != BLOCK && r0 >= R + 1 && r0 + mine <= n - R) return;
#pragma unroll 1
            for (int j = 0; j < mine; ++j) {
                const int r = r0 + j, y = y0 + r;
                if (r >= R + 1 && r < n - R) continue;
                const float4 value = load4(own_row(r) + 4 * tx);
                if (shape.free_surface && y >= 1 && y <= R)  // the field is odd about row 0
                    store4(row_of(-y, turn) + 4 * tx, float4{-value.x, -value.y, -value.z, -value.w});
                const bool up = r < R && above >= 0, down = r >= n - R && below >= 0;
                if (up) send(above, true, r, turn, value, -1, y);
                if (down) send(below, false, r - (n - R), turn, value, -1, y);
                if (!LAYERED || TEAM == BLOCK || !(up || down)) continue;
                if (!in_layers(y)) continue;
#pragma unroll
                for (int k = 0; k < CARRIED; ++k) {
                    const float4 memory = load4(carried_z + (turn * CARRIED + k) * layer_z + slot_z(y) + 4 * tx);
                    if (up) send(above, true, r, turn, memory, k, y);
                    if (down) send(below, false, r - (n - R), turn, memory, k, y);
                }
            }
        };
        // All blocks of the team have come here, and what they sent has arrived; or, where that is counted, all that has
        // been sent to this one.
        auto team_sync = [&](int round) {
            const int turn = round & 1;
            if (TEAM == BLOCK) block_sync();
            if (TEAM == CLUSTER) cluster_sync();
            if (TEAM == CHAIN) {
                // A neighbour's next rows come to the other place of two: it sends them to this one again only after it
                // has had those that this band sends when nothing here is read any more.
                if (thread == blockDim.x - 1) wait_arrivals(arrivals + turn, round >> 1 & 1);
                block_sync();
            }
            if (TEAM != GRID) return;
            blocks_sync(call.counters + team, shape.blocks);
            // As many rows at a time as there are threads for.
            constexpr int KINDS = LAYERED ? 1 + CARRIED : 1, ALL = 2 * KINDS * R;
            const float* from = call.exchange + ((i64(team) * shape.blocks + rank) * 2 + turn) * ALL * pitch;
            const int at_once = blockDim.x / tiles_x, tile = thread % tiles_x;
            for (int i = thread / tiles_x; thread < at_once * tiles_x && i < ALL; i += at_once) {
                const int row = i % R, kind = i / R % KINDS, r = i < ALL / 2 ? row - R : n + row, y = y0 + r;
                const float* received = from + i64(i) * pitch + 4 * tile;
                if (kind == 0) {
                    if ((y >= 0 && y < shape.rows) || shape.periodic)
                        put4(row_of(r, turn) + 4 * tile, load4_fresh(received));
                } else if (in_layers(y)) {
                    put4(carried_z + (turn * CARRIED + kind - 1) * layer_z + slot_z(y) + 4 * tile, load4_fresh(received));
                }
            }
            block_sync();
        };
        // What the periodic grid repeats left and right of a row.
        auto wrap_columns = [&](float* row) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int x = 4 * tx + i;
                if (x < R) row[columns + x] = row[x];
                if (x >= columns - R && x < columns) row[x - columns] = row[x];
            }
        };
        // The cells around the core at a step: kept, or put back where this band has them.
        auto pass_ring = [&](int step, int turn) {
            const int rows = call.core[0][1] - call.core[0][0], width = call.core[1][1] - call.core[1][0];
            const int flat = R * width, tall = R * rows;
            float* ring = call.ring + (i64(shot) * call.steps + step) * 2 * (flat + tall);
            for (int i = thread; i < 2 * (flat + tall); i += blockDim.x) {
                const bool of_z = i < 2 * flat;
                const int k = of_z ? i : i - 2 * flat, size = of_z ? flat : tall, across = of_z ? width : R;
                const bool high = k >= size;
                const int a = k % size / across, b = k % size % across;
                const int y = of_z ? (high ? call.core[0][1] : call.core[0][0] - R) + a : call.core[0][0] + a;
                const int x = of_z ? call.core[1][0] + b : (high ? call.core[1][1] : call.core[1][0] - R) + b;
                if (y < 0 || y >= shape.rows || x < 0 || x >= columns) continue;
                const int r = y - y0;
                if (MODE == UNWIND) {
                    if (r >= -R && r < n + R) row_of(r, turn)[x] = ring[i];
                } else if (r >= 0 && r < n) {
                    ring[i] = row_of(r, turn)[x];
                }
            }
        };

        // The state a run starts from.
        for (int i = thread; i < floats; i += blockDim.x) u[i] = 0.f;
        block_sync();
        if (LAYERED) {
            for (int k = 0; k < 4; ++k) {
                for (int i = thread; i < stride; i += blockDim.x) {
                    const int x = i - 4;
                    profile_x[k * stride + i] = x >= 0 && x < columns ? call.profile[1][k][x] : k == GROWN ? 1.f : 0.f;
                }
                for (int i = thread; i < length_z; i += blockDim.x) {
                    const int y = y0 + i - R;
                    profile_z[4 * i + k] = y >= 0 && y < shape.rows ? call.profile[0][k][y] : k == GROWN ? 1.f : 0.f;
                }
            }
            if (CLUSTERED && thread < 2) {
                const int of = min(max(thread == 0 ? rank - 1 : rank + 1, 0), shape.blocks - 1);
                const Held there = held_by(of);
                const int begins = (2 * halo + call.bands[of + 1] - call.bands[of]) * stride;
                neighbours[thread] = Neighbour{begins, there.rows * pitch, there.upper, there.lower};
            }
        } else if (call.damping) {
            const float made_for = call.sponges[shot];
            for (int i = thread; i < n * columns; i += blockDim.x)
                damping[i / columns * pitch + i % columns] = made_for * call.damping[i64(y0) * columns + i];
        }
#pragma unroll
        for (int j = 0; j < ROWS; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int y = y0 + r0 + j, x = 4 * tx + i;
                const bool inside = j < mine && x < columns;
                const i64 cell = i64(y) * columns + x;
                const bool moves = inside && (MODE != UNWIND || in_core(y, x));
                c[j][i] = moves ? factor()[cell] : 0.f;
                old[j][i] = 0.f;
                if (MODE == UNWIND) {
                    if (!moves) continue;
                    const float* field = call.field + 2 * cells * shot + cell;
                    old[j][i] = field[0];
                    row_of(r0 + j, 0)[x] = field[cells];
                } else if (call.state_in && inside) {
                    row_of(r0 + j, 0)[x] = state_in()[cell];
                    old[j][i] = state_in()[cells + cell];
                }
            }
        if (LAYERED && call.state_in) move_layers(false, 0);
        if (shape.periodic)
            for (int j = 0; j < mine; ++j) wrap_columns(own_row(r0 + j));
        if (MODE == ADJOINT)
            for (int j = 0; j < mine; ++j)
                for (int i = 0; i < 4; ++i) {
                    const bool inside = 4 * tx + i < columns;
                    const i64 cell = i64(y0 + r0 + j) * columns + 4 * tx + i;
                    sum()[i64(r0 + j) * wide + i] = inside ? call.total[shot * cells + cell] : 0.f;
                }
        // The cells that this thread adds to, as a chain of groups: the next one, and the cell's place in the tile.
        const int first_group = call.scatter.shot_groups[shot], groups = call.scatter.shot_groups[shot + 1] - first_group;
        int links = -1;
        for (int g = 0; g < groups; ++g) {
            const int cell = call.scatter.group_cells[first_group + g], r = cell / columns - y0, x = cell % columns;
            if (r >= r0 && r < r0 + mine && x / 4 == tx) {
                chain[g] = links * PLACES + (r - r0) * 4 + x % 4;
                links = g;
            }
        }
        // No block writes into another's shared memory before that is ready.
        if (CLUSTERED) cluster_sync();
        else block_sync();
        if (TEAM == CHAIN && thread == blockDim.x - 1) expect_arrivals(arrivals, arrivals[2]);
        publish(0);
        team_sync(0);

        const int first_part = call.gather.points ? call.gather.point_parts[shot * call.gather.points] : 0;
        const int parts = call.gather.points ? call.gather.point_parts[(shot + 1) * call.gather.points] - first_part : 0;
        // Samples of points that several bands or threads have summed, one step late.
        auto finish_samples = [&](int step, int turn) {
            if (rank != 0 || !call.gather.several) return;
            for (int p = blockDim.x - 1 - thread; p < call.gather.points; p += blockDim.x) {
                const int from = call.gather.point_parts[shot * call.gather.points + p];
                const int to = call.gather.point_parts[shot * call.gather.points + p + 1];
                if (to - from == 1) continue;
                float sample = 0.f;
                for (int q = from; q < to; ++q) sample += load_fresh(call.gather.sums + turn * call.gather.parts + q);
                samples()[p * i64(call.gather.point_stride) + step * i64(call.gather.step_stride)] = sample;
            }
        };

        const int many = call.end - call.begin;
#pragma unroll 1
        for (int count = 0; count < many; ++count) {
            const int step = MODE == FORWARD ? call.begin + count : call.end - 1 - count, turn = count & 1;
            forget(r0), forget(tx), forget(shot);  // places in memory would be held for all steps, and spilled
            const int since = step - call.begin;
            const int slot = call.store_every == 1 ? since : since / call.store_every;
            const bool keep = call.brackets && slot * call.store_every == since;
            const i64 kept = ((i64(shot) * call.slots + slot) * shape.rows + y0) * wide + 4 * tx;
            if (MODE == ADJOINT && keep && since > 0) {
                // What is counted next, which was written long ago, comes near meanwhile.
                const i64 next = kept + i64(r0) * wide - i64(shape.rows) * wide;
                for (int j = 0; j < mine; ++j) {
                    const i64 at = next + i64(j) * wide;
                    prefetch(call.half ? (const void*)((const u16*)call.brackets + at) : (const float*)call.brackets + at);
                }
            }
            if (MODE == UNWIND) {
                pass_ring(step, turn);
                block_sync();
            }
            if (MODE == FORWARD && call.ring) pass_ring(step, turn);
            if (count > 0) finish_samples(MODE == FORWARD ? step - 1 : step + 1, turn ^ 1);
            // What is added to cells, and points: every one by a thread of its own, since it takes several loads one after
            // the other, and from the last thread on, which have least else to do.
            for (int i = blockDim.x - 1 - thread; i < groups + parts; i += blockDim.x) {
                if (i < groups) {
                    const int group = first_group + i, cell = call.scatter.group_cells[group], r = cell / columns - y0;
                    if (r < 0 || r >= n) continue;
                    const int from = call.scatter.group_starts[group], to = call.scatter.group_starts[group + 1];
                    const float own_factor = factor()[cell];
                    float added = 0.f;
                    for (int k = from; k < to; ++k) {
                        const int tap = call.scatter.group_taps[k], p = call.scatter.tap_points[tap];
                        const i64 at = i64(shot) * call.scatter.points * call.steps + p * i64(call.scatter.point_stride)
                            + step * i64(call.scatter.step_stride);
                        added += call.scatter.weights[tap] * call.scatter.values[at];
                        // A step's values may lie far from the last one's.
                        if (count + 1 < many)
                            prefetch(call.scatter.values + at + (MODE == FORWARD ? 1 : -1) * i64(call.scatter.step_stride));
                    }
                    amounts[i] = own_factor * added;
                    continue;
                }
                const int k = first_part + i - groups, y = call.gather.part_rows[k], p = call.gather.part_points[k];
                const int from = call.gather.part_taps[k], to = call.gather.part_taps[k + 1];
                if (y < y0 || y >= y0 + n) continue;
                const float* row = own_row(y - y0) - i64(y) * columns;
                float sample = 0.f;
                for (int tap = from; tap < to; ++tap) {
                    const float value = call.gather.weights[tap] * row[call.gather.cells[tap]];
                    if (MODE == ADJOINT) call.gather.product[i64(tap) * call.steps + step] = value;
                    sample += value;
                }
                if (p >= 0) samples()[p * i64(call.gather.point_stride) + step * i64(call.gather.step_stride)] = sample;
                else call.gather.sums[turn * call.gather.parts + k] = sample;
            }

            // 1. The next field.
            const float* carry_x = carried_x + turn * CARRIED * layer_x;
            const float* carry_z = carried_z + turn * CARRIED * layer_z;
            float* next_x = carried_x + (turn ^ 1) * CARRIED * layer_x;
            float* next_z = carried_z + (turn ^ 1) * CARRIED * layer_z;
            auto held_z = [&](const float* memory, int y) {
                return in_layers(y) ? load4(memory + slot_z(y) + 4 * tx) : float4{0.f, 0.f, 0.f, 0.f};
            };
            float window[WINDOW][4];
            auto read = [&](int r, float* to) {
                const float4 v = load4(row_of(r, turn) + 4 * tx);
                to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
            };
            if (mine > 0)
#pragma unroll
                for (int m = 0; m < 2 * R; ++m) read(r0 + m - R, window[m]);
#pragma unroll
            for (int j = 0; j < ROWS; ++j) {
                if (j >= mine) continue;
                const int r = r0 + j;
                read(r + R, window[(j + 2 * R) % WINDOW]);
                auto up = [&](int m) -> const float* { return window[(j + R + m) % WINDOW]; };
                const float* here = up(0);
                const float* row = own_row(r) + 4 * tx;
                float w[4];
                // Along z.
                if (MODE == ADJOINT && in_z) {
                    float slope[4] = {}, own_p[4], own_z[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) w[i] = 0.f;
#pragma unroll
                    for (int m = -R; m <= R; ++m) {
                        const float4 profile = load4(profile_z + 4 * (r + m + R));
                        const float grown = part(profile, GROWN), change = part(profile, SLOPE);
                        const float4 p = held_z(carry_z, y0 + r + m), z = held_z(carry_z + layer_z, y0 + r + m);
                        const float k2 = call.second[0][m < 0 ? -m : m];
                        const float k1 = m == 0 ? 0.f : m < 0 ? -call.first[0][-m - 1] : call.first[0][m - 1];
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const float t = grown * up(m)[i] + part(z, i), a = change * t + part(p, i);
                            w[i] += k2 * (grown * t);
                            if (m != 0) w[i] -= k1 * a, slope[i] += k1 * t;
                            else own_p[i] = part(p, i), own_z[i] = part(z, i);
                        }
                    }
                    if (in_layers(y0 + r)) {
                        const int slot = slot_z(y0 + r) + 4 * tx;
                        const float4 profile = load4(profile_z + 4 * (r + R));
                        const float decay = part(profile, DECAY), gain = part(profile, GAIN);
                        float p[4], z[4];
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            p[i] = decay * (own_p[i] - gain * slope[i]);
                            z[i] = decay * (gain * here[i] + own_z[i]);
                        }
                        put4(next_z + slot, float4{p[0], p[1], p[2], p[3]});
                        put4(next_z + layer_z + slot, float4{z[0], z[1], z[2], z[3]});
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        w[i] = call.second[0][0] * here[i];
#pragma unroll
                        for (int m = 1; m <= R; ++m) w[i] += call.second[0][m] * (up(m)[i] + up(-m)[i]);
                    }
                    if (MODE == FORWARD && in_z) {
                        float q[4] = {}, s[4] = {};
#pragma unroll
                        for (int m = 1; m <= R; ++m) {
                            const float k = call.first[0][m - 1];
                            const float4 a = held_z(carry_z, y0 + r - m), b = held_z(carry_z, y0 + r + m);
#pragma unroll
                            for (int i = 0; i < 4; ++i) {
                                q[i] += k * (up(m)[i] - up(-m)[i]);
                                s[i] += k * (part(b, i) - part(a, i));
                            }
                        }
                        const float4 profile = load4(profile_z + 4 * (r + R));
                        const float grown = part(profile, GROWN), slope = part(profile, SLOPE);
#pragma unroll
                        for (int i = 0; i < 4; ++i) s[i] = grown * w[i] + slope * q[i] + s[i];
                        if (in_layers(y0 + r)) {
                            const int slot = slot_z(y0 + r) + 4 * tx;
                            const float decay = part(profile, DECAY), gain = part(profile, GAIN);
                            const float4 psi = load4(carry_z + slot), zeta = load4(zeta_z + slot);
                            float psi_next[4], zeta_next[4];
#pragma unroll
                            for (int i = 0; i < 4; ++i) {
                                w[i] = grown * s[i] + part(zeta, i);
                                psi_next[i] = decay * (gain * q[i] + part(psi, i));
                                zeta_next[i] = decay * (gain * s[i] + part(zeta, i));
                            }
                            put4(next_z + slot, float4{psi_next[0], psi_next[1], psi_next[2], psi_next[3]});
                            put4(zeta_z + slot, float4{zeta_next[0], zeta_next[1], zeta_next[2], zeta_next[3]});
                        } else {
#pragma unroll
                            for (int i = 0; i < 4; ++i) w[i] = grown * s[i];
                        }
                    }
                }
                // Along x.
                if (LAYERED && in_x) {
                    const int at_row = r * pitch_x;
                    auto held_x = [&](const float* memory, int tile) {
                        return lateral(tile) ? load4(memory + at_row + slot_x(tile)) : float4{0.f, 0.f, 0.f, 0.f};
                    };
                    auto profile = [&](int k, int tile) { return load4(profile_x + k * stride + 4 + 4 * tile); };
                    float psi_next[4], zeta_next[4];
                    if (MODE == ADJOINT) {
                        // Neighbour by neighbour: twelve of each kind would leave no registers.
                        float slope[4] = {}, own_p[4], own_z[4];
#pragma unroll
                        for (int vector = 0; vector < 3; ++vector) {
                            const int k = vector == 2 ? 0 : 2 * vector - 1;  // its own last: they are needed again
                            const float4 mu = k == 0 ? float4{here[0], here[1], here[2], here[3]} : load4(row + 4 * k);
                            const float4 grown = profile(GROWN, tx + k), change = profile(SLOPE, tx + k);
                            const float4 p = held_x(carry_x, tx + k), z = held_x(carry_x + layer_x, tx + k);
#pragma unroll
                            for (int near = 0; near < 4; ++near) {
                                const float t = part(grown, near) * part(mu, near) + part(z, near);
                                const float a = part(change, near) * t + part(p, near), b = part(grown, near) * t;
                                if (k == 0) own_p[near] = part(p, near), own_z[near] = part(z, near);
#pragma unroll
                                for (int i = 0; i < 4; ++i) {
                                    const int m = 4 * k + near - i, reach = m < 0 ? -m : m;
                                    if (reach > R) continue;
                                    w[i] += call.second[1][reach] * b;
                                    if (m == 0) continue;
                                    const float k1 = m < 0 ? -call.first[1][reach - 1] : call.first[1][reach - 1];
                                    w[i] -= k1 * a;
                                    slope[i] += k1 * t;
                                }
                            }
                        }
                        const float4 decay = profile(DECAY, tx), gain = profile(GAIN, tx);
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            psi_next[i] = part(decay, i) * (own_p[i] - part(gain, i) * slope[i]);
                            zeta_next[i] = part(decay, i) * (part(gain, i) * here[i] + own_z[i]);
                        }
                    } else {
                        float bend[4] = {}, q[4] = {}, s[4] = {}, psi[4];
#pragma unroll
                        for (int vector = 0; vector < 3; ++vector) {
                            const int k = vector == 2 ? 0 : 2 * vector - 1;
                            const float4 field = k == 0 ? float4{here[0], here[1], here[2], here[3]} : load4(row + 4 * k);
                            const float4 memory = held_x(carry_x, tx + k);
#pragma unroll
                            for (int near = 0; near < 4; ++near) {
                                if (k == 0) psi[near] = part(memory, near);
#pragma unroll
                                for (int i = 0; i < 4; ++i) {
                                    const int m = 4 * k + near - i, reach = m < 0 ? -m : m;
                                    if (reach > R) continue;
                                    bend[i] += call.second[1][reach] * part(field, near);
                                    if (m == 0) continue;
                                    const float k1 = m < 0 ? -call.first[1][reach - 1] : call.first[1][reach - 1];
                                    q[i] += k1 * part(field, near);
                                    s[i] += k1 * part(memory, near);
                                }
                            }
                        }
                        const float4 grown = profile(GROWN, tx), change = profile(SLOPE, tx);
                        const float4 decay = profile(DECAY, tx), gain = profile(GAIN, tx);
                        const float4 zeta = held_x(zeta_x, tx);
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const float t = part(grown, i) * bend[i] + part(change, i) * q[i] + s[i];
                            w[i] += part(grown, i) * t + part(zeta, i);
                            psi_next[i] = part(decay, i) * (part(gain, i) * q[i] + psi[i]);
                            zeta_next[i] = part(decay, i) * (part(gain, i) * t + part(zeta, i));
                        }
                    }
                    if (lateral(tx)) {
                        const int at = at_row + slot_x(tx);
                        float* second_next = MODE == ADJOINT ? next_x + layer_x : zeta_x;
                        put4(next_x + at, float4{psi_next[0], psi_next[1], psi_next[2], psi_next[3]});
                        put4(second_next + at, float4{zeta_next[0], zeta_next[1], zeta_next[2], zeta_next[3]});
                    }
                } else {
                    float line[12];
                    const float4 before = load4(row - 4), after = load4(row + 4);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        line[i] = part(before, i);
                        line[4 + i] = here[i];
                        line[8 + i] = part(after, i);
                    }
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float bracket = call.second[1][0] * here[i];
#pragma unroll
                        for (int m = 1; m <= R; ++m)
                            bracket += call.second[1][m] * (line[4 + i + m] + line[4 + i - m]);
                        w[i] += bracket;
                    }
                }
                if (MODE == UNWIND)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (!in_core(y0 + r, 4 * tx + i)) w[i] = 0.f;
                if (keep) {
                    const i64 at = kept + i64(r) * wide;
                    if (MODE == ADJOINT) {
                        const float4 stored = kept4(call.brackets, at, call.half);
                        float4 so_far = load4(sum() + i64(r) * wide);
                        so_far.x += here[0] * stored.x, so_far.y += here[1] * stored.y;
                        so_far.z += here[2] * stored.z, so_far.w += here[3] * stored.w;
                        store4(sum() + i64(r) * wide, so_far);
                    } else {
                        keep4(call.brackets, at, w, call.half);
                    }
                }
                float loss[4] = {};
                if (!LAYERED && call.damping) {
                    const float4 k = load4(damping + r * pitch + 4 * tx);
#pragma unroll
                    for (int i = 0; i < 4; ++i) loss[i] = part(k, i) * (here[i] - old[j][i]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    old[j][i] = c[j][i] * w[i] + (2.f * here[i] - old[j][i]);
                    if (!LAYERED) old[j][i] -= loss[i];
                }
            }
            block_sync();

            // 2. It becomes the present one.
#pragma unroll
            for (int j = 0; j < ROWS; ++j) {
                if (j >= mine) continue;
                float* row = own_row(r0 + j) + 4 * tx;
                const float4 now = load4(row);
                if (4 * tx + 4 <= columns) {
                    put4(row, float4{old[j][0], old[j][1], old[j][2], old[j][3]});
                } else {  // columns beyond the model are zero, or repeat the other side
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (4 * tx + i < columns) row[i] = old[j][i];
                }
                old[j][0] = now.x, old[j][1] = now.y, old[j][2] = now.z, old[j][3] = now.w;
            }
            for (int g = links; g >= 0;) {
                const int link = chain[g], place = link & (PLACES - 1);
                own_row(r0 + place / 4)[4 * tx + place % 4] += amounts[g];
                g = link >> PLACE_BITS;
            }
            if (shape.periodic)
                for (int j = 0; j < mine; ++j) wrap_columns(own_row(r0 + j));
            if (TEAM == CHAIN && thread == blockDim.x - 1) expect_arrivals(arrivals + (turn ^ 1), arrivals[2]);
            publish(turn ^ 1);
            team_sync(count + 1);
        }

        // What the run leaves.
        if (many > 0) finish_samples(MODE == FORWARD ? call.end - 1 : call.begin, (many - 1) & 1);
        const int turn = many & 1;
#pragma unroll
        for (int j = 0; j < ROWS; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int y = y0 + r0 + j, x = 4 * tx + i;
                if (j >= mine || x >= columns) continue;
                const i64 cell = i64(y) * columns + x;
                const float now = row_of(r0 + j, turn)[x];
                if (MODE == UNWIND) {
                    float* field = call.field + 2 * cells * shot + cell;
                    field[0] = old[j][i];
                    field[cells] = now;
                }
                if (MODE != UNWIND && call.state_out) {
                    state_out()[cell] = now;
                    state_out()[cells + cell] = old[j][i];
                }
                if (MODE == ADJOINT) call.total[shot * cells + cell] = sum()[i64(r0 + j) * wide + i];
            }
        if (LAYERED && call.state_out) move_layers(true, turn);
        // The next shot of this team writes what blocks of the team may still read; and a block of a cluster ends when none
        // has anything to do with its memory.
        if (CLUSTERED) cluster_sync();
        else if (shot + teams < call.shots) team_sync(many);
    }
}
