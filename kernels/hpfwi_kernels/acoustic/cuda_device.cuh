// What the acoustic kernels need from a GPU, in a few words that tests also define for the processor (cuda_on_cpu.h):
// shared memory, barriers of a block, of a cluster and of blocks that share a shot, and another block's shared memory.
// No header is included, so that any compiler of CUDA C++ takes the file as it is.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Who works on one shot: a block, the blocks of a cluster, or as many blocks as are needed, all resident at once; a chain
// is a cluster whose blocks wait for what their neighbours send and not for each other.
enum { BLOCK, CLUSTER, GRID, CHAIN };

#ifdef __CUDACC__

__device__ inline float* shared_memory() {
    extern __shared__ float4 dynamic_memory[];
    return (float*)dynamic_memory;
}

__device__ inline void block_sync() { __syncthreads(); }

// Makes the compiler forget how a value came about: what is computed from it is not kept in registers from before.
__device__ inline void forget(int& value) { asm volatile("" : "+r"(value)); }

__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// A wait that has gone on for this long never ends: the launch fails then, so that what hangs is told.
enum : u64 { LONGEST_WAIT_NS = 10000000000ull };

// Called after every look that a wait takes. The clock is slow to read: it is read now and then.
__device__ inline void keep_waiting(u32& looks, u64& since) {
    if (++looks % 4096) return;
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    if (since == 0) since = now;
    if (now - since > LONGEST_WAIT_NS) __trap();
}

// Counts the bytes that other blocks of the cluster send to a block. A round ends when all that are expected have come.
__device__ inline void begin_arrivals(u64* arrivals) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" : : "r"((u32)__cvta_generic_to_shared(arrivals)) : "memory");
#endif
}

// Says, once in a round, how many bytes are expected.
__device__ inline void expect_arrivals(u64* arrivals, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
                 : : "r"((u32)__cvta_generic_to_shared(arrivals)), "r"(bytes) : "memory");
#endif
}

// Waits for the end of a round; `odd` of the second one, the fourth ...
__device__ inline void wait_arrivals(u64* arrivals, bool odd) {
#if __CUDA_ARCH__ >= 900
    const u32 at = (u32)__cvta_generic_to_shared(arrivals), parity = odd;
    u32 ended = 0, looks = 0;
    u64 since = 0;
    while (true) {
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(ended) : "r"(at), "r"(parity) : "memory");
        if (ended) return;
        keep_waiting(looks, since);
    }
#endif
}

// Sends four floats to where `own` lies in another block of the cluster, which counts them.
__device__ inline void send4(float* own, float4 value, u64* arrivals, int rank) {
#if __CUDA_ARCH__ >= 900
    u32 to, counted;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"((u32)__cvta_generic_to_shared(own)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"((u32)__cvta_generic_to_shared(arrivals)), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
                 : : "r"(to), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(counted) : "memory");
#endif
}

// The address of `own` in the shared memory of another block of the cluster.
__device__ inline float* shared_of(float* own, int rank) {
#if __CUDA_ARCH__ >= 900
    u64 there;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((u64)own), "r"(rank));
    return (float*)there;
#else
    return own;
#endif
}

// Waits for all blocks that count with `counter`, which starts from zero and only grows.
__device__ inline void blocks_sync(u32* counter, int blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const u32 arrived = atomicAdd(counter, 1u), goal = (arrived / blocks + 1) * blocks;
        u32 looks = 0;
        u64 since = 0;
        while (*(volatile u32*)counter < goal) keep_waiting(looks, since);
        __threadfence();
    }
    __syncthreads();
}

// Past the first-level cache, which does not see what other multiprocessors write.
__device__ inline float load_fresh(const float* from) { return __ldcg(from); }

__device__ inline float4 load4_fresh(const float* from) { return __ldcg((const float4*)from); }

// Has what lies there brought into the second-level cache.
__device__ inline void prefetch(const void* there) { asm volatile("prefetch.global.L2 [%0];" : : "l"(there)); }

// Four floats into the block's own shared memory at once: the compiler would store some of them one by one, and threads
// next to each other then meet in the same banks.
__device__ inline void put4(float* to, float4 value) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"((u32)__cvta_generic_to_shared(to)), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
                 : "memory");
}

#endif

__device__ inline float4 load4(const float* from) { return *(const float4*)from; }

__device__ inline void store4(float* to, float4 value) { *(float4*)to = value; }

__device__ inline float part(const float4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

__device__ inline u32 bits_of(float value) {
    union { float value; u32 bits; } same;
    same.value = value;
    return same.bits;
}

__device__ inline float float_of(u32 bits) {
    union { u32 bits; float value; } same;
    same.bits = bits;
    return same.value;
}

// The upper half of a float32, rounded to nearest, ties to even; a NaN stays one.
__device__ inline u32 bf16_of(float value) {
    const u32 bits = bits_of(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return value == value ? rounded : 0x7fc0u;
}

// Brackets of four neighbouring cells, float32 or bfloat16; `i` is a multiple of 4.
__device__ inline void keep4(void* brackets, i64 i, const float* w, bool half) {
    if (half) {
        uint2 packed;
        packed.x = bf16_of(w[0]) | bf16_of(w[1]) << 16;
        packed.y = bf16_of(w[2]) | bf16_of(w[3]) << 16;
        *(uint2*)((u16*)brackets + i) = packed;
    } else {
        store4((float*)brackets + i, float4{w[0], w[1], w[2], w[3]});
    }
}

__device__ inline float4 kept4(const void* brackets, i64 i, bool half) {
    if (!half) return load4((const float*)brackets + i);
    const uint2 packed = *(const uint2*)((const u16*)brackets + i);
    return float4{
        float_of(packed.x << 16), float_of(packed.x & 0xffff0000u), float_of(packed.y << 16),
        float_of(packed.y & 0xffff0000u)};
}
