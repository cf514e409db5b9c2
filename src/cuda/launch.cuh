// Kernels that begin while the one before them ends (programmatic dependent launch, code for compute capability 9.0; others
// start one after the other).
//
// A kernel that launch() launches may be placed on the GPU as soon as every block of the one before it has called
// let_next_start(), or has ended. It must call wait_for_previous() in every thread before it touches memory that anything of the
// same pass reads or writes: only then is all earlier work done and seen. Before that it may read what was written before the
// pass, parameters and positions, and ask for any memory to come nearer. A pass therefore begins with a kernel that is launched
// the usual way, the embedding's.
#pragma once

#include <utility>

#include "cuda/gpu.h"

namespace megalodon::cuda {

__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for a line of memory to be in the L2 cache by the time that it is read. It may be written meanwhile.
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// AllAtOnce: after all before, and only if all of its blocks find room together, which those need that wait for one another.
enum class Start { BeforeTheLastEnds, AfterAllBefore, AllAtOnce };

// Launches kernel(arguments...) on the context's stream. `where` stands in errors.
template <class... Parameters, class... Arguments>
void launch(Context& ctx, const char* where, Start start, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared, Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  if (start == Start::AllAtOnce) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream_of(ctx);
  config.attrs = &attribute;
  const bool overlaps = start == Start::BeforeTheLastEnds && gpu_of(ctx).code().capability >= 90;
  config.numAttrs = overlaps || start == Start::AllAtOnce ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), where);
}

template <class... Parameters, class... Arguments>
void launch(Context& ctx, const char* where, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
            Arguments&&... arguments) {
  launch(ctx, where, Start::BeforeTheLastEnds, kernel, grid, block, shared, std::forward<Arguments>(arguments)...);
}

}  // namespace megalodon::cuda
