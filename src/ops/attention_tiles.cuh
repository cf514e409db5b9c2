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
#include "ops/silu_gate.cuh"

namespace megalodon::cuda {

constexpr int kTile = 128;  // rows and keys of a tile
constexpr int kTileBlocks = (kTile / hopper::kBlock) * (kTile / hopper::kBlock);
constexpr std::int64_t kTileBytes = kTileBlocks * hopper::kBlockBytes;

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

// Whether results leave by warps that write, and multiply by gates, beside the products: that takes as long as some 20 steps of
// one, which rows that see few keys do not have. Else the copy engine takes them, and the groups that sum up multiply.
inline bool attention_writes(const Attention& op, std::int64_t length) {
  constexpr std::int64_t kLeastKeys = 2048;
  return std::min(op.chunk, length) >= kLeastKeys;
}

// attention_tiles_forward_cuda.cu, attention_tiles_backward_cuda.cu: the pieces, in as much workspace as the second says.
void attention_forward_tiles(Context& ctx, const AttentionForward& a, const AttentionChunks& pieces);
std::size_t attention_forward_tiles_bytes(const Attention& op, std::int64_t batch, std::int64_t length);

struct AttentionBackward {
  const Attention& op;
  const Tensor &q, &k, &v, &lse, &delta, &do_, &dq, &dk, &dv, &a;
};
void attention_backward_tiles(Context& ctx, const AttentionBackward& a, const AttentionChunks& pieces);
std::size_t attention_backward_tiles_bytes(const Attention& op, std::int64_t batch, std::int64_t length);

// Boxes of a tile's rows by 64 columns of a tensor's pieces: coordinates are column, head, row, piece; what lies outside reads as
// zero.
CUtensorMap attention_map(const Tensor& tensor, std::int64_t row, std::int64_t rows, std::int64_t row_step, std::int64_t pieces,
                          std::int64_t heads);

// The same of 64 rows and up to four times 128 bytes of columns, as blocks: at once where heads are whole blocks, else one by
// one. A thread that fetches has little time for a step.
struct AttentionColumns {
  CUtensorMap map;
  bool at_once;
  int width;  // columns of a block

  __device__ __forceinline__ void load(unsigned char (*to)[hopper::kBlockBytes], hopper::Barrier& barrier, int blocks, int column,
                                       int head, int row, int piece) const {
    if (at_once) return hopper::load(to, map, barrier, 0, row, column / hopper::kBlock, head, piece);
    for (int n = 0; n < blocks; ++n) hopper::load(to[n], map, barrier, column + n * hopper::kBlock, row, 0, head, piece);
  }
  __device__ __forceinline__ void store(const unsigned char (*from)[hopper::kBlockBytes], int blocks, int block, int head,
                                        int row, int piece) const {
    if (at_once) return hopper::store(map, from, 0, row, block, head, piece);
    for (int n = 0; n < blocks; ++n) hopper::store(map, from[n], (block + n) * width, row, 0, head, piece);
  }
};
AttentionColumns attention_columns(const Tensor& tensor, std::int64_t row, std::int64_t rows, std::int64_t row_step,
                                   std::int64_t pieces, std::int64_t heads, int blocks);

// How many pairs go at once when each takes `each` bytes, and what they all take then.
struct AttentionAtOnce {
  std::int64_t pairs, bytes;
};
inline AttentionAtOnce attention_at_once(std::int64_t pairs, std::int64_t each) {
  constexpr std::int64_t kMost = 512 << 20;
  const std::int64_t calls = ceil_div(pairs * each, std::max(kMost, each));
  return {ceil_div(pairs, calls), std::max(std::min(kMost, pairs * each), each)};
}

// What the warp's first lane reads: the one that says afterwards, of what it has read, that it may be written again.
template <class T>
__device__ __forceinline__ T from_first_lane(const T& shared) {
  static_assert(sizeof(T) % sizeof(int) == 0);
  struct Words {
    int word[sizeof(T) / sizeof(int)];
  } words{};
  if (threadIdx.x % kWarp == 0) words = reinterpret_cast<const Words&>(shared);
#pragma unroll
  for (int& word : words.word) word = __shfl_sync(0xffffffffU, word, 0);
  return reinterpret_cast<const T&>(words);
}

// The operands of the kernels that get them step by step; a Tile says what they are for, its `pair` is -1 after the last.
template <int Stages, class Out, class Tile>
struct ProductRing : OperandStages<Stages, Out> {
  using Base = OperandStages<Stages, Out>;
  using Base::empty;
  using Base::full;
  using typename Base::Place;
  using typename Base::Stage;
  Tile tiles[Stages];

  __device__ void init() {
    Base::init(kProductWarps);
    __syncthreads();
  }
  // The fetching thread: the next stage, emptied, and to be filled with B of `columns` columns.
  __device__ __forceinline__ Stage& fill(const Place& at, int columns, const Tile& tile) {
    hopper::wait(empty[at.stage], at.phase ^ 1);
    tiles[at.stage] = tile;
    hopper::arrive_expecting(full[at.stage], (2 + columns / hopper::kBlock) * hopper::kBlockBytes);
    return this->stages[at.stage];
  }
  __device__ __forceinline__ void finish(const Place& at) {
    hopper::wait(empty[at.stage], at.phase ^ 1);
    tiles[at.stage].pair = -1;
    hopper::arrive(full[at.stage]);
  }
  // The multiplying threads: what is next, and that a stage has been read.
  __device__ __forceinline__ Tile next(const Place& at) {
    hopper::wait(full[at.stage], at.phase);
    return from_first_lane(tiles[at.stage]);
  }
  __device__ __forceinline__ void release(int stage) {
    if (threadIdx.x % kWarp == 0) hopper::arrive(empty[stage]);
  }
};
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

// The rows of a head of a piece in memory, of whole 16 bytes.
struct AttentionRows {
  unsigned char* data;       // row 0 of piece 0; null: none
  std::int64_t pitch, step;  // bytes from a row to the next, and from a piece
  int rows, width;           // rows of a piece, bytes of a head's row

  __device__ __forceinline__ unsigned char* at(int piece, int head, int row, int byte) const {
    return data + piece * step + row * pitch + static_cast<std::int64_t>(head) * width + byte;
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

inline AttentionRows attention_rows(const Tensor& tensor, const AttentionChunks& pieces, std::int64_t heads) {
  if (!tensor) return {};
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype()));
  return {reinterpret_cast<unsigned char*>(attention_at(tensor, pieces.row, 0)), tensor.pitch() * size,
          pieces.row_step * tensor.pitch() * size, static_cast<int>(pieces.rows), static_cast<int>(tensor.cols() / heads * size)};
}

// The kernels whose sums are results. Two groups multiply; what they have summed they leave in shared memory, and go on while
// three warps of the third group, or two of their threads and the copy engine, take it to memory. A thread of that group's other
// warp fetches, and announces to them each tile.
constexpr int kWritingWarps = hopper::kGroup / kWarp - 1;
template <class Tile>
struct ResultShared {
  static constexpr int kParts = 4;  // blocks side by side: of a row 512 bytes
  static constexpr int kTiles = 8;  // more than lie between a tile that is fetched and one that is written

  unsigned char factors[2][hopper::kBlockBytes];  // of what is to be multiplied, a block after the other
  // Of each multiplying group, 64 rows.
  ProductRing<3, unsigned char[2][kParts][hopper::kBlockBytes], Tile> ring;
  // Of `ready` and `taken` each thread says so itself.
  hopper::Barrier fetched[2], ready[2], taken[2], announced[kTiles];
  Tile tiles[kTiles];

  // takers: threads that take what a group has left.
  __device__ void init(int takers) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) {
        hopper::init(fetched[i], 1);
        hopper::init(ready[i], hopper::kGroup);
        hopper::init(taken[i], takers);
      }
      for (hopper::Barrier& barrier : announced) hopper::init(barrier, 1);
    }
    ring.init();
  }
  // The fetching thread: the count'th tile; then one of pair -1.
  __device__ __forceinline__ void announce(int count, const Tile& tile) {
    tiles[count % kTiles] = tile;
    hopper::arrive(announced[count % kTiles]);
  }
  __device__ __forceinline__ Tile next(int count) {
    hopper::wait(announced[count % kTiles], count / kTiles % 2);
    return tiles[count % kTiles];
  }
};
// Registers of a thread that multiplies, and of the others.
constexpr int kMultiplyingRegisters = 200;
constexpr int kOtherRegisters = 104;

// The multiplying group's side.
template <class Tile>
struct ResultGiver {
  ResultShared<Tile>& shared;
  std::uint32_t phase = 0;
  std::uint32_t fetched_phase = 0;

  static constexpr int kParts = ResultShared<Tile>::kParts;

  // This warp's lines of a part, once what was there before has been taken.
  __device__ __forceinline__ unsigned char* lines(int part) const {
    return shared.ring.out[product_group()][part] + product_warp() % (hopper::kGroup / kWarp) * kLinesBytes;
  }
  __device__ __forceinline__ void wait() const { hopper::wait(shared.taken[product_group()], phase ^ 1); }
  __device__ __forceinline__ void give() {
    hopper::arrive(shared.ready[product_group()]);
    phase ^= 1;
  }
  // The sums, times their rows' factors, in bfloat16.
  template <int N>
  __device__ __forceinline__ void give_halves(const float (&sums)[N], float scale, float scale_below) {
    static_assert(N == kParts * 32);
    wait();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      std::uint32_t values[16];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* const four = sums + 32 * part + 4 * j;
        values[2 * j] = pack_halves(four[0] * scale, four[1] * scale);
        values[2 * j + 1] = pack_halves(four[2] * scale_below, four[3] * scale_below);
      }
      put_lines(lines(part), values);
    }
    give();
  }
  // The same times silu, or its slope, of what has been fetched to where they are left.
  template <Factor Of, int N>
  __device__ __forceinline__ void give_products(const float (&sums)[N], float scale, float scale_below) {
    static_assert(N == kParts * 32);
    hopper::wait(shared.fetched[product_group()], fetched_phase);
    fetched_phase ^= 1;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      std::uint32_t values[16];
      get_lines(lines(part), values);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float* const two = sums + 32 * part + 2 * j;
        const float2 of = silu_factors<Of>(values[j]);
        const float by = j % 2 == 0 ? scale : scale_below;
        values[j] = pack_halves(two[0] * by * of.x, two[1] * by * of.y);
      }
      put_lines(lines(part), values);
    }
    give();
  }
  // The sums in float32, 128 columns at a time.
  template <int N>
  __device__ __forceinline__ void give_floats(const float (&sums)[N]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int half = 0; half < N / 64; ++half) {
      wait();
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        unsigned char* const to = lines(part);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* const four = sums + 64 * half + 16 * part + 4 * j;
          const int at = ((2 * j + lane % 4 / 2) ^ (lane / 4)) * 16 + lane % 2 * 8;
          *reinterpret_cast<float2*>(to + lane / 4 * 128 + at) = make_float2(four[0], four[1]);
          *reinterpret_cast<float2*>(to + (lane / 4 + 8) * 128 + at) = make_float2(four[2], four[3]);
        }
      }
      give();
    }
  }
};

// What becomes of results on their way to memory by warps that write.
struct AttentionEnd {
  AttentionRows result;   // null: not kept
  AttentionRows product;  // result times silu, or its slope, of `factors`; null: there is none
  AttentionColumns factors;
};

// Where a tile of results goes: its first row, and the first of its bytes in rows of a head.
template <class End>
struct AttentionPlace {
  const End& end;
  int piece, head, row, byte;
};

// Of two results in bfloat16 and as many of a.
template <Factor Of>
__device__ __forceinline__ std::uint32_t attention_product(std::uint32_t result, std::uint32_t a) {
  const auto product = [](float of, float x) {
    return Of == Factor::Silu ? silu_gate(x, of) : silu_gate_gradients(x, 1.0F, of).da;
  };
  return pack_halves(product(low_half(result), low_half(a)), product(high_half(result), high_half(a)));
}

// A block, which is a part of what a group gave, and of factors or null; what is past the ends of rows is left out.
template <Factor Of>
__device__ __forceinline__ void write_block(const unsigned char* results, const unsigned char* factors,
                                            const AttentionPlace<AttentionEnd>& to, int row, int byte) {
  constexpr int kThreads = kWritingWarps * kWarp;
  constexpr int kPieces = 8;  // of 16 bytes in a line
  constexpr int kStep = kThreads / kPieces;
  const int thread = static_cast<int>(threadIdx.x) % hopper::kGroup - kWarp;
  const int first = thread / kPieces;
  const int piece = thread % kPieces;
  const AttentionRows& rows = to.end.result.data != nullptr ? to.end.result : to.end.product;
  const int lines = min(hopper::kBlock, rows.rows - row);
  byte += piece * 16;
  if (byte >= rows.width || first >= lines) return;
  // Two of a thread's lines at once, with no branch among them, in a short loop: all of them at once are more instructions than
  // come in time beside the products'.
  constexpr int kAtOnce = 2;
  static_assert(ceil_div(hopper::kBlock, kStep) % kAtOnce == 0);
  const auto read = [&](const unsigned char* block, int line, uint4(&values)[kAtOnce]) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = min(line + i * kStep, hopper::kBlock - 1);
      values[i] = *reinterpret_cast<const uint4*>(block + at * 128 + (piece ^ at % 8) * 16);
    }
  };
  const auto write = [&](unsigned char*& at, std::int64_t step, int line, const uint4(&values)[kAtOnce]) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, at += step) {
      asm volatile(
          "{\n"
          ".reg .pred exists;\n"
          "setp.ne.b32 exists, %5, 0;\n"
          "@exists st.global.v4.b32 [%0], {%1, %2, %3, %4};\n"
          "}" ::"l"(at),
          "r"(values[i].x), "r"(values[i].y), "r"(values[i].z), "r"(values[i].w), "r"(static_cast<int>(line + i * kStep < lines))
          : "memory");
    }
  };
  unsigned char* result_to = to.end.result.at(to.piece, to.head, row + first, byte);
  unsigned char* product_to = to.end.product.at(to.piece, to.head, row + first, byte);
  const std::int64_t result_step = kStep * to.end.result.pitch;
  const std::int64_t product_step = kStep * to.end.product.pitch;
  const bool kept = to.end.result.data != nullptr;
#pragma unroll 1
  for (int line = first; line < lines; line += kAtOnce * kStep) {
    uint4 values[kAtOnce];
    read(results, line, values);
    if (kept) write(result_to, result_step, line, values);
    if (factors == nullptr) continue;
    uint4 a[kAtOnce];
    read(factors, line, a);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      values[i] = make_uint4(attention_product<Of>(values[i].x, a[i].x), attention_product<Of>(values[i].y, a[i].y),
                             attention_product<Of>(values[i].z, a[i].z), attention_product<Of>(values[i].w, a[i].w));
    }
    write(product_to, product_step, line, values);
  }
}

// take(to, phase) for each of the announced tiles' results: `to` is where it goes, and `phase` that in which groups give it.
template <class Tile, class Count, class Place, class Take>
__device__ __forceinline__ void take_results(ResultShared<Tile>& shared, Count&& count, Place&& place, Take&& take) {
  std::uint32_t phase = 0;
  for (int tiles = 0;; ++tiles) {
    const Tile tile = shared.next(tiles);
    if (tile.pair < 0) return;
    const int results = count(tile);
    for (int i = 0; i < results; ++i, phase ^= 1) {
      take(place(tile, i), phase);
    }
  }
}

// The writing warps: place(tile, i) is where the i'th of the tile's results, of count(tile), go.
template <Factor Of, class Tile, class Count, class Place>
__device__ __forceinline__ void write_results(ResultShared<Tile>& shared, Count&& count, Place&& place) {
  constexpr int kParts = ResultShared<Tile>::kParts;
  take_results(shared, count, place, [&](const AttentionPlace<AttentionEnd>& to, std::uint32_t phase) {
    const bool multiplied = to.end.product.data != nullptr;
    // Of the factors the n'th block.
    const auto fetch = [&](int n) {
      if (!multiplied || n >= 2 * kParts || threadIdx.x % hopper::kGroup != kWarp) return;
      hopper::arrive_expecting(shared.fetched[n % 2], hopper::kBlockBytes);
      to.end.factors.load(&shared.factors[n % 2], shared.fetched[n % 2], 1, to.byte / 2 + n % kParts * hopper::kBlock, to.head,
                          to.row + n / kParts * hopper::kBlock, to.piece);
    };
    fetch(0);
    fetch(1);
#pragma unroll 1
    for (int n = 0; n < 2 * kParts; ++n) {
      const int group = n / kParts;
      const int part = n % kParts;
      if (part == 0) hopper::wait(shared.ready[group], phase);
      if (multiplied) hopper::wait(shared.fetched[n % 2], n / 2 % 2);
      write_block<Of>(shared.ring.out[group][part], multiplied ? shared.factors[n % 2] : nullptr, to,
                      to.row + group * hopper::kBlock, to.byte + part * 128);
      if (multiplied) {
        __syncwarp();  // lanes with fewer lines than others are there first
        hopper::wait_for_threads<kWritingWarps * kWarp>();
        fetch(n + 2);
      }
      if (part == kParts - 1) hopper::arrive(shared.taken[group]);
    }
  });
}

// Results that the copy engine takes to memory. What they are multiplied by is fetched to where they will be left as soon as the
// ones before are gone, and the group that has the sums multiplies.
struct AttentionCopies {
  AttentionColumns results, factors;
  bool has_factors;
};

// The same by one thread for each multiplying group.
template <class Tile, class Count, class Place>
__device__ __forceinline__ void copy_results(ResultShared<Tile>& shared, Count&& count, Place&& place) {
  constexpr int kParts = ResultShared<Tile>::kParts;
  const int group = (static_cast<int>(threadIdx.x) - 2 * hopper::kGroup) / kWarp - 1;
  if (group >= 2 || threadIdx.x % kWarp != 0) return;
  auto& out = shared.ring.out[group];
  take_results(shared, count, place, [&](const AttentionPlace<AttentionCopies>& to, std::uint32_t phase) {
    const int row = to.row + group * hopper::kBlock;
    if (to.end.has_factors) {
      hopper::arrive_expecting(shared.fetched[group], kParts * hopper::kBlockBytes);
      to.end.factors.load(out, shared.fetched[group], kParts, to.byte / 2, to.head, row, to.piece);
    }
    hopper::wait(shared.ready[group], phase);
    hopper::fence_stores();
    to.end.results.store(out, kParts, to.byte / 128, to.head, row, to.piece);
    hopper::commit_stores();
    hopper::wait_stores<0>();
    hopper::arrive(shared.taken[group]);
  });
}

}  // namespace megalodon::cuda
