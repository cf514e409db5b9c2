// Hopper's own instructions (sm_90a): bulk copies between global and shared memory that complete on barriers, and products of a
// group of four warps whose operands lie in shared memory. Kernels that use them have bodies under #if MEGALODON_HOPPER, which
// says whether this pass of the compiler makes code for that architecture.
//
// Operands lie in blocks of 64 rows of 64 bfloat16, each at a multiple of 1024 bytes: a row is 128 bytes, and of row r the i-th
// 16 bytes are stored as the (i ^ r % 8)-th. A block serves as a matrix or as its transpose alike.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include "cuda/kernels.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MEGALODON_HOPPER 1
#else
#define MEGALODON_HOPPER 0
#endif

namespace megalodon::cuda::hopper {

constexpr int kGroup = 128;  // threads that multiply together
constexpr int kBlock = 64;   // rows and columns of a block
constexpr int kBlockBytes = kBlock * kBlock * 2;
constexpr int kMostShared = 227 * 1024;  // bytes that a kernel may ask for

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// A barrier in shared memory: its phase ends when all the arrivals and bytes it waits for have come.
using Barrier = std::uint64_t;

__device__ __forceinline__ void init(Barrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// Makes barriers just initialised known to copies; every thread that uses them must be waited for besides.
__device__ __forceinline__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// An arrival that announces bytes, too.
__device__ __forceinline__ void arrive_expecting(Barrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}
// Until the phase of this parity has ended.
__device__ __forceinline__ void wait(Barrier& barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// A map's box at these coordinates, to shared memory.
__device__ __forceinline__ void load(void* to, const CUtensorMap& map, Barrier& barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
__device__ __forceinline__ void load(void* to, const CUtensorMap& map, Barrier& barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ __forceinline__ void load(void* to, const CUtensorMap& map, Barrier& barrier, int x, int y, int z, int w, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
      : "memory");
}
// Adjacent bytes, to shared memory.
__device__ __forceinline__ void load(void* to, const void* from, int bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}
// The same of bytes of whose place in the second cache `policy` says how long it is kept.
__device__ __forceinline__ void load(void* to, const void* from, int bytes, Barrier& barrier, std::uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(&barrier)), "l"(policy)
               : "memory");
}
// A box of a map of two extents, also to the same place of each block of the cluster that `blocks` has a bit for, and its
// barrier.
__device__ __forceinline__ void load(void* to, const CUtensorMap& map, Barrier& barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void load_for(std::uint16_t blocks, void* to, const CUtensorMap& map, Barrier& barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

// From shared memory to a map's box at these coordinates; what lies outside is not written. Whoever wrote the shared memory calls
// fence_stores() before, or the one thread that stores, commits and waits does when all who wrote have arrived at a barrier: the
// fence has to be somewhere on the way from a write to the store, in the same block of threads ("Mixed-proxy extensions for the
// NVIDIA PTX memory consistency model", ISCA 2022).
__device__ __forceinline__ void fence_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void store(const CUtensorMap& map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void store(const CUtensorMap& map, const void* from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ __forceinline__ void store(const CUtensorMap& map, const void* from, int x, int y, int z, int w, int v) {
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
               : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until the shared memory of all but the last N groups of stores has been read.
template <int N>
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// The cluster's blocks: which one this is; an arrival at another's barrier, that tells it that something has been read (what was
// written it need not see: that would take a fence of the whole GPU); and a barrier for the threads of all that have not ended.
__device__ __forceinline__ int cluster_block() {
  std::uint32_t rank = 0;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ __forceinline__ void arrive_at(int block, Barrier& barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(&barrier)),
      "r"(block)
      : "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Until as many threads of the block, whole warps, are here. The others may not wait this way.
template <int Threads>
__device__ __forceinline__ void wait_for_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(Threads) : "memory");
}
// Registers of a thread, for all of a group at once.
template <int N>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// What a product is told of an operand whose first block begins here. Of a matrix whose rows the product sums over (Transposed
// below), blocks follow that continue its columns; of one whose columns it sums over, blocks that continue its rows.
__device__ __forceinline__ std::uint64_t operand(const void* block) {
  constexpr std::uint64_t kNextEight = 8 * 128;
  constexpr std::uint64_t kSwizzled128 = 1;
  return ((shared_address(block) & 0x3FFFFU) >> 4) | (static_cast<std::uint64_t>(kBlockBytes >> 4) << 16) |
         ((kNextEight >> 4) << 32) | (kSwizzled128 << 62);
}
// The same from the 16 k'th of what is summed over on.
template <bool Transposed>
__device__ __forceinline__ std::uint64_t operand_at(std::uint64_t operand, int k) {
  return operand + static_cast<std::uint64_t>(k) * ((Transposed ? 16 * 128 : 32) >> 4);
}

// Before the first product, and after other code has touched the sums.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until no more than the last N groups of products are under way.
template <int N>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// d (+)= A B: 64 rows of A, 16 to sum over; `add` 0 overwrites. As many columns as d has room for: thread t of the group holds
// of row 16 (t / 32) + t % 32 / 4 the columns 8 j + 2 (t % 4) and the next in d[4 j] and d[4 j + 1], and of the eighth row below
// in d[4 j + 2] and d[4 j + 3].
#define MEGALODON_EIGHT(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
template <bool TransposeA, bool TransposeB>
__device__ __forceinline__ void wgmma(float (&d)[64], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, add, 1, 1, %67, %68;\n"
      "}"
      : MEGALODON_EIGHT(0), MEGALODON_EIGHT(8), MEGALODON_EIGHT(16), MEGALODON_EIGHT(24), MEGALODON_EIGHT(32),
        MEGALODON_EIGHT(40), MEGALODON_EIGHT(48), MEGALODON_EIGHT(56)
      : "l"(a), "l"(b), "r"(add), "n"(static_cast<int>(TransposeA)), "n"(static_cast<int>(TransposeB)));
}
template <bool TransposeA, bool TransposeB>
__device__ __forceinline__ void wgmma(float (&d)[96], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
      "}, %96, %97, add, 1, 1, %99, %100;\n"
      "}"
      : MEGALODON_EIGHT(0), MEGALODON_EIGHT(8), MEGALODON_EIGHT(16), MEGALODON_EIGHT(24), MEGALODON_EIGHT(32),
        MEGALODON_EIGHT(40), MEGALODON_EIGHT(48), MEGALODON_EIGHT(56), MEGALODON_EIGHT(64), MEGALODON_EIGHT(72),
        MEGALODON_EIGHT(80), MEGALODON_EIGHT(88)
      : "l"(a), "l"(b), "r"(add), "n"(static_cast<int>(TransposeA)), "n"(static_cast<int>(TransposeB)));
}
template <bool TransposeA, bool TransposeB>
__device__ __forceinline__ void wgmma(float (&d)[128], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, add, 1, 1, %131, %132;\n"
      "}"
      : MEGALODON_EIGHT(0), MEGALODON_EIGHT(8), MEGALODON_EIGHT(16), MEGALODON_EIGHT(24), MEGALODON_EIGHT(32),
        MEGALODON_EIGHT(40), MEGALODON_EIGHT(48), MEGALODON_EIGHT(56), MEGALODON_EIGHT(64), MEGALODON_EIGHT(72),
        MEGALODON_EIGHT(80), MEGALODON_EIGHT(88), MEGALODON_EIGHT(96), MEGALODON_EIGHT(104), MEGALODON_EIGHT(112),
        MEGALODON_EIGHT(120)
      : "l"(a), "l"(b), "r"(add), "n"(static_cast<int>(TransposeA)), "n"(static_cast<int>(TransposeB)));
}
#undef MEGALODON_EIGHT

// Four 8 x 8 matrices of bfloat16 to shared memory: lane i gives the address of row i % 8 of the (i / 8)-th, and holds of each
// the two values of row i / 4 at 2 (i % 4).
__device__ __forceinline__ void store_matrices(std::uint32_t row, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                               std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// The same of their transposes.
__device__ __forceinline__ void store_transposed(std::uint32_t row, uint4 v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Four matrices like these from shared memory.
__device__ __forceinline__ void load_matrices(std::uint32_t row, std::uint32_t (&values)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(row)
               : "memory");
}

// Of the host: a map of `rank` extents, the innermost first; strides, in bytes and multiples of 16, are those of all but the
// innermost. What lies outside of them reads as zero and is not written. Rows of a box are 128 bytes, and lie in shared memory as
// those of a block; of other bytes with another swizzle.
CUtensorMap make_map(const void* data, DType dtype, int rank, const cuuint64_t* extents, const cuuint64_t* strides,
                     const cuuint32_t* box, const char* where, CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B);

}  // namespace megalodon::cuda::hopper
