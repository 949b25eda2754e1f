// Runs CUDA C++ kernels on the processor: each thread of a block is a fiber, a barrier hands over to the next one.
//
// Between two barriers threads run one after the other, first to last or, with `backwards`, last to first: a missing
// barrier then changes the result. Shared memory holds NaN before each block. A block whose threads do not all reach the
// same barrier is an error. Not covered: memory ordering between barriers, bank conflicts, occupancy.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(threads)

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

static Index threadIdx, blockIdx, blockDim, gridDim;
static const unsigned SHARED_FLOATS = 1 << 16;
float memory[SHARED_FLOATS];

namespace fibers {
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<bool> finished;
static unsigned running;
static const std::function<void()>* body;

static void enter() {
    (*body)();
    finished[running] = true;
    swapcontext(&contexts[running], &scheduler);
}

// Returns false where threads of a block did not reach the same barrier.
static bool block(unsigned threads, bool backwards, const std::function<void()>& kernel) {
    static std::vector<std::vector<char>> stacks;
    if (stacks.size() < threads) stacks.resize(threads, std::vector<char>(1 << 16));
    contexts.assign(threads, ucontext_t());
    finished.assign(threads, false);
    body = &kernel;
    for (float& cell : memory) cell = std::numeric_limits<float>::quiet_NaN();
    for (unsigned n = 0; n < threads; ++n) {
        getcontext(&contexts[n]);
        contexts[n].uc_stack.ss_sp = stacks[n].data();
        contexts[n].uc_stack.ss_size = stacks[n].size();
        makecontext(&contexts[n], enter, 0);
    }
    for (;;) {
        unsigned ended = 0;
        for (unsigned n = 0; n < threads; ++n) {
            running = backwards ? threads - 1 - n : n;
            threadIdx.x = running;
            swapcontext(&scheduler, &contexts[running]);
            ended += finished[running];
        }
        if (ended == threads) return true;
        if (ended != 0) return false;
    }
}

static bool launch(unsigned blocks, unsigned threads, bool backwards, const std::function<void()>& kernel) {
    blockDim.x = threads;
    gridDim.x = blocks;
    for (unsigned n = 0; n < blocks; ++n) {
        blockIdx.x = n;
        if (!block(threads, backwards, kernel)) return false;
    }
    return true;
}
}  // namespace fibers

static void __syncthreads() { swapcontext(&fibers::contexts[fibers::running], &fibers::scheduler); }
