// Attention of whole windows in bfloat16 on Hopper: kernels of their own for all products. Weights, and gradients of logits, of
// a piece's head are kept in tiles of 128 rows by 128 keys, those above the diagonal left out, each stored as the blocks that
// later products read (cuda/hopper.cuh). Nothing else that is rows by keys exists in memory.
//
// With documents, what nobody sees of a row tile's keys has no products: its tiles of keys begin with the first that any of its
// rows sees. Where that is lies in the GPU's memory, and is read there.
//
// A kernel's block of threads is two groups that multiply, with 64 rows of a tile each, and one thread that fetches their
// operands. The products over keys or rows take tiles of the result one by one, the longest first within each head: which block
// computes a tile is chance, what it computes is not.
#pragma once

#include "cuda/product_stages.cuh"
#include "ops/attention_cuda.cuh"

namespace megalodon::cuda {

constexpr int kTile = 128;  // rows and keys of a tile
constexpr int kTileBlocks = (kTile / hopper::kBlock) * (kTile / hopper::kBlock);
constexpr std::int64_t kTileBytes = kTileBlocks * hopper::kBlockBytes;
constexpr float kLog2E = 1.4426950408889634F;

// The tiles of one piece's head: row tile r sees first + r tiles of keys, which lie one after the other. Block (half of the
// keys, half of the rows) of a tile is its 2 * half of the keys + half of the rows'th.
struct AttentionTiles {
  int rows;      // tiles of rows
  int first;     // tiles of keys that row tile 0 sees
  int in_chunk;  // row i sees keys [0, in_chunk + i]
  int width;     // of documents alone: row tile r has tiles of keys [r + 1 - width, r], which hold all that a chunk may be

  __host__ __device__ int keys(int r) const { return first + r; }
  // Where among all tiles that of row tile r and key tile 0 is, or would be, and how many there are.
  template <bool Documents>
  __host__ __device__ int before(int r) const {
    if constexpr (Documents) {
      const int growing = min(r, width);
      return growing * (growing + 1) / 2 + (r - growing) * width - max(0, r + 1 - width);
    }
    return r * (r - 1) / 2 + r * first;
  }
  template <bool Documents>
  __host__ __device__ int count() const {
    return before<Documents>(rows) + (Documents ? max(0, rows + 1 - width) : 0);
  }
};

inline AttentionTiles attention_tiles(const Attention& op, std::int64_t rows, std::int64_t in_chunk) {
  const std::int64_t tiles = ceil_div(rows, kTile);
  // A chunk that ends in a tile begins in the (width - 2)th before it; backward takes tiles of keys by twos.
  const std::int64_t width = std::min(tiles, ceil_div(op.chunk - 1, kTile) + 2);
  return {static_cast<int>(tiles), static_cast<int>(ceil_div(in_chunk, kTile)) + 1, static_cast<int>(in_chunk),
          static_cast<int>(width)};
}

// What some heads of pieces that lie alike are to the kernels: pair i is head (first + i) % heads of piece (first + i) / heads.
struct AttentionPairs {
  int first, count;
  int heads;
  int rows;                    // of each piece
  std::int64_t row, row_step;  // the window's first row of piece 0, and from one piece to the next
  AttentionTiles tiles;
  AttentionDocuments documents;  // a piece is a window then

  // With documents: the first column that row i sees, those past the last like it, and the tile of keys that row tile r begins
  // with.
  __device__ int first_seen(int piece, int i) const { return documents.first(piece, min(i, rows - 1)); }
  __device__ int first_tile(int piece, int r) const { return first_seen(piece, r * kTile) / kTile; }

  __device__ int head(int pair) const { return (first + pair) % heads; }
  __device__ int piece(int pair) const { return (first + pair) / heads; }
  // Where a row's value of a head lies in [rows of the window, heads].
  __device__ std::int64_t at(int pair, int i) const { return (row + piece(pair) * row_step + i) * heads + head(pair); }
};

// Whether this window goes by these kernels: chosen by sizes, addresses and the GPU.
bool attention_fits_tiles(Context& ctx, const Attention& op, std::initializer_list<const Tensor*> tensors);

// attention_tiles_forward_cuda.cu, attention_tiles_backward_cuda.cu: the pieces, in as much workspace as the second says.
void attention_forward_tiles(Context& ctx, const AttentionForward& a, const AttentionChunks& pieces);
std::size_t attention_forward_tiles_bytes(const Attention& op, std::int64_t batch, std::int64_t length);

struct AttentionBackward {
  const Attention& op;
  const Tensor &q, &k, &v, &lse, &delta, &do_, &dq, &dk, &dv;
};
void attention_backward_tiles(Context& ctx, const AttentionBackward& a, const AttentionChunks& pieces);
std::size_t attention_backward_tiles_bytes(const Attention& op, std::int64_t batch, std::int64_t length);

// Boxes of 64 rows by 128 bytes of a tensor's pieces: coordinates are column, head, row, piece; what lies outside reads as zero
// and is not written.
CUtensorMap attention_map(const Tensor& tensor, std::int64_t row, std::int64_t rows, std::int64_t row_step, std::int64_t pieces,
                          std::int64_t heads);

// How many pairs go at once when each takes `each` bytes, and what they all take then.
struct AttentionAtOnce {
  std::int64_t pairs, bytes;
};
inline AttentionAtOnce attention_at_once(std::int64_t pairs, std::int64_t each) {
  constexpr std::int64_t kMost = 512 << 20;
  const std::int64_t calls = ceil_div(pairs * each, std::max(kMost, each));
  return {ceil_div(pairs, calls), std::max(std::min(kMost, pairs * each), each)};
}

// Shared memory of the kernels whose operands come step by step, 64 to sum over at a time: A of 128 rows, B of up to 256 columns.
struct ProductRing : ProductStages {
  int tile[kStages];   // whose operands these are; -1 after the last
  int steps[kStages];  // of that tile, with documents

  __device__ void init() {
    ProductStages::init(kProductWarps);
    __syncthreads();
  }
  // The fetching thread: the next stage, emptied, and to be filled with B of `columns` columns.
  __device__ __forceinline__ Stage& fill(const Place& at, int columns, int of_tile, int of_steps = 0) {
    hopper::wait(empty[at.stage], at.phase ^ 1);
    tile[at.stage] = of_tile;
    if (of_steps > 0) steps[at.stage] = of_steps;
    hopper::arrive_expecting(full[at.stage], (2 + columns / hopper::kBlock) * hopper::kBlockBytes);
    return stages[at.stage];
  }
  __device__ __forceinline__ void finish(const Place& at) {
    hopper::wait(empty[at.stage], at.phase ^ 1);
    tile[at.stage] = -1;
    hopper::arrive(full[at.stage]);
  }
  // The multiplying threads: what is next, and that a stage has been read.
  __device__ __forceinline__ int next(const Place& at) {
    hopper::wait(full[at.stage], at.phase);
    // Read by the lane that releases the stage.
    int of_tile = threadIdx.x % kWarp == 0 ? tile[at.stage] : 0;
    of_tile = __shfl_sync(0xffffffffU, of_tile, 0);
    return of_tile;
  }
  // How many steps that tile has, with documents.
  __device__ __forceinline__ int next_steps(const Place& at) {
    const int of_steps = threadIdx.x % kWarp == 0 ? steps[at.stage] : 0;
    return __shfl_sync(0xffffffffU, of_steps, 0);
  }
  __device__ __forceinline__ void release(int stage) {
    if (threadIdx.x % kWarp == 0) hopper::arrive(empty[stage]);
  }
};
constexpr int kProductShared = sizeof(ProductRing);

__device__ __forceinline__ int attention_group() { return product_group(); }

// This thread's first row of its group's 64, and the first of its columns of every eight.
__device__ __forceinline__ int attention_row() {
  return static_cast<int>(threadIdx.x) % hopper::kGroup / kWarp * 16 + static_cast<int>(threadIdx.x) % kWarp / 4;
}
__device__ __forceinline__ int attention_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

// The lines as they lie to a block of which they are a part.
__device__ __forceinline__ void copy_lines(const unsigned char* lines, unsigned char* to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = lane; i < kLinesBytes / 16; i += kWarp) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(lines)[i];
  }
}

// Where results go: rows of a head of a piece, the rows' ends and the piece's cut off.
struct AttentionResult {
  unsigned char* data;       // row 0 of piece 0
  std::int64_t pitch, step;  // bytes from a row to the next, and from a piece
  int rows, width;           // rows of a piece, bytes of a head's row

  // The lines' rows, from `row` on, to the bytes from `begin` on.
  __device__ __forceinline__ void write(const unsigned char* lines, int piece, int head, int row, int begin) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int at = begin + lane % 8 * 16;
    if (at >= width) return;
    unsigned char* const to = data + piece * step + static_cast<std::int64_t>(head) * width + at;
#pragma unroll
    for (int i = lane / 8; i < kLines; i += kWarp / 8) {
      if (row + i >= rows) continue;
      *reinterpret_cast<uint4*>(to + (row + i) * pitch) =
          *reinterpret_cast<const uint4*>(lines + i * 128 + (lane % 8 ^ i % 8) * 16);
    }
  }
};

// None of them yet: `first` and `count` are the caller's.
inline AttentionPairs attention_pairs(const Attention& op, const AttentionChunks& pieces, const AttentionTiles& tiles) {
  return {0,
          0,
          static_cast<int>(op.heads),
          static_cast<int>(pieces.rows),
          pieces.row,
          pieces.row_step,
          tiles,
          attention_documents(op)};
}

inline AttentionResult attention_result(const Tensor& tensor, const AttentionChunks& pieces, std::int64_t heads) {
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype()));
  return {reinterpret_cast<unsigned char*>(attention_at(tensor, pieces.row, 0)), tensor.pitch() * size,
          pieces.row_step * tensor.pitch() * size, static_cast<int>(pieces.rows), static_cast<int>(tensor.cols() / heads * size)};
}

// This warp of the multiplying ones, and its first row of a tile.
__device__ __forceinline__ int attention_warp() { return product_warp(); }

// Writes a warp's rows of the sums, times their rows' factors, in bfloat16.
template <int N>
__device__ __forceinline__ void write_halves(ProductRing& ring, const float (&sums)[N], float scale, float scale_below,
                                             const AttentionResult& to, int column, int head, int row, int piece) {
#pragma unroll
  for (int part = 0; part < N / 32; ++part) {
    unsigned char* const lines = ring.out[attention_warp()][part % 2];
    std::uint32_t values[16];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* const four = sums + 32 * part + 4 * j;
      values[2 * j] = hopper::pack_halves(four[0] * scale, four[1] * scale);
      values[2 * j + 1] = hopper::pack_halves(four[2] * scale_below, four[3] * scale_below);
    }
    put_lines(lines, values);
    __syncwarp();  // and what was read of the other lines has been
    to.write(lines, piece, head, row + attention_warp() * kLines, (column + part * hopper::kBlock) * 2);
  }
}

// The same in float32.
template <int N>
__device__ __forceinline__ void write_floats(ProductRing& ring, const float (&sums)[N], const AttentionResult& to, int head,
                                             int row, int piece) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int part = 0; part < N / 16; ++part) {
    unsigned char* const lines = ring.out[attention_warp()][part % 2];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* const four = sums + 16 * part + 4 * j;
      const int at = ((2 * j + lane % 4 / 2) ^ (lane / 4)) * 16 + lane % 2 * 8;
      *reinterpret_cast<float2*>(lines + lane / 4 * 128 + at) = make_float2(four[0], four[1]);
      *reinterpret_cast<float2*>(lines + (lane / 4 + 8) * 128 + at) = make_float2(four[2], four[3]);
    }
    __syncwarp();
    to.write(lines, piece, head, row + attention_warp() * kLines, part * 128);
  }
}

}  // namespace megalodon::cuda
