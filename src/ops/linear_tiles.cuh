// What kernels for products of many rows share: the two with gates (ops/linear_tiles.h), and of clusters, ring and launch also
// that for gradients of small weights (ops/linear_weight.h), whose tiles are others.
//
// A tile is 128 rows by 256 columns, a block of threads takes one after the other, and two blocks are a cluster: they take the
// same columns of neighbouring rows, and each fetches half of the weights for both. The two groups of a block need not keep step.
#pragma once

#include "cuda/product_stages.cuh"
#include "ops/linear.h"

namespace megalodon::cuda {

constexpr int kLinearCluster = 2;
constexpr int kLinearRows = 128;
constexpr int kLinearColumns = 256;
static_assert(kLinearColumns == kDotColumns);
constexpr int kLinearGatedRows = 8;  // rows of what a gate took that are fetched at once, beside products

// What is done with the sums. Rows: products, and silu of them. Pairs: the tile's columns are 128 and the same 128 of a second
// matrix, products and the gate of the two. Gradients: the gate's backward. Dots: that, and of each row of a tile db . b.
enum class LinearEnd { Rows, Pairs, Gradients, Dots };

constexpr bool of_backward(LinearEnd e) { return e == LinearEnd::Gradients || e == LinearEnd::Dots; }

struct LinearTiles {
  CUtensorMap x, weight;  // boxes of 128 rows; of 64 where the product sums over the rows of the weights
  // Gradients: a and b, boxes of 128 rows, or of kLinearGatedRows; and da, db and y, boxes of 16 rows.
  CUtensorMap from[2], gradients[2], y;
  bool has_b, has_y;
  const float* bias;
  float* dots;        // [height, columns]
  int height;         // rows of y
  int steps;          // of 64 to sum over
  int rows, columns;  // how many tiles there are: of a cluster's rows, and of columns
  int width;          // columns of y
  // Those that are written, for threads that do so; null where they are.
  struct {
    Matrix<Half> products, y, da, db;
  } memory;
};

// The kernel whose sums are gated and written beside the next tile's products (linear_tiles_beside_cuda.cu), and the bytes of
// shared memory and threads that it takes, where it sums over so much.
struct LinearKernel {
  void (*kernel)(LinearTiles);
  int threads, shared;
};
LinearKernel linear_tiles_beside(LinearEnd end, std::int64_t summed);

// Boxes of `rows` rows by 128 bytes of a bfloat16 tensor; nothing of none.
inline CUtensorMap linear_map(const Tensor& tensor, int rows) {
  if (!tensor) return {};
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(tensor.cols()), static_cast<cuuint64_t>(tensor.rows())};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(tensor.pitch()) * sizeof(Half)};
  const cuuint32_t box[] = {hopper::kBlock, static_cast<cuuint32_t>(rows)};
  return hopper::make_map(tensor.raw(), DType::BF16, 2, extents, strides, box, "linear");
}

// So many clusters of blocks of so many threads.
template <class Arguments>
void launch_linear(Context& ctx, void (*kernel)(Arguments), int clusters, int threads, int shared, const Arguments& arguments) {
  constexpr const char* kName = "linear";
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), kName);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kLinearCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(kLinearCluster * clusters);
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared);
  config.stream = stream_of(ctx);
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments), kName);
}

#if MEGALODON_HOPPER

constexpr int kLinearParts = kLinearColumns / hopper::kBlock;  // 64 columns each

template <class Stages>
struct LinearRing : Stages {
  using Stages::empty;
  using Stages::full;
  using typename Stages::Place;
  using typename Stages::Stage;

  // Stages are filled for both blocks of a cluster, so both must have read them: as many warps of each.
  __device__ void init(int warps = kProductWarps) { Stages::init(kLinearCluster * warps); }
  __device__ __forceinline__ void release(int stage) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane < kLinearCluster) hopper::arrive_at(lane, empty[stage]);
  }
  __device__ __forceinline__ Stage& fill(const Place& at, int bytes) {
    hopper::wait(empty[at.stage], at.phase ^ 1);
    hopper::arrive_expecting(full[at.stage], bytes);
    return this->stages[at.stage];
  }
};

// This block's tile among those of the i'th cluster tile.
template <LinearEnd E>
struct LinearPlace {
  int row, column;  // its first

  __device__ LinearPlace(int i, const LinearTiles& a) {
    // Of tiles that are taken one after the other, so many follow one another down the rows before the next columns have their
    // turn: what is at work at a time shares both rows and weights, and fits into the L2 cache.
    constexpr int kTogether = 8;
    const int of_group = kTogether * a.columns;
    const int first = i / of_group * kTogether;
    const int count = min(kTogether, a.rows - first);
    const int rest = i % of_group;
    row = ((first + rest % count) * kLinearCluster + hopper::cluster_block()) * kLinearRows;
    column = rest / count * (E == LinearEnd::Pairs ? kLinearColumns / 2 : kLinearColumns);
  }
};

// The fetching thread: a tile's operands.
template <LinearEnd E, class Ring>
__device__ __forceinline__ void fetch_operands(const LinearTiles& a, Ring& ring, typename Ring::Place& at,
                                               const LinearPlace<E>& tile) {
  constexpr std::uint16_t kAll = (1U << kLinearCluster) - 1;
  constexpr int kBlock = hopper::kBlock;
  const int rank = hopper::cluster_block();
  for (int step = 0; step < a.steps; ++step, at.next()) {
    auto& stage = ring.fill(at, sizeof(typename Ring::Stage));
    hopper::Barrier& full = ring.full[at.stage];
    hopper::load(stage.a, a.x, full, step * kBlock, tile.row);
    if constexpr (of_backward(E)) {
      for (int n = rank * kLinearParts / kLinearCluster; n < (rank + 1) * kLinearParts / kLinearCluster; ++n) {
        hopper::load_for(kAll, stage.b[n], a.weight, full, tile.column + n * kBlock, step * kBlock);
      }
    } else {
      const int second = E == LinearEnd::Pairs ? a.width : kLinearColumns / 2;
      for (int half = rank; half < 2; half += kLinearCluster) {
        hopper::load_for(kAll, stage.b[half * kLinearParts / 2], a.weight, full, step * kBlock, tile.column + half * second);
      }
    }
  }
}

template <LinearEnd E>
__device__ __forceinline__ void add_bias(const LinearTiles& a, const LinearPlace<E>& tile, float (&sums)[kLinearColumns / 2]) {
  const int within = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < kLinearColumns / 8; ++j) {
    const bool second = E == LinearEnd::Pairs && j >= kLinearColumns / 16;
    const int column = tile.column + (second ? 8 * j - kLinearColumns / 2 : 8 * j) + within;
    if (column >= a.width) continue;
    const float* const bias = a.bias + (second ? a.width : 0) + column;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[4 * j + i] += bias[i % 2];
  }
}

// The sums as bfloat16: 64 columns from the part'th 64 on.
__device__ __forceinline__ void round_part(int part, const float (&sums)[kLinearColumns / 2], std::uint32_t (&values)[16]) {
#pragma unroll
  for (int j = 0; j < 16; ++j) values[j] = pack_halves(sums[32 * part + 2 * j], sums[32 * part + 2 * j + 1]);
}

#endif

}  // namespace megalodon::cuda
