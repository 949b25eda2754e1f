// Runs CUDA C++ kernels on the processor: each thread is a fiber, a barrier hands over to the next one.
//
// Between two barriers threads run one after the other: first to last (order 0), last to first (1), or in an order drawn
// anew at every barrier from the seed `order`: a missing barrier then changes the result. Shared memory holds NaN before
// each launch of a team. Barriers count arrivals: where some threads of a block, or some blocks of a team, wait at
// another barrier than the others, or have ended, the launch fails, and so it does where a block writes behind the shared
// memory that it was launched with. Blocks that wait for each other (a cluster, or a grid that is all resident) are run
// together, and each has shared memory of its own. Not covered: memory ordering between barriers, bank conflicts, occupancy.
#pragma once
#include <csetjmp>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

static Index threadIdx, blockIdx, blockDim, gridDim;
static const unsigned SHARED_FLOATS = 1 << 16;
alignas(16) float memory[SHARED_FLOATS];

namespace fibers {
enum State { READY, AT_BLOCK, AT_TEAM, ENDED };

// A fiber runs one thread of every launch in turn: only its first turn needs a context, and asks the system for one;
// later turns are jumps.
struct Fiber {
    std::vector<char> stack = std::vector<char>(1 << 16);
    jmp_buf place;
    bool begun = false;
};

static jmp_buf scheduler;
static std::vector<Fiber> threads_at_hand;
static std::vector<State> states;
static std::vector<float*> shared;  // of each block of the running team
static unsigned running, threads_of_block;
static const std::function<void()>* body;
static bool broken;  // what blocks said to each other did not fit

__attribute__((noinline)) static void wait(State at) {
    states[running] = at;
    if (!_setjmp(threads_at_hand[running].place)) _longjmp(scheduler, 1);
}

static void live() {
    for (;;) {
        (*body)();
        wait(ENDED);
    }
}

// Runs a thread until it waits or ends.
__attribute__((noinline)) static void turn_of(unsigned n) {
    running = n;
    if (_setjmp(scheduler)) return;
    Fiber& fiber = threads_at_hand[n];
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    ucontext_t beginning;
    getcontext(&beginning);
    beginning.uc_stack.ss_sp = fiber.stack.data();
    beginning.uc_stack.ss_size = fiber.stack.size();
    makecontext(&beginning, live, 0);
    setcontext(&beginning);
}

// Lets the fibers of a range go where all of them are at the same barrier.
static bool release(unsigned first, unsigned last, State barrier) {
    for (unsigned n = first; n < last; ++n)
        if (states[n] != barrier) return false;
    std::fill(states.begin() + first, states.begin() + last, READY);
    return true;
}

// Runs blocks `first` to `first + blocks` - 1 together; false where their threads did not reach the same barrier.
static bool team(unsigned first, unsigned blocks, unsigned threads, unsigned order, const std::function<void()>& kernel) {
    static std::vector<std::vector<float>> more_memory;
    const unsigned all = blocks * threads;
    if (threads_at_hand.size() < all) threads_at_hand.resize(all);
    if (more_memory.size() + 1 < blocks) more_memory.resize(blocks - 1, std::vector<float>(SHARED_FLOATS + 4));
    states.assign(all, READY);
    shared.assign(1, memory);
    for (unsigned n = 1; n < blocks; ++n) {
        const uintptr_t start = reinterpret_cast<uintptr_t>(more_memory[n - 1].data());
        shared.push_back(reinterpret_cast<float*>((start + 15) / 16 * 16));
    }
    for (float* cells : shared) std::fill(cells, cells + SHARED_FLOATS, std::numeric_limits<float>::quiet_NaN());
    body = &kernel;
    broken = false;
    threads_of_block = threads;
    std::vector<unsigned> turns(all);
    for (unsigned n = 0; n < all; ++n) turns[n] = order == 1 ? all - 1 - n : n;
    std::mt19937 draw(order);
    for (;;) {
        if (order > 1) std::shuffle(turns.begin(), turns.end(), draw);
        for (const unsigned n : turns) {
            if (states[n] != READY) continue;
            threadIdx.x = n % threads;
            blockIdx.x = first + n / threads;
            turn_of(n);
        }
        if (std::all_of(states.begin(), states.end(), [](State state) { return state == ENDED; })) return !broken;
        bool moves = std::find(states.begin(), states.end(), READY) != states.end();
        moves |= release(0, all, AT_TEAM);
        for (unsigned n = 0; n < blocks; ++n) moves |= release(n * threads, (n + 1) * threads, AT_BLOCK);
        if (!moves) {
            threads_at_hand.clear();  // they stand somewhere in the middle
            return false;
        }
    }
}

// Blocks in teams of `together` that may wait for each other.
static bool launch(
    unsigned blocks, unsigned threads, unsigned order, const std::function<void()>& kernel, unsigned together = 1,
    unsigned shared_bytes = 4 * SHARED_FLOATS
) {
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned n = 0; n < blocks; n += together) {
        if (!team(n, together, threads, order, kernel)) return false;
        for (const float* cells : shared)
            if (!std::all_of(cells + (shared_bytes + 3) / 4, cells + SHARED_FLOATS, [](float v) { return std::isnan(v); }))
                return false;
    }
    return true;
}
}  // namespace fibers

static void __syncthreads() { fibers::wait(fibers::AT_BLOCK); }

// The words of kernels/hpfwi_kernels/acoustic/cuda_device.cuh.
struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

static float* shared_memory() { return fibers::shared[fibers::running / fibers::threads_of_block]; }

static void block_sync() { fibers::wait(fibers::AT_BLOCK); }

static void forget(int&) {}

static void cluster_sync() { fibers::wait(fibers::AT_TEAM); }

// Bytes that are expected and have not come: none at the end of a round, which the launch fails without.
static void begin_arrivals(unsigned long long* arrivals) { *arrivals = 0; }

static void expect_arrivals(unsigned long long* arrivals, unsigned bytes) { *arrivals += bytes; }

static void wait_arrivals(unsigned long long* arrivals, bool) {
    for (int passes = 0; *arrivals != 0 && !fibers::broken; ++passes) {
        fibers::broken = passes > 1000;
        fibers::wait(fibers::READY);
    }
}

static void blocks_sync(unsigned*, int) { fibers::wait(fibers::AT_TEAM); }

static float* shared_of(float* own, int block) { return fibers::shared[block] + (own - shared_memory()); }

static void send4(float* own, float4 value, unsigned long long* arrivals, int block) {
    *(float4*)shared_of(own, block) = value;
    *(unsigned long long*)shared_of((float*)arrivals, block) -= sizeof(float4);
}

static float load_fresh(const float* from) { return *from; }

static float4 load4_fresh(const float* from) { return *(const float4*)from; }

static void prefetch(const void*) {}

static void put4(float* to, float4 value) { *(float4*)to = value; }
