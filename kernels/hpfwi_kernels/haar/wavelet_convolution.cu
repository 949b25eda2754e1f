// The wavelet convolution with one Haar level on a GPU: forward, which with turned filters is also the data gradient, and
// the gradients of the filters. README.md has the equations. No header is included, so that any compiler of CUDA C++ takes
// the file as it is; the tests also compile it for the processor, with threads as fibers.
//
// A block works on one tile of one plane, `tile_rows` x `tile_columns` cells of 2 x 2 pixels, and blocks of the same plane
// follow each other. Shared memory holds the tile's pixels and its four bands, both with the halo that k x k filters need.
// A thread makes strips of ROWS cells below each other: what it loads of a row of shared memory then serves up to ROWS
// outputs.

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

struct Bf16 {
    u16 bits;
};

__device__ inline float load(const float* from, i64 i) { return from[i]; }

__device__ inline float load(const Bf16* from, i64 i) {
    union { u32 bits; float value; } wide;
    wide.bits = u32(from[i].bits) << 16;
    return wide.value;
}

__device__ inline void store(float* to, i64 i, float value) { to[i] = value; }

// To nearest, ties to even; a NaN stays one.
__device__ inline void store(Bf16* to, i64 i, float value) {
    union { float value; u32 bits; } wide;
    wide.value = value;
    const u32 rounded = wide.bits + 0x7fffu + ((wide.bits >> 16) & 1u);
    to[i].bits = value == value ? u16(rounded >> 16) : u16(0x7fc0u);
}

#define ROWS 4

// How planes are cut. Kernels take the fields one by one: launchers pass numbers, not structures.
struct Tile {
    int rows, columns;            // of the plane, in pixels
    int tile_rows, tile_columns;  // of the tile, in cells; rows a multiple of ROWS
    int tiles_down, tiles_across;
    int channels;
};

#define TILE_ARGUMENTS \
    int rows, int columns, int tile_rows, int tile_columns, int tiles_down, int tiles_across, int channels
#define TILE Tile{rows, columns, tile_rows, tile_columns, tiles_down, tiles_across, channels}

// Pixels of the tile and `halo` cells around it, zero outside the plane: plane_row = 2 (first_row - halo) + r.
template <typename IO>
__device__ void fill(const IO* plane, const Tile& t, int first_row, int first_column, int halo, float* pixels) {
    const int height = 2 * (t.tile_rows + 2 * halo), width = 2 * (t.tile_columns + 2 * halo);
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        const int r = 2 * (first_row - halo) + i / width, c = 2 * (first_column - halo) + i % width;
        const bool inside = r >= 0 && r < t.rows && c >= 0 && c < t.columns;
        pixels[i] = inside ? load(plane, i64(r) * t.columns + c) : 0.f;
    }
}

// The four bands of the cells of `pixels`, band after band.
__device__ inline void split(const float* pixels, int cell_rows, int cell_columns, float* bands) {
    const int cells = cell_rows * cell_columns, width = 2 * cell_columns;
    for (int i = threadIdx.x; i < cells; i += blockDim.x) {
        const float* cell = pixels + 2 * (i / cell_columns) * width + 2 * (i % cell_columns);
        const float a = cell[0], b = cell[1], c = cell[width], d = cell[width + 1];
        bands[i] = 0.5f * ((a + b) + (c + d));
        bands[cells + i] = 0.5f * ((a + b) - (c + d));
        bands[2 * cells + i] = 0.5f * ((a - b) + (c - d));
        bands[3 * cells + i] = 0.5f * ((a - b) - (c - d));
    }
}

// base [channel, K, K], bias [channel] or null, bands [channel, 4, K, K].
template <typename IO, int K>
__global__ void __launch_bounds__(128) forward(
    const IO* x, const float* base, const float* bias, const float* bands, IO* y, TILE_ARGUMENTS
) {
    extern __shared__ float memory[];
    const Tile t = TILE;
    const int halo = K / 2;
    const int cell_rows = t.tile_rows + 2 * halo, cell_columns = t.tile_columns + 2 * halo;
    const int cells = cell_rows * cell_columns, width = 2 * cell_columns;
    float* pixels = memory;
    float* coefficients = memory + 4 * cells;
    float* taps = memory + 8 * cells;
    const int tiles = t.tiles_down * t.tiles_across, tile = blockIdx.x % tiles;
    const i64 plane = i64(blockIdx.x / tiles) * t.rows * t.columns;
    const int channel = blockIdx.x / tiles % t.channels;
    const int first_row = tile / t.tiles_across * t.tile_rows;
    const int first_column = tile % t.tiles_across * t.tile_columns;

    fill(x + plane, t, first_row, first_column, halo, pixels);
    for (int i = threadIdx.x; i < 5 * K * K; i += blockDim.x)
        taps[i] = i < K * K ? base[i64(channel) * K * K + i] : bands[i64(channel) * 4 * K * K + i - K * K];
    __syncthreads();
    split(pixels, cell_rows, cell_columns, coefficients);
    __syncthreads();

    const float offset = bias ? bias[channel] : 0.f;
    const int strips = t.tile_rows / ROWS * t.tile_columns;
    for (int strip = threadIdx.x; strip < strips; strip += blockDim.x) {
        const int column = strip % t.tile_columns, row = strip / t.tile_columns * ROWS;
        float out[2 * ROWS][2];
        // Filtered bands first, brought together by the signs of the transform.
#pragma unroll
        for (int r = 0; r < 2 * ROWS; ++r) out[r][0] = out[r][1] = offset;
#pragma unroll 1
        for (int s = 0; s < 4; ++s) {
            float filtered[ROWS] = {};
            const float* from = coefficients + s * cells + row * cell_columns + column;
            const float* w = taps + (1 + s) * K * K;
#pragma unroll
            for (int m = 0; m < ROWS + K - 1; ++m)
#pragma unroll
                for (int v = 0; v < K; ++v) {
                    const float value = from[m * cell_columns + v];
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        if (m >= r && m - r < K) filtered[r] += w[(m - r) * K + v] * value;
                }
            const float down = s & 1 ? -0.5f : 0.5f, across = s & 2 ? -1.f : 1.f;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                out[2 * r][0] += 0.5f * filtered[r];
                out[2 * r][1] += across * 0.5f * filtered[r];
                out[2 * r + 1][0] += down * filtered[r];
                out[2 * r + 1][1] += across * down * filtered[r];
            }
        }
        // The base path: pixel (2 row + r, 2 column + q) reads from K / 2 pixels above and left of it.
        const float* from = pixels + (2 * row + 2 * halo - K / 2) * width + 2 * column + 2 * halo - K / 2;
#pragma unroll
        for (int m = 0; m < 2 * ROWS + K - 1; ++m) {
            float line[K + 1];
#pragma unroll
            for (int v = 0; v <= K; ++v) line[v] = from[m * width + v];
#pragma unroll
            for (int r = 0; r < 2 * ROWS; ++r)
                if (m >= r && m - r < K)
#pragma unroll
                    for (int v = 0; v < K; ++v) {
                        out[r][0] += taps[(m - r) * K + v] * line[v];
                        out[r][1] += taps[(m - r) * K + v] * line[v + 1];
                    }
        }
#pragma unroll
        for (int r = 0; r < 2 * ROWS; ++r)
#pragma unroll
            for (int q = 0; q < 2; ++q) {
                const int at_row = 2 * (first_row + row) + r, at_column = 2 * (first_column + column) + q;
                if (at_row < t.rows && at_column < t.columns)
                    store(y + plane, i64(at_row) * t.columns + at_column, out[r][q]);
            }
    }
}

// Adds the sums that each thread of a block holds, in an order that is always the same, into result[COUNT].
template <int COUNT>
__device__ void gather(const float (&sums)[COUNT], float* scratch, float* result) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) scratch[i * blockDim.x + threadIdx.x] = sums[i];
    __syncthreads();
    for (int i = threadIdx.x; i < COUNT; i += blockDim.x) {
        float total = 0.f;
        // Each sum starts at another thread's entry, so that the threads of a warp read from different banks.
        for (int n = 0; n < int(blockDim.x); ++n) total += scratch[i * blockDim.x + (n + i) % blockDim.x];
        result[i] = total;
    }
}

// The gradient of one filter: for every cell of `gradient` [rows, columns], times the K x K cells of `value` around it.
// Both lie in shared memory with rows of `stride` cells; value starts K / 2 cells above and left of gradient.
template <int K>
__device__ void correlate(
    const float* gradient, const float* value, int rows, int columns, int stride, float (&sums)[K * K]
) {
    const int strips = rows / ROWS * columns;
    for (int strip = threadIdx.x; strip < strips; strip += blockDim.x) {
        const int at = strip / columns * ROWS * stride + strip % columns;
        float g[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) g[r] = gradient[at + r * stride];
#pragma unroll
        for (int m = 0; m < ROWS + K - 1; ++m)
#pragma unroll
            for (int v = 0; v < K; ++v) {
                const float sample = value[at + m * stride + v];
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
                    if (m >= r && m - r < K) sums[(m - r) * K + v] += g[r] * sample;
            }
    }
}

// Partial sums of one tile: partial[plane, tile, 5 K K + 1], the base filter's, the bands', the bias's.
template <typename IO, int K>
__global__ void __launch_bounds__(128) filter_gradient(
    const IO* x, const IO* y_gradient, float* partial, TILE_ARGUMENTS
) {
    extern __shared__ float memory[];
    const Tile t = TILE;
    const int halo = K / 2;
    const int cell_rows = t.tile_rows + 2 * halo, cell_columns = t.tile_columns + 2 * halo;
    const int cells = cell_rows * cell_columns, width = 2 * cell_columns;
    float* values = memory;                         // x: pixels, then its bands in their place
    float* gradients = memory + 4 * cells;          // the same for y's gradient, zero in the halo
    float* scratch = memory + 8 * cells;            // K K + 1 sums per thread
    const int tiles = t.tiles_down * t.tiles_across, tile = blockIdx.x % tiles;
    const i64 plane = i64(blockIdx.x / tiles) * t.rows * t.columns;
    const int first_row = tile / t.tiles_across * t.tile_rows;
    const int first_column = tile % t.tiles_across * t.tile_columns;
    float* result = partial + i64(blockIdx.x) * (5 * K * K + 1);

    fill(x + plane, t, first_row, first_column, halo, values);
    fill(y_gradient + plane, t, first_row, first_column, halo, gradients);
    __syncthreads();
    // The tile's own pixels start 2 halo pixels inside; the filter reaches K / 2 of them back.
    const int own = 2 * halo * width + 2 * halo;
    {
        float sums[K * K] = {};
        correlate<K>(gradients + own, values + own - K / 2 * width - K / 2, 2 * t.tile_rows, 2 * t.tile_columns, width,
                     sums);
        gather<K * K>(sums, scratch, result);
        float total[1] = {};
        for (int i = threadIdx.x; i < 4 * t.tile_rows * t.tile_columns; i += blockDim.x)
            total[0] += gradients[own + i / (2 * t.tile_columns) * width + i % (2 * t.tile_columns)];
        gather<1>(total, scratch, result + 5 * K * K);
    }
#pragma unroll 1
    for (int s = 0; s < 4; ++s) {
        __syncthreads();
        // One band at a time, into memory of its own: the sums' scratch, which the block has finished reading.
        float* value_band = scratch;
        float* gradient_band = scratch + cells;
        const float down = s & 1 ? -1.f : 1.f, across = s & 2 ? -1.f : 1.f;
        for (int i = threadIdx.x; i < cells; i += blockDim.x) {
            const int at = 2 * (i / cell_columns) * width + 2 * (i % cell_columns);
            const float* v = values + at;
            const float* g = gradients + at;
            value_band[i] = 0.5f * ((v[0] + across * v[1]) + down * (v[width] + across * v[width + 1]));
            gradient_band[i] = 0.5f * ((g[0] + across * g[1]) + down * (g[width] + across * g[width + 1]));
        }
        __syncthreads();
        float sums[K * K] = {};
        correlate<K>(gradient_band + halo * cell_columns + halo, value_band, t.tile_rows, t.tile_columns, cell_columns,
                     sums);
        gather<K * K>(sums, scratch, result + (1 + s) * K * K);
    }
}

// Sums over samples and tiles, in that order: total[channel, terms] of partial[sample, channel, tile, terms].
__global__ void sum_partials(const float* partial, float* total, int samples, int channels, int tiles, int terms) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= channels * terms) return;
    const int channel = i / terms, term = i % terms;
    double sum = 0.0;
    for (int n = 0; n < samples; ++n)
        for (int tile = 0; tile < tiles; ++tile)
            sum += partial[((i64(n) * channels + channel) * tiles + tile) * terms + term];
    total[i] = float(sum);
}
