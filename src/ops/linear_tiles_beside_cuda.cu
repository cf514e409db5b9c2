// The kernel whose groups leave what they have summed up in shared memory, in bfloat16, and multiply on, while three warps gate
// it and write, or seven: three are enough where there is much to sum over, and leave the products wider instructions.
#include "ops/linear_tiles.cuh"
#include "ops/silu_gate.cuh"

namespace megalodon::cuda {

namespace {

// Three stages, a tile in bfloat16, what gates took, and barriers.
constexpr int kShared = 3 * 6 * hopper::kBlockBytes + 8 * hopper::kBlockBytes + 18 * 1024 + 256;
static_assert(kShared <= hopper::kMostShared);

// Of a block: two groups that multiply, and warps that write and one that fetches.
constexpr int threads_of(int writers) { return 2 * hopper::kGroup + (writers + 1) * kWarp; }

#if MEGALODON_HOPPER

// The warps beside those that multiply, but for the one that fetches, and registers of a thread of these and of those.
template <int Writers>
struct Crew;
template <>
struct Crew<3> {
  static constexpr int kMultiplyingRegisters = 192;
  static constexpr int kWritingRegisters = 120;
  static constexpr int kPieces = 1;
};
template <>
struct Crew<7> {
  static constexpr int kMultiplyingRegisters = 168;
  static constexpr int kWritingRegisters = 88;
  static constexpr int kPieces = 2;  // an instruction for 256 columns wants more registers than 512 threads are compiled for
};

// What a gate took, a and b: rows of 64 columns that a warp takes next, in turns. Three warps gate in backward.
constexpr int kSlots = 3;
constexpr int kGating = 3;
using Slot = unsigned char[2][kLinearGatedRows * 128];

struct TileShared {
  Slot slots[kGating][kSlots];
  // A tile's sums in bfloat16, of each group blocks of 64 rows by 64 columns, for the warps that do not multiply.
  LinearRing<OperandStages<3, unsigned char[2][kLinearParts][hopper::kBlockBytes]>> ring;
  hopper::Barrier given[2], taken[2];  // what a group has summed up
  hopper::Barrier fetched[kGating][kSlots];

  __device__ void init(int writers) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) {
        hopper::init(given[i], hopper::kGroup / kWarp);
        hopper::init(taken[i], writers);
      }
      for (auto& of_warp : fetched) {
        for (hopper::Barrier& barrier : of_warp) hopper::init(barrier, 1);
      }
    }
    ring.init();
  }
  // The sums of this warp's group, once those before have been taken.
  __device__ __forceinline__ void give(const float (&sums)[kLinearColumns / 2], std::uint32_t phase) {
    const int group = product_group();
    const int lines = product_warp() % (hopper::kGroup / kWarp) * kLinesBytes;
    hopper::wait(taken[group], phase ^ 1);
#pragma unroll
    for (int part = 0; part < kLinearParts; ++part) {
      std::uint32_t values[16];
      round_part(part, sums, values);
      put_lines(ring.out[group][part] + lines, values);
    }
    __syncwarp();
    if (threadIdx.x % kWarp == 0) hopper::arrive(given[group]);
  }
};
static_assert(sizeof(TileShared) <= kShared);

// Eight adjacent elements of a row.
struct Eight {
  std::uint32_t two[4];

  __device__ __forceinline__ explicit Eight(const unsigned char* shared) {
    const uint4 v = *reinterpret_cast<const uint4*>(shared);
    two[0] = v.x;
    two[1] = v.y;
    two[2] = v.z;
    two[3] = v.w;
  }
  // Without a branch.
  __device__ __forceinline__ void write(Half* to, bool exists) const {
    asm volatile(
        "{\n"
        ".reg .pred exists;\n"
        "setp.ne.b32 exists, %5, 0;\n"
        "@exists st.global.v4.b32 [%0], {%1, %2, %3, %4};\n"
        "}" ::"l"(to),
        "r"(two[0]), "r"(two[1]), "r"(two[2]), "r"(two[3]), "r"(static_cast<int>(exists))
        : "memory");
  }
};

// What a writing warp takes at a time: kRows rows of all of a tile's columns. The warps take units in turns, from one tile to the
// next, so that they have as much to do. Eight threads have a row, and each 16 bytes of every 64 columns.
template <LinearEnd E, int Writers>
struct Unit {
  static constexpr int kRows = of_backward(E) ? kLinearGatedRows : 4;
  static constexpr int kOfGroup = hopper::kBlock / kRows;
  static_assert(kOfGroup >= Writers, "each warp takes some of each group's");

  const LinearTiles& a;
  int i = static_cast<int>(blockIdx.x) / kLinearCluster;  // the tile's number
  int unit = warp();                                      // among the tile's
  std::uint32_t phase = 0;                                // of `given`
  LinearPlace<E> tile;

  __device__ __forceinline__ explicit Unit(const LinearTiles& all) : a(all), tile(i, all) {}
  __device__ __forceinline__ static int warp() { return product_warp() - kProductWarps - 1; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ __forceinline__ bool exists() const { return i < a.rows * a.columns; }
  __device__ __forceinline__ void next() {
    unit += Writers;
    if (unit < 2 * kOfGroup) return;
    unit -= 2 * kOfGroup;
    phase ^= 1;
    i += static_cast<int>(gridDim.x) / kLinearCluster;
    if (exists()) tile = LinearPlace<E>(i, a);
  }
  __device__ __forceinline__ int first_row() const { return tile.row + unit * kRows; }
  __device__ __forceinline__ int row() const { return first_row() + lane() / 8; }
  __device__ __forceinline__ int column() const { return tile.column + lane() % 8 * 8; }
  template <class T>
  __device__ __forceinline__ T* begin_of(const Matrix<T>& matrix) const {
    return matrix.row(row()) + column();
  }
  // Of 64 columns each, how many exist for this thread, in its row or that many rows below.
  __device__ __forceinline__ int parts(int below = 0) const {
    return row() + below < a.height ? (a.width - column() + hopper::kBlock - 1) / hopper::kBlock : 0;
  }
  __device__ __forceinline__ int group() const { return unit / kOfGroup; }
  __device__ __forceinline__ int first_line() const { return unit % kOfGroup * kRows; }
  // The group's sums of the first 64 columns, once they are there.
  __device__ __forceinline__ const unsigned char* sums(TileShared& shared) const {
    hopper::wait(shared.given[group()], phase);
    return shared.ring.out[group()][0];
  }
  // All of the warp has read them.
  __device__ __forceinline__ void release(TileShared& shared) const {
    if (unit + Writers < (group() + 1) * kOfGroup) return;
    __syncwarp();
    if (lane() == 0) hopper::arrive(shared.taken[group()]);
  }
};

// Where this thread's 16 bytes are, of a line of a block.
__device__ __forceinline__ int piece_of(int line) {
  const int column = static_cast<int>(threadIdx.x) % 8;
  return line * 128 + (column ^ (line % 8)) * 16;
}

// Products, and gates of them.
template <LinearEnd E, int Writers>
__device__ __forceinline__ void write_forward(const LinearTiles& a, TileShared& shared) {
  constexpr int kParts = E == LinearEnd::Pairs ? kLinearParts / 2 : kLinearParts;
#pragma unroll 1
  for (Unit<E, Writers> unit(a); unit.exists(); unit.next()) {
    const int parts = unit.parts();
    const int parts_kept = a.memory.products ? parts : 0;
    const int parts_of_y = a.memory.y ? parts : 0;
    Half* const to_products = unit.begin_of(a.memory.products);
    Half* const to_y = unit.begin_of(a.memory.y);
    const unsigned char* const sums = unit.sums(shared) + piece_of(unit.first_line() + unit.lane() / 8);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int column = part * hopper::kBlock;
      Eight values(sums + part * hopper::kBlockBytes);
      values.write(to_products + column, part < parts_kept);
      if constexpr (E == LinearEnd::Pairs) {
        const Eight gates(sums + (part + kParts) * hopper::kBlockBytes);
        gates.write(to_products + a.width + column, part < parts_kept);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          std::uint32_t& two = values.two[n];
          two = pack_halves(silu_gate(low_half(two), low_half(gates.two[n])), silu_gate(high_half(two), high_half(gates.two[n])));
        }
      } else {
#pragma unroll
        for (std::uint32_t& two : values.two) two = pack_halves(silu(low_half(two)), silu(high_half(two)));
      }
      values.write(to_y + column, part < parts_of_y);
    }
    unit.release(shared);
  }
}

// The gate's backward. Each warp has what the gate took fetched for itself, 64 columns of a unit at a time, and kSlots of them
// ahead. A short loop: all of a unit at once are more instructions than come in time beside the products'.
template <LinearEnd E>
__device__ __forceinline__ void write_backward(const LinearTiles& a, TileShared& shared) {
  constexpr int kOfThread = kLinearGatedRows / 4;  // rows
  constexpr std::uint32_t kOnes = 0x3F803F80U;
  Slot(&slots)[kSlots] = shared.slots[Unit<E, kGating>::warp()];
  hopper::Barrier(&fetched)[kSlots] = shared.fetched[Unit<E, kGating>::warp()];
  Unit<E, kGating> ahead(a);
  int part_ahead = 0;
  const auto fetch = [&](int slot) {
    if (!ahead.exists()) return;
    if (ahead.lane() == 0) {
      const int column = ahead.tile.column + part_ahead * hopper::kBlock;
      hopper::arrive_expecting(fetched[slot], (a.has_b ? 2 : 1) * static_cast<int>(sizeof slots[0][0]));
      hopper::load(slots[slot][0], a.from[0], fetched[slot], column, ahead.first_row());
      if (a.has_b) hopper::load(slots[slot][1], a.from[1], fetched[slot], column, ahead.first_row());
    }
    if (++part_ahead < kLinearParts) return;
    part_ahead = 0;
    ahead.next();
  };
#pragma unroll 1
  for (int slot = 0; slot < kSlots; ++slot) fetch(slot);
  RingPlace<kSlots> at;
#pragma unroll 1
  for (Unit<E, kGating> unit(a); unit.exists(); unit.next()) {
    int parts[kOfThread];
    float dots[kOfThread];
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      parts[i] = unit.parts(4 * i);
      dots[i] = 0;
    }
    Half* to_a = unit.begin_of(a.memory.da);
    Half* to_b = unit.begin_of(a.memory.db);
    Half* to_y = unit.begin_of(a.memory.y);
    const unsigned char* sums = unit.sums(shared) + unit.first_line() * 128;
#pragma unroll 1
    for (int part = 0; part < kLinearParts; ++part, at.next()) {
      hopper::wait(fetched[at.stage], at.phase);
#pragma unroll
      for (int i = 0; i < kOfThread; ++i) {
        const int piece = piece_of(unit.lane() / 8 + 4 * i);
        Eight d(sums + piece);
        Eight x(slots[at.stage][0] + piece);
        Eight gate(slots[at.stage][1] + piece);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const std::uint32_t b = a.has_b ? gate.two[n] : kOnes;
          const GateGradients low = silu_gate_gradients(low_half(x.two[n]), low_half(b), low_half(d.two[n]));
          const GateGradients high = silu_gate_gradients(high_half(x.two[n]), high_half(b), high_half(d.two[n]));
          x.two[n] = pack_halves(low.da, high.da);
          const std::uint32_t db = pack_halves(low.db, high.db);
          if constexpr (E == LinearEnd::Dots) {
            dots[i] = fmaf(low_half(db), low_half(b), fmaf(high_half(db), high_half(b), dots[i]));
          }
          gate.two[n] = db;
          d.two[n] = pack_halves(low.y, high.y);
        }
        const bool exists = part < parts[i];
        x.write(to_a + 4 * i * a.memory.da.pitch, exists);
        gate.write(to_b + 4 * i * a.memory.db.pitch, exists && a.has_b);
        d.write(to_y + 4 * i * a.memory.y.pitch, exists && a.has_y);
      }
      to_a += hopper::kBlock;
      to_b += hopper::kBlock;
      to_y += hopper::kBlock;
      sums += hopper::kBlockBytes;
      __syncwarp();  // all of the warp has read the slot
      fetch(at.stage);
    }
    if constexpr (E == LinearEnd::Dots) {
#pragma unroll
      for (int i = 0; i < kOfThread; ++i) {
#pragma unroll
        for (int offset = 1; offset < 8; offset *= 2) dots[i] += __shfl_xor_sync(0xffffffffU, dots[i], offset);
        const int row = unit.row() + 4 * i;
        if (unit.lane() % 8 == 0 && row < a.height) {
          a.dots[static_cast<std::int64_t>(row) * a.columns + unit.tile.column / kLinearColumns] = dots[i];
        }
      }
    }
    unit.release(shared);
  }
}

#endif

template <LinearEnd E, int Writers>
__global__ void __launch_bounds__(threads_of(Writers), 1) linear_beside_kernel(const __grid_constant__ LinearTiles a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<TileShared*>(memory);
  shared.init(Writers);
  __syncthreads();
  hopper::wait_for_cluster();
  RingPlace<3> at;
  const int tiles = a.rows * a.columns;
  const int clusters = static_cast<int>(gridDim.x) / kLinearCluster;
  const int first = static_cast<int>(blockIdx.x) / kLinearCluster;
  if (product_group() >= 2) {
    hopper::fewer_registers<Crew<Writers>::kWritingRegisters>();
    if (threadIdx.x >= 2 * hopper::kGroup + kWarp) {
      if constexpr (of_backward(E)) {
        write_backward<E>(a, shared);
      } else {
        write_forward<E, Writers>(a, shared);
      }
    } else {
      if (threadIdx.x != 2 * hopper::kGroup) return;
      for (int i = first; i < tiles; i += clusters) fetch_operands(a, shared.ring, at, LinearPlace<E>(i, a));
    }
  } else {
    hopper::more_registers<Crew<Writers>::kMultiplyingRegisters>();
    std::uint32_t phase = 0;
    for (int i = first; i < tiles; i += clusters, phase ^= 1) {
      float sums[kLinearColumns / 2] = {};
      multiply<false, of_backward(E), Crew<Writers>::kPieces>(shared.ring, at, a.steps, sums);
      if (!of_backward(E) && a.bias != nullptr) add_bias<E>(a, LinearPlace<E>(i, a), sums);
      shared.give(sums, phase);
    }
  }
  // The other block fills this one's stages and arrives at its barriers until it has ended too.
  hopper::wait_for_cluster();
#else
  __trap();
#endif
}

template <LinearEnd E, int Writers>
LinearKernel kernel_of() {
  return {linear_beside_kernel<E, Writers>, threads_of(Writers), kShared};
}

}  // namespace

LinearKernel linear_tiles_beside(LinearEnd end, std::int64_t summed) {
  const bool much = summed >= 1024;
  switch (end) {
    case LinearEnd::Rows: return much ? kernel_of<LinearEnd::Rows, 3>() : kernel_of<LinearEnd::Rows, 7>();
    case LinearEnd::Pairs: return much ? kernel_of<LinearEnd::Pairs, 3>() : kernel_of<LinearEnd::Pairs, 7>();
    case LinearEnd::Gradients: return kernel_of<LinearEnd::Gradients, 3>();
    case LinearEnd::Dots: break;
  }
  return kernel_of<LinearEnd::Dots, 3>();
}

}  // namespace megalodon::cuda
