// The gate's backward where there is little to sum over: its warps gate and write what they have summed up themselves, and one
// group of a block multiplies on while the other writes. And which kernel does what; the other one is in
// linear_tiles_beside_cuda.cu.
#include "ops/linear_tiles.h"

#include <algorithm>

#include "ops/linear_tiles.cuh"
#include "ops/silu_gate.cuh"

namespace megalodon::cuda {

namespace {

using Stages = OperandStages<4, NothingLeaves>;  // what goes out takes the place of what the gate took

#if MEGALODON_HOPPER

using Ring = LinearRing<Stages>;

// Of a tile's 64 columns each, how many exist.
template <LinearEnd E>
__device__ int parts(const LinearTiles& a, const LinearPlace<E>& tile) {
  return min(kLinearParts, (a.width - tile.column + hopper::kBlock - 1) / hopper::kBlock);
}

// The fetching thread, after the operands: what the gate took.
template <LinearEnd E>
__device__ __forceinline__ void fetch_gated(const LinearTiles& a, Ring& ring, Ring::Place& at, const LinearPlace<E>& tile) {
  for (int part = 0; part < parts(a, tile); ++part, at.next()) {
    Ring::Stage& stage = ring.fill(at, (a.has_b ? 4 : 2) * hopper::kBlockBytes);
    hopper::Barrier& full = ring.full[at.stage];
    const int column = tile.column + part * hopper::kBlock;
    hopper::load(stage.b[0], a.from[0], full, column, tile.row);
    if (a.has_b) hopper::load(stage.b[2], a.from[1], full, column, tile.row);
  }
}

// What the gate took lies in a stage, and what goes out takes its place. Dots: this thread's parts of db . b of its two rows, of
// db as it is rounded.
template <int Part, LinearEnd E>
__device__ __forceinline__ void write_gradients(const LinearTiles& a, Ring& ring, Ring::Place& at, const LinearPlace<E>& tile,
                                                const float (&sums)[kLinearColumns / 2], int& before, float (&dots)[2]) {
  if (Part >= parts(a, tile)) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  hopper::wait(ring.full[at.stage], at.phase);
  Ring::Stage& stage = ring.stages[at.stage];
  const int lines = product_warp() * kLinesBytes;
  unsigned char* const to_a = stage.b[0] + lines;
  unsigned char* const to_b = stage.b[2] + lines;
  unsigned char* const to_y = stage.a[0] + lines;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    std::uint32_t x[4];
    std::uint32_t gate[4] = {0x3F803F80U, 0x3F803F80U, 0x3F803F80U, 0x3F803F80U};
    std::uint32_t y[4];
    hopper::load_matrices(lines_row(to_a, j), x);
    if (a.has_b) hopper::load_matrices(lines_row(to_b, j), gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const two = sums + 32 * Part + 4 * j + 2 * i;
      const std::uint32_t d = pack_halves(two[0], two[1]);
      const GateGradients low = silu_gate_gradients(low_half(x[i]), low_half(gate[i]), low_half(d));
      const GateGradients high = silu_gate_gradients(high_half(x[i]), high_half(gate[i]), high_half(d));
      x[i] = pack_halves(low.da, high.da);
      const std::uint32_t db = pack_halves(low.db, high.db);
      if constexpr (E == LinearEnd::Dots) {
        dots[i % 2] = fmaf(low_half(db), low_half(gate[i]), fmaf(high_half(db), high_half(gate[i]), dots[i % 2]));
      }
      gate[i] = db;
      y[i] = pack_halves(low.y, high.y);
    }
    hopper::store_matrices(lines_row(to_a, j), x[0], x[1], x[2], x[3]);
    if (a.has_b) hopper::store_matrices(lines_row(to_b, j), gate[0], gate[1], gate[2], gate[3]);
    if (a.has_y) hopper::store_matrices(lines_row(to_y, j), y[0], y[1], y[2], y[3]);
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
__device__ __forceinline__ void write_dots(const LinearTiles& a, const LinearPlace<LinearEnd::Dots>& tile,
                                           const float (&dots)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = tile.row + product_warp() * kLines + lane / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float dot = dots[i] + __shfl_xor_sync(0xffffffffU, dots[i], 1);
    dot += __shfl_xor_sync(0xffffffffU, dot, 2);
    const int row = first + 8 * i;
    if (lane % 4 == 0 && row < a.height) {
      a.dots[static_cast<std::int64_t>(row) * a.columns + tile.column / kLinearColumns] = dot;
    }
  }
}

#endif

template <LinearEnd E>
__global__ void __launch_bounds__(kProductThreads, 1) linear_tiles_kernel(const __grid_constant__ LinearTiles a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char shared[];
  auto& ring = *reinterpret_cast<Ring*>(shared);
  ring.init();
  __syncthreads();
  hopper::wait_for_cluster();
  Ring::Place at;
  const int tiles = a.rows * a.columns;
  const int clusters = static_cast<int>(gridDim.x) / kLinearCluster;
  const int first = static_cast<int>(blockIdx.x) / kLinearCluster;
  if (product_group() == 2) {
    hopper::fewer_registers<40>();
    if (threadIdx.x != 2 * hopper::kGroup) return;
    for (int i = first; i < tiles; i += clusters) {
      const LinearPlace<E> tile(i, a);
      fetch_operands(a, ring, at, tile);
      fetch_gated(a, ring, at, tile);
    }
  } else {
    hopper::more_registers<232>();
    for (int i = first; i < tiles; i += clusters) {
      const LinearPlace<E> tile(i, a);
      float sums[kLinearColumns / 2] = {};
      multiply<false, true>(ring, at, a.steps, sums);
      int before = 0;
      float dots[2] = {};
      write_gradients<0>(a, ring, at, tile, sums, before, dots);
      write_gradients<1>(a, ring, at, tile, sums, before, dots);
      write_gradients<2>(a, ring, at, tile, sums, before, dots);
      write_gradients<3>(a, ring, at, tile, sums, before, dots);
      if constexpr (E == LinearEnd::Dots) write_dots(a, tile, dots);
      if (threadIdx.x % kWarp == 0) hopper::wait_stores<0>();
      __syncwarp();
      ring.release(before);
    }
  }
  // The other block fills this one's stages and arrives at its barriers until it has ended too.
  hopper::wait_for_cluster();
#else
  __trap();
#endif
}

// Whether a gate's backward is beside products: where there is less to sum over, three warps are too few for what is written.
constexpr bool is_beside(std::int64_t summed) { return summed >= 2048; }

template <LinearEnd E>
LinearKernel kernel_for(std::int64_t summed) {
  if constexpr (of_backward(E)) {
    if (!is_beside(summed)) return {linear_tiles_kernel<E>, kProductThreads, sizeof(Stages)};
  }
  return linear_tiles_beside(E, summed);
}

template <LinearEnd E>
void run(Context& ctx, LinearTiles& a, std::int64_t rows, std::int64_t summed, std::int64_t width) {
  constexpr int kWidth = E == LinearEnd::Pairs ? kLinearColumns / 2 : kLinearColumns;
  static_assert(sizeof(Stages) <= hopper::kMostShared);
  a.steps = static_cast<int>(ceil_div(summed, hopper::kBlock));
  a.height = static_cast<int>(rows);
  a.rows = static_cast<int>(ceil_div(rows, kLinearCluster * kLinearRows));
  a.columns = static_cast<int>(ceil_div(width, kWidth));
  a.width = static_cast<int>(width);
  const LinearKernel of = kernel_for<E>(summed);
  launch_linear(ctx, of.kernel, std::min(gpu_of(ctx).multiprocessors() / kLinearCluster, a.rows * a.columns), of.threads,
                of.shared, a);
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
  return ceil_div(rows, kLinearCluster * kLinearRows) * ceil_div(columns, kLinearColumns) >= gpu_of(ctx).multiprocessors();
}

void linear_tiles_forward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                          const Tensor& products, const Tensor& y) {
  LinearTiles a{};
  a.x = linear_map(x, kLinearRows);
  a.weight = linear_map(weight, kLinearColumns / 2);
  a.bias = pointer<const float>(bias);
  a.memory.products = matrix<Half>(products);
  a.memory.y = matrix<Half>(y);
  if (y && y.cols() != op.out) {
    run<LinearEnd::Pairs>(ctx, a, x.rows(), op.in, y.cols());
  } else {
    run<LinearEnd::Rows>(ctx, a, x.rows(), op.in, op.out);
  }
}

void linear_tiles_gate_backward(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& dy, const Tensor& a,
                                const Tensor& b, const Tensor& da, const Tensor& db, const Tensor& y, const Tensor& dots) {
  LinearTiles all{};
  all.x = linear_map(dy, kLinearRows);
  all.weight = linear_map(weight, hopper::kBlock);
  const int gated_rows = is_beside(op.out) ? kLinearGatedRows : kLinearRows;
  all.from[0] = linear_map(a, gated_rows);
  all.from[1] = linear_map(b, gated_rows);
  all.gradients[0] = linear_map(da, kLines);
  all.gradients[1] = linear_map(db, kLines);
  all.y = linear_map(y, kLines);
  all.has_b = static_cast<bool>(b);
  all.has_y = static_cast<bool>(y);
  all.dots = pointer<float>(dots);
  all.memory = {{}, matrix<Half>(y), matrix<Half>(da), matrix<Half>(db)};
  dots ? run<LinearEnd::Dots>(ctx, all, dy.rows(), op.out, op.in) : run<LinearEnd::Gradients>(ctx, all, dy.rows(), op.out, op.in);
}

}  // namespace megalodon::cuda
