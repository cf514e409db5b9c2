// A tile is 128 rows by 256 columns, a block of threads takes one after the other, and two blocks are a cluster: they take the
// same columns of neighbouring rows, and each fetches half of the weights for both. The two groups of a block need not keep step,
// so that one multiplies on while the other writes.
#include "ops/linear_tiles.h"

#include <algorithm>

#include "cuda/product_stages.cuh"
#include "ops/silu_gate.cuh"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "linear";
constexpr int kCluster = 2;
constexpr int kTileRows = 128;
constexpr int kTileColumns = 256;
static_assert(kTileColumns == kDotColumns);

// What is done with the sums. Rows: products, and silu of them. Pairs: the tile's columns are 128 and the same 128 of a second
// matrix, products and the gate of the two. Gradients: the gate's backward. Dots: that, and of each row of a tile db . b.
enum class Epilogue { Rows, Pairs, Gradients, Dots };

struct LinearTiles {
  CUtensorMap x, weight;    // boxes of 128 rows; of 64 where the product sums over the rows of the weights
  CUtensorMap products[2];  // boxes of 16 rows from here on. Pairs: of each matrix
  CUtensorMap y;
  CUtensorMap from[2];       // Gradients: a and b, boxes of 128 rows
  CUtensorMap gradients[2];  // and da and db
  bool has_products, has_y, has_b;
  const float* bias;
  float* dots;        // [height, columns]
  int height;         // rows of y
  int steps;          // of 64 to sum over
  int rows, columns;  // how many tiles there are: of a cluster's rows, and of columns
  int width;          // columns of y
};

#if MEGALODON_HOPPER

constexpr bool of_backward(Epilogue e) { return e == Epilogue::Gradients || e == Epilogue::Dots; }

constexpr int kParts = kTileColumns / hopper::kBlock;  // 64 columns each

// Of tiles that are taken one after the other, so many follow one another down the rows before the next columns have their turn:
// what is at work at a time shares both rows and weights, and fits into the L2 cache.
constexpr int kTogether = 8;

struct Ring : ProductStages {
  // Stages are filled for both blocks of a cluster, so both must have read them.
  __device__ __forceinline__ void release(int stage) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane < kCluster) hopper::arrive_at(lane, empty[stage]);
  }
  __device__ __forceinline__ Stage& fill(const Place& at, int bytes) {
    hopper::wait(empty[at.stage], at.phase ^ 1);
    hopper::arrive_expecting(full[at.stage], bytes);
    return stages[at.stage];
  }
};

// This block's tile among those of the i'th cluster tile.
template <Epilogue E>
struct TilePlace {
  int row, column;  // its first

  __device__ TilePlace(int i, const LinearTiles& a) {
    const int of_group = kTogether * a.columns;
    const int first = i / of_group * kTogether;
    const int count = min(kTogether, a.rows - first);
    const int rest = i % of_group;
    row = ((first + rest % count) * kCluster + hopper::cluster_block()) * kTileRows;
    column = rest / count * (E == Epilogue::Pairs ? kTileColumns / 2 : kTileColumns);
  }
  __device__ int parts(const LinearTiles& a) const {
    return min(kParts, (a.width - column + hopper::kBlock - 1) / hopper::kBlock);
  }
};

template <Epilogue E>
__device__ __forceinline__ void fetch_tile(const LinearTiles& a, Ring& ring, Ring::Place& at, const TilePlace<E>& tile) {
  constexpr std::uint16_t kAll = (1U << kCluster) - 1;
  constexpr int kBlock = hopper::kBlock;
  const int rank = hopper::cluster_block();
  for (int step = 0; step < a.steps; ++step, at.next()) {
    Ring::Stage& stage = ring.fill(at, sizeof(Ring::Stage));
    hopper::Barrier& full = ring.full[at.stage];
    hopper::load(stage.a, a.x, full, step * kBlock, tile.row);
    if constexpr (of_backward(E)) {
      for (int n = rank * kParts / kCluster; n < (rank + 1) * kParts / kCluster; ++n) {
        hopper::load_for(kAll, stage.b[n], a.weight, full, tile.column + n * kBlock, step * kBlock);
      }
    } else {
      const int second = E == Epilogue::Pairs ? a.width : kTileColumns / 2;
      for (int half = rank; half < 2; half += kCluster) {
        hopper::load_for(kAll, stage.b[half * kParts / 2], a.weight, full, step * kBlock, tile.column + half * second);
      }
    }
  }
  if constexpr (of_backward(E)) {
    for (int part = 0; part < tile.parts(a); ++part, at.next()) {
      Ring::Stage& stage = ring.fill(at, (a.has_b ? 4 : 2) * hopper::kBlockBytes);
      hopper::Barrier& full = ring.full[at.stage];
      hopper::load(stage.b[0], a.from[0], full, tile.column + part * kBlock, tile.row);
      if (a.has_b) hopper::load(stage.b[2], a.from[1], full, tile.column + part * kBlock, tile.row);
    }
  }
}

// The sums as bfloat16: 64 columns from the Part'th 64 on.
template <int Part, int N>
__device__ __forceinline__ void round_part(const float (&sums)[N], std::uint32_t (&values)[16]) {
#pragma unroll
  for (int j = 0; j < 16; ++j) values[j] = pack_halves(sums[32 * Part + 2 * j], sums[32 * Part + 2 * j + 1]);
}

// What a warp writes: 16 rows by 64 columns at a time, while it goes on.
struct Writer {
  unsigned char (&out)[2][kLinesBytes];
  int row;
  int next = 0;

  __device__ __forceinline__ void write(const std::uint32_t (&values)[16], const CUtensorMap& to, int column) {
    const bool stores = threadIdx.x % kWarp == 0;
    if (stores) hopper::wait_stores<1>();
    __syncwarp();
    put_lines(out[next], values);
    hopper::fence_stores();
    __syncwarp();
    if (stores) {
      hopper::store(to, out[next], column, row);
      hopper::commit_stores();
    }
    next ^= 1;
  }
};

template <Epilogue E>
__device__ __forceinline__ void add_bias(const LinearTiles& a, const TilePlace<E>& tile, float (&sums)[kTileColumns / 2]) {
  const int within = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < kTileColumns / 8; ++j) {
    const bool second = E == Epilogue::Pairs && j >= kTileColumns / 16;
    const int column = tile.column + (second ? 8 * j - kTileColumns / 2 : 8 * j) + within;
    if (column >= a.width) continue;
    const float* const bias = a.bias + (second ? a.width : 0) + column;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[4 * j + i] += bias[i % 2];
  }
}

template <int Part>
__device__ __forceinline__ void write_rows(const LinearTiles& a, int column, const float (&sums)[kTileColumns / 2],
                                           Writer& writer) {
  std::uint32_t values[16];
  round_part<Part>(sums, values);
  if (a.has_products) writer.write(values, a.products[0], column + Part * hopper::kBlock);
  if (!a.has_y) return;
#pragma unroll
  for (std::uint32_t& value : values) {
    value = pack_halves(silu(low_half(value)), silu(high_half(value)));
  }
  writer.write(values, a.y, column + Part * hopper::kBlock);
}

template <int Part>
__device__ __forceinline__ void write_pairs(const LinearTiles& a, int column, const float (&sums)[kTileColumns / 2],
                                            Writer& writer) {
  std::uint32_t values[16];
  std::uint32_t gates[16];
  round_part<Part>(sums, values);
  round_part<Part + kParts / 2>(sums, gates);
  if (a.has_products) {
    writer.write(values, a.products[0], column + Part * hopper::kBlock);
    writer.write(gates, a.products[1], column + Part * hopper::kBlock);
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    values[j] =
        pack_halves(silu_gate(low_half(values[j]), low_half(gates[j])), silu_gate(high_half(values[j]), high_half(gates[j])));
  }
  writer.write(values, a.y, column + Part * hopper::kBlock);
}

// What the gate took lies in a stage, and what goes out takes its place. Dots: this thread's parts of db . b of its two rows, of
// db as it is rounded.
template <int Part, Epilogue E>
__device__ __forceinline__ void write_gradients(const LinearTiles& a, Ring& ring, Ring::Place& at, const TilePlace<E>& tile,
                                                const float (&sums)[kTileColumns / 2], int& before, float (&dots)[2]) {
  if (Part >= tile.parts(a)) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  hopper::wait(ring.full[at.stage], at.phase);
  Ring::Stage& stage = ring.stages[at.stage];
  const int lines = product_warp() * kLinesBytes;
  unsigned char* const to_a = stage.b[0] + lines;
  unsigned char* const to_b = stage.b[2] + lines;
  unsigned char* const to_y = stage.a[0] + lines;
  const int row = lane % kLines;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    const int at_lane = row * 128 + ((j + lane / kLines) ^ (row % 8)) * 16;
    std::uint32_t x[4];
    std::uint32_t gate[4] = {0x3F803F80U, 0x3F803F80U, 0x3F803F80U, 0x3F803F80U};
    std::uint32_t y[4];
    hopper::load_matrices(hopper::shared_address(to_a) + at_lane, x);
    if (a.has_b) hopper::load_matrices(hopper::shared_address(to_b) + at_lane, gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const two = sums + 32 * Part + 4 * j + 2 * i;
      const std::uint32_t d = pack_halves(two[0], two[1]);
      const GateGradients low = silu_gate_gradients(low_half(x[i]), low_half(gate[i]), low_half(d));
      const GateGradients high = silu_gate_gradients(high_half(x[i]), high_half(gate[i]), high_half(d));
      x[i] = pack_halves(low.da, high.da);
      const std::uint32_t db = pack_halves(low.db, high.db);
      if constexpr (E == Epilogue::Dots) {
        dots[i % 2] = fmaf(low_half(db), low_half(gate[i]), fmaf(high_half(db), high_half(gate[i]), dots[i % 2]));
      }
      gate[i] = db;
      y[i] = pack_halves(low.y, high.y);
    }
    hopper::store_matrices(hopper::shared_address(to_a) + at_lane, x[0], x[1], x[2], x[3]);
    if (a.has_b) hopper::store_matrices(hopper::shared_address(to_b) + at_lane, gate[0], gate[1], gate[2], gate[3]);
    if (a.has_y) hopper::store_matrices(hopper::shared_address(to_y) + at_lane, y[0], y[1], y[2], y[3]);
  }
  hopper::fence_stores();
  __syncwarp();
  if (lane == 0) {
    const int column = tile.column + Part * hopper::kBlock;
    const int first = tile.row + product_warp() * kLines;
    hopper::store(a.gradients[0], to_a, column, first);
    if (a.has_b) hopper::store(a.gradients[1], to_b, column, first);
    if (a.has_y) hopper::store(a.y, to_y, column, first);
    hopper::commit_stores();
    hopper::wait_stores<1>();
  }
  __syncwarp();
  if (Part > 0) ring.release(before);
  before = at.stage;
  at.next();
}

// Of a row's columns each thread of four has some.
__device__ __forceinline__ void write_dots(const LinearTiles& a, const TilePlace<Epilogue::Dots>& tile, const float (&dots)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = tile.row + product_warp() * kLines + lane / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float dot = dots[i] + __shfl_xor_sync(0xffffffffU, dots[i], 1);
    dot += __shfl_xor_sync(0xffffffffU, dot, 2);
    const int row = first + 8 * i;
    if (lane % 4 == 0 && row < a.height) {
      a.dots[static_cast<std::int64_t>(row) * a.columns + tile.column / kTileColumns] = dot;
    }
  }
}

#endif

template <Epilogue E>
__global__ void __launch_bounds__(kProductThreads, 1) linear_tiles_kernel(const __grid_constant__ LinearTiles a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char shared[];
  auto& ring = *reinterpret_cast<Ring*>(shared);
  ring.init(kCluster * kProductWarps);
  __syncthreads();
  hopper::wait_for_cluster();
  Ring::Place at;
  const int tiles = a.rows * a.columns;
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  const int first = static_cast<int>(blockIdx.x) / kCluster;
  if (product_group() == 2) {
    hopper::fewer_registers<40>();
    if (threadIdx.x != 2 * hopper::kGroup) return;
    for (int i = first; i < tiles; i += clusters) fetch_tile(a, ring, at, TilePlace<E>(i, a));
  } else {
    hopper::more_registers<232>();
    for (int i = first; i < tiles; i += clusters) {
      const TilePlace<E> tile(i, a);
      float sums[kTileColumns / 2] = {};
      multiply<false, of_backward(E)>(ring, at, a.steps, sums);
      if constexpr (of_backward(E)) {
        int before = 0;
        float dots[2] = {};
        write_gradients<0>(a, ring, at, tile, sums, before, dots);
        write_gradients<1>(a, ring, at, tile, sums, before, dots);
        write_gradients<2>(a, ring, at, tile, sums, before, dots);
        write_gradients<3>(a, ring, at, tile, sums, before, dots);
        if constexpr (E == Epilogue::Dots) write_dots(a, tile, dots);
        if (threadIdx.x % kWarp == 0) hopper::wait_stores<0>();
        __syncwarp();
        ring.release(before);
      } else {
        if (a.bias != nullptr) add_bias<E>(a, tile, sums);
        Writer writer{ring.out[product_warp()], tile.row + product_warp() * kLines};
        if constexpr (E == Epilogue::Pairs) {
          write_pairs<0>(a, tile.column, sums, writer);
          write_pairs<1>(a, tile.column, sums, writer);
        } else {
          write_rows<0>(a, tile.column, sums, writer);
          write_rows<1>(a, tile.column, sums, writer);
          write_rows<2>(a, tile.column, sums, writer);
          write_rows<3>(a, tile.column, sums, writer);
        }
      }
    }
    if (threadIdx.x % kWarp == 0) hopper::wait_stores<0>();
  }
  // The other block fills this one's stages and arrives at its barriers until it has ended too.
  hopper::wait_for_cluster();
#else
  __trap();
#endif
}

// Boxes of `rows` rows by 128 bytes.
CUtensorMap map(const Tensor& tensor, int rows) {
  if (!tensor) return {};
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(tensor.cols()), static_cast<cuuint64_t>(tensor.rows())};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(tensor.pitch()) * sizeof(Half)};
  const cuuint32_t box[] = {hopper::kBlock, static_cast<cuuint32_t>(rows)};
  return hopper::make_map(tensor.raw(), DType::BF16, 2, extents, strides, box, kName);
}

template <Epilogue E>
void run(Context& ctx, LinearTiles& a, std::int64_t rows, std::int64_t summed, std::int64_t width) {
  constexpr int kShared = sizeof(ProductStages);
  static_assert(kShared <= hopper::kMostShared);
  constexpr int kWidth = E == Epilogue::Pairs ? kTileColumns / 2 : kTileColumns;
  a.steps = static_cast<int>(ceil_div(summed, hopper::kBlock));
  a.height = static_cast<int>(rows);
  a.rows = static_cast<int>(ceil_div(rows, kCluster * kTileRows));
  a.columns = static_cast<int>(ceil_div(width, kWidth));
  a.width = static_cast<int>(width);
  const auto kernel = linear_tiles_kernel<E>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), kName);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = kCluster * static_cast<unsigned>(std::min(gpu_of(ctx).multiprocessors() / kCluster, a.rows * a.columns));
  config.blockDim = kProductThreads;
  config.dynamicSmemBytes = kShared;
  config.stream = stream_of(ctx);
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, a), kName);
}

}  // namespace

bool linear_fits_tiles(Context& ctx, std::initializer_list<const Tensor*> tensors) {
  constexpr std::int64_t kWhole = 8;  // elements of 16 bytes
  for (const Tensor* tensor : tensors) {
    if (!*tensor) continue;
    if (tensor->dtype() != DType::BF16 || tensor->cols() % kWhole != 0 || tensor->pitch() % kWhole != 0) return false;
    if (reinterpret_cast<std::uintptr_t>(tensor->raw()) % 16 != 0) return false;
  }
  return gpu_of(ctx).code().hopper;
}

bool linear_fills_tiles(Context& ctx, std::int64_t rows, std::int64_t columns) {
  return ceil_div(rows, kCluster * kTileRows) * ceil_div(columns, kTileColumns) >= gpu_of(ctx).multiprocessors();
}

void linear_tiles_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                          const Tensor& products, const Tensor& y) {
  LinearTiles a{};
  a.x = map(x, kTileRows);
  a.weight = map(weight, kTileColumns / 2);
  a.y = map(y, kLines);
  a.has_products = static_cast<bool>(products);
  a.has_y = static_cast<bool>(y);
  a.bias = pointer<const float>(bias);
  if (y && y.cols() != op.out) {
    if (products) {
      for (const int i : {0, 1}) a.products[i] = map(products.column_range(i * y.cols(), y.cols()), kLines);
    }
    run<Epilogue::Pairs>(ctx, a, x.rows(), op.in, y.cols());
  } else {
    a.products[0] = map(products, kLines);
    run<Epilogue::Rows>(ctx, a, x.rows(), op.in, op.out);
  }
}

void linear_tiles_gate_backward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& a,
                                const Tensor& b, const Tensor& da, const Tensor& db, const Tensor& y, const Tensor& dots) {
  LinearTiles all{};
  all.x = map(dy, kTileRows);
  all.weight = map(weight, hopper::kBlock);
  all.from[0] = map(a, kTileRows);
  all.from[1] = map(b, kTileRows);
  all.gradients[0] = map(da, kLines);
  all.gradients[1] = map(db, kLines);
  all.y = map(y, kLines);
  all.has_b = static_cast<bool>(b);
  all.has_y = static_cast<bool>(y);
  all.dots = pointer<float>(dots);
  dots ? run<Epilogue::Dots>(ctx, all, dy.rows(), op.out, op.in) : run<Epilogue::Gradients>(ctx, all, dy.rows(), op.out, op.in);
}

}  // namespace megalodon::cuda
