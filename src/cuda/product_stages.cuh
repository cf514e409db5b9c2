// What kernels of products on Hopper share: two groups of threads multiply, with 64 rows of a tile each, and one thread fetches
// their operands ahead of them, step by step, 64 to sum over at a time. See cuda/hopper.cuh.
#pragma once

#include "cuda/hopper.cuh"

namespace megalodon::cuda {

constexpr int kProductThreads = 3 * hopper::kGroup;
constexpr int kProductWarps = 2 * hopper::kGroup / kWarp;  // that multiply

__device__ __forceinline__ int product_group() { return static_cast<int>(threadIdx.x) / hopper::kGroup; }
// Of those that multiply; it has rows 16 i to 16 i + 15 of a tile.
__device__ __forceinline__ int product_warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// The place in a ring of stages.
template <int Stages>
struct RingPlace {
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage < Stages) return;
    stage = 0;
    phase ^= 1;
  }
};

// What a warp writes leaves through 16 lines of 128 bytes of shared memory, laid out like those of a block.
constexpr int kLines = 16;
constexpr int kLinesBytes = kLines * 128;

// Shared memory: operands of as many steps as there are stages, A of 128 rows and B of up to 64 columns a block, and
// what leaves.
template <int Stages, class Out, int Blocks = 4>
struct OperandStages {
  static constexpr int kStages = Stages;
  static constexpr int kB = Blocks;
  using Place = RingPlace<kStages>;
  using Block = unsigned char[hopper::kBlockBytes];

  struct Stage {
    Block a[2], b[kB];
  };
  Stage stages[kStages];
  Out out;
  hopper::Barrier full[kStages], empty[kStages];

  // releases: how many arrivals empty a stage. All threads must be waited for after it.
  __device__ void init(int releases) {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < kStages; ++i) {
      hopper::init(full[i], 1);
      hopper::init(empty[i], releases);
    }
    hopper::fence_init();
  }
};

// Lines of each multiplying warp, in turns; or none.
using ProductLines = unsigned char[kProductWarps][2][kLinesBytes];
struct NothingLeaves {};

// sums = A B over `steps` stages of a ring, which is OperandStages with release(stage): that this warp has read it. In so many
// pieces of columns: one instruction for 256 takes more than the 128 registers that a thread of 512 is compiled for.
template <bool TransposeA, bool TransposeB, int Pieces = 1, class Ring, int N>
__device__ __forceinline__ void multiply(Ring& ring, typename Ring::Place& at, int steps, float (&sums)[N]) {
  int before = 0;
  for (int i = 0; i < steps; ++i) {
    hopper::wait(ring.full[at.stage], at.phase);
    const std::uint64_t a = hopper::operand(ring.stages[at.stage].a[product_group()]);
    hopper::fence_products();
#pragma unroll
    for (int piece = 0; piece < Pieces; ++piece) {
      const std::uint64_t b = hopper::operand(ring.stages[at.stage].b[piece * (Ring::kB / Pieces)]);
      auto& of_piece = reinterpret_cast<float(&)[N / Pieces]>(sums[piece * (N / Pieces)]);
#pragma unroll
      for (int k = 0; k < hopper::kBlock / 16; ++k) {
        hopper::wgmma<TransposeA, TransposeB>(of_piece, hopper::operand_at<TransposeA>(a, k),
                                              hopper::operand_at<TransposeB>(b, k), i + k);
      }
    }
    hopper::commit_products();
    if (i > 0) {
      hopper::wait_products<1>();
      ring.release(before);
    }
    before = at.stage;
    at.next();
  }
  hopper::wait_products<0>();
  ring.release(before);
}

// Where this lane's row of four 8 x 8 matrices of a warp's lines begins: of columns 8 j to 8 j + 15.
__device__ __forceinline__ std::uint32_t lines_row(const unsigned char* lines, int j) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = lane % kLines;
  return hopper::shared_address(lines) + row * 128 + ((j + lane / kLines) ^ (row % 8)) * 16;
}

// A warp's 16 by 64 values to its lines: values[2 j] are this thread's pair of its first row in the j'th eight columns,
// values[2 j + 1] that of the eighth row below.
__device__ __forceinline__ void put_lines(unsigned char* lines, const std::uint32_t (&values)[16]) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    hopper::store_matrices(lines_row(lines, j), values[2 * j], values[2 * j + 1], values[2 * j + 2], values[2 * j + 3]);
  }
}
// The same from its lines.
__device__ __forceinline__ void get_lines(const unsigned char* lines, std::uint32_t (&values)[16]) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    std::uint32_t four[4];
    hopper::load_matrices(lines_row(lines, j), four);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[2 * j + i] = four[i];
  }
}

}  // namespace megalodon::cuda
