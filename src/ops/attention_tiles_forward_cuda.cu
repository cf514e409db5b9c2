#include <cfloat>

#include "ops/attention_tiles.cuh"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "attention_forward";

// Weights of the pairs before they are divided by their sums.
struct Weights {
  CUtensorMap q, k;
  AttentionPairs pairs;
  unsigned char* tiles;
  float* scales;  // [pairs, rows in tiles]: 1 / the row's sum
  float* lse;     // [rows of the window, heads], or null
  int* next;      // set to 0 for the kernel that follows
};

constexpr int kWeightStages = 2;
constexpr int kWeightThreads = 2 * hopper::kGroup + kWarp;

// Shared memory: the blocks of Q, of two tiles of K, the groups' outgoing ones, then barriers.
constexpr int weights_blocks(int z_blocks) { return (1 + kWeightStages) * 2 * z_blocks + 2; }
constexpr int weights_shared(int z_blocks) { return weights_blocks(z_blocks) * hopper::kBlockBytes + 64; }

#if MEGALODON_HOPPER

struct WeightBarriers {
  hopper::Barrier q, full[kWeightStages], empty[kWeightStages];
};

// Logits of the group's 64 rows and a tile's 128 keys, those behind the rows minus infinity, and with documents those before
// `first` of this thread's two rows.
template <int ZBlocks, bool Documents>
__device__ __forceinline__ void logits(const Weights& a, const unsigned char* q, const unsigned char* k, WeightBarriers& bars,
                                       RingPlace<kWeightStages>& at, int r, int t, const int (&first)[2], float (&s)[64]) {
  constexpr int kZBytes = ZBlocks * 2 * hopper::kBlockBytes;
  const int group = product_group();
  hopper::wait(bars.full[at.stage], at.phase);
  const std::uint64_t rows = hopper::operand(q + group * hopper::kBlockBytes);
  const std::uint64_t keys = hopper::operand(k + at.stage * kZBytes);
  constexpr std::uint64_t kNextBlock = 2 * hopper::kBlockBytes / 16;
  hopper::fence_products();
#pragma unroll
  for (int z = 0; z < ZBlocks; ++z) {
#pragma unroll
    for (int i = 0; i < hopper::kBlock / 16; ++i) {
      hopper::wgmma<false, false>(s, hopper::operand_at<false>(rows + z * kNextBlock, i),
                                  hopper::operand_at<false>(keys + z * kNextBlock, i), z + i);
    }
  }
  hopper::commit_products();
  hopper::wait_products<0>();
  if (threadIdx.x % kWarp == 0) hopper::arrive(bars.empty[at.stage]);
  at.next();
  const int own = a.pairs.tiles.in_chunk + r * kTile + group * hopper::kBlock - t * kTile;  // what the group's row 0 sees last
  if (own >= kTile - 1 && (!Documents || first[1] <= t * kTile)) return;
  const int row = own + attention_row();
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bool seen = 8 * j + attention_column() + i % 2 <= row + i / 2 * 8;
      if constexpr (Documents) seen = seen && 8 * j + attention_column() + i % 2 >= first[i / 2] - t * kTile;
      if (!seen) s[4 * j + i] = -INFINITY;
    }
  }
}

__device__ __forceinline__ float of_four_lanes(float v, bool most) {
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const float other = __shfl_xor_sync(0xffffffffU, v, offset);
    v = most ? fmaxf(v, other) : v + other;
  }
  return v;
}

template <int N>
__device__ __forceinline__ void take_most(const float (&s)[N], float (&most)[2]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    most[0] = fmaxf(most[0], fmaxf(s[i], s[i + 1]));
    most[1] = fmaxf(most[1], fmaxf(s[i + 2], s[i + 3]));
  }
}

#endif

// A block takes a tile of rows of one pair, tile after tile of its keys. What is subtracted from the logits is the greatest of
// the row's first tile: weights may be large, and are right as long as their sum is not; in the rare other case all is done once
// more with the greatest of the row. With documents it is that of the first tile of which the row sees anything, and only the
// rows whose sums are too large get another: a document's weights depend on nothing outside of it.
template <int ZBlocks, bool Documents>
__global__ void __launch_bounds__(kWeightThreads, ZBlocks > 2 ? 1 : 2) weights_kernel(const __grid_constant__ Weights a) {
#if MEGALODON_HOPPER
  constexpr float kMostSum = 1e20F;
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kZBytes = ZBlocks * 2 * hopper::kBlockBytes;
  unsigned char* const q = shared;
  unsigned char* const k = q + kZBytes;
  unsigned char* const out = k + kWeightStages * kZBytes;
  auto& bars = *reinterpret_cast<WeightBarriers*>(out + 2 * hopper::kBlockBytes);
  // The longest of all pairs first: none of them begins when little else is left to do.
  const int pair = static_cast<int>(blockIdx.x) % a.pairs.count;
  const int r = a.pairs.tiles.rows - 1 - static_cast<int>(blockIdx.x) / a.pairs.count;
  const int head = a.pairs.head(pair);
  const int piece = a.pairs.piece(pair);
  const int first = Documents ? a.pairs.first_tile(piece, r) : 0;  // of the tiles of keys
  const int tiles = a.pairs.tiles.keys(r) - first;
  const int group = product_group();
  if (threadIdx.x == 0) {
    if (blockIdx.x == 0) *a.next = 0;
    hopper::init(bars.q, 1);
    for (int i = 0; i < kWeightStages; ++i) {
      hopper::init(bars.full[i], 1);
      hopper::init(bars.empty[i], 2 * hopper::kGroup / kWarp);
    }
    hopper::fence_init();
  }
  __syncthreads();
  RingPlace<kWeightStages> at;
  int first_seen[2] = {};
  if (Documents && group < 2) {
    const int row = r * kTile + group * hopper::kBlock + attention_row();
    first_seen[0] = a.pairs.first_seen(piece, row);
    first_seen[1] = a.pairs.first_seen(piece, row + 8);
  }
  // With documents: what is subtracted of this thread's two rows, and whether their sums were too large the first time.
  float shifts[2] = {-INFINITY, -INFINITY};
  bool wrong[2] = {};
  for (bool exact = false;; exact = true) {
    bool doubt = false;
    if (group == 2) {
      if (threadIdx.x == 2 * hopper::kGroup) {
        if (!exact) {
          hopper::arrive_expecting(bars.q, kZBytes);
          for (int i = 0; i < ZBlocks; ++i) {
            hopper::load(q + i * 2 * hopper::kBlockBytes, a.q, bars.q, i * hopper::kBlock, head, r * kTile, piece);
          }
        }
        for (int t = 0; t < tiles * (exact ? 2 : 1); ++t) {
          hopper::wait(bars.empty[at.stage], at.phase ^ 1);
          hopper::arrive_expecting(bars.full[at.stage], kZBytes);
          for (int i = 0; i < ZBlocks; ++i) {
            hopper::load(k + at.stage * kZBytes + i * 2 * hopper::kBlockBytes, a.k, bars.full[at.stage], i * hopper::kBlock, head,
                         (first + t % tiles) * kTile, piece);
          }
          at.next();
        }
      }
      __syncwarp();
    } else {
      hopper::wait(bars.q, 0);
      float s[64] = {};
      float most[2] = {-INFINITY, -INFINITY};
      float sum[2] = {0, 0};
      unsigned char* const lines = out + product_warp() * kLinesBytes;
      unsigned char* to =
          a.tiles +
          (static_cast<std::int64_t>(pair) * a.pairs.tiles.count<Documents>() + a.pairs.tiles.before<Documents>(r) + first) *
              kTileBytes +
          product_warp() * kLinesBytes;
      for (int i = exact ? -tiles : 0; i < tiles; ++i) {
        logits<ZBlocks, Documents>(a, q, k, bars, at, r, first + (i < 0 ? i + tiles : i), first_seen, s);
        bool found = i == 0;
        if (Documents && !exact) found = __any_sync(0xffffffffU, shifts[0] == -INFINITY || shifts[1] == -INFINITY) != 0;
        if (i < 0 || (found && !exact)) take_most(s, most);
        if (i < 0) continue;
        if (found) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            most[j] = of_four_lanes(most[j], true);
            if (Documents && (exact ? wrong[j] : shifts[j] == -INFINITY)) shifts[j] = most[j];
          }
        }
        // Finite where nothing has been seen yet.
        const float shift[2] = {Documents ? fmaxf(shifts[0] * kLog2E, -FLT_MAX) : most[0] * kLog2E,
                                Documents ? fmaxf(shifts[1] * kLog2E, -FLT_MAX) : most[1] * kLog2E};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t values[16];
#pragma unroll
          for (int j = 0; j < 16; ++j) {
            const float* const two = s + 32 * half + 2 * j;
            const float x = exp2_fast(two[0] * kLog2E - shift[j % 2]);
            const float y = exp2_fast(two[1] * kLog2E - shift[j % 2]);
            sum[j % 2] += x + y;
            values[j] = pack_halves(x, y);
          }
          __syncwarp();
          put_lines(lines, values);
          __syncwarp();
          copy_lines(lines, to);
          to += 2 * hopper::kBlockBytes;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[i] = of_four_lanes(sum[i], false);
        doubt = doubt || (!exact && !(sum[i] < kMostSum));
        if constexpr (Documents) wrong[i] = !(sum[i] < kMostSum);
        const int row = r * kTile + group * hopper::kBlock + attention_row() + 8 * i;
        if (attention_column() > 0) continue;
        a.scales[static_cast<std::int64_t>(pair) * a.pairs.tiles.rows * kTile + row] = 1.0F / sum[i];
        if (a.lse != nullptr && row < a.pairs.rows) a.lse[a.pairs.at(pair, row)] = (Documents ? shifts : most)[i] + logf(sum[i]);
      }
    }
    if (__syncthreads_or(static_cast<int>(doubt)) == 0) break;
  }
#else
  __trap();
#endif
}

// o = the pairs' weights times the values, divided by the weights' sums.
struct Attend {
  AttentionColumns v;
  AttentionEnd o;             // by the writing warps
  AttentionCopies copied[2];  // or by the copy engine, `copies` results one after the other
  int copies;
  AttentionPairs pairs;
  int columns;  // tiles of 256 columns
  const unsigned char* tiles;
  const float* scales;
  int* next;
};

constexpr int kColumns = 256;

struct AttendTile {
  int pair, r, column, steps;
};

template <bool Documents>
__global__ void __launch_bounds__(kProductThreads, 1) attend_kernel(const __grid_constant__ Attend a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<ResultShared<AttendTile>*>(memory);
  auto& ring = shared.ring;
  shared.init(a.copies > 0 ? 1 : kWritingWarps * kWarp);
  RingPlace<3> at;
  if (product_group() == 2) {
    hopper::fewer_registers<kOtherRegisters>();
    if (threadIdx.x >= 2 * hopper::kGroup + kWarp) {
      const auto at_end = [&](const auto& end, const AttendTile& tile) {
        return AttentionPlace<std::decay_t<decltype(end)>>{end, a.pairs.piece(tile.pair), a.pairs.head(tile.pair), tile.r * kTile,
                                                           tile.column * 2};
      };
      if (a.copies == 0) {
        return write_results<Factor::Silu>(
            shared, [](const AttendTile&) { return 1; }, [&](const AttendTile& tile, int) { return at_end(a.o, tile); });
      }
      return copy_results(
          shared, [&](const AttendTile&) { return a.copies; },
          [&](const AttendTile& tile, int i) { return at_end(a.copied[i], tile); });
    }
    if (threadIdx.x != 2 * hopper::kGroup) return;
    const AttentionTiles& tiles = a.pairs.tiles;
    const int of_pair = tiles.rows * a.columns;
    int count = 0;
    for (int i = static_cast<int>(blockIdx.x); i < of_pair * a.pairs.count;
         i = static_cast<int>(gridDim.x) + atomicAdd(a.next, 1)) {
      AttendTile tile{i / of_pair, tiles.rows - 1 - i % of_pair / a.columns, i % a.columns * kColumns, 0};
      const int head = a.pairs.head(tile.pair);
      const int piece = a.pairs.piece(tile.pair);
      const int first = Documents ? a.pairs.first_tile(piece, tile.r) : 0;  // tile of keys
      const unsigned char* weights =
          a.tiles + (static_cast<std::int64_t>(tile.pair) * tiles.count<Documents>() + tiles.before<Documents>(tile.r) + first) *
                        kTileBytes;
      tile.steps = 2 * (tiles.keys(tile.r) - first);
      shared.announce(count++, tile);
      for (int step = 0; step < tile.steps; ++step, at.next(), weights += 2 * hopper::kBlockBytes) {
        auto& stage = ring.fill(at, kColumns, tile);
        hopper::load(stage.a, weights, 2 * hopper::kBlockBytes, ring.full[at.stage]);
        a.v.load(stage.b, ring.full[at.stage], ring.kB, tile.column, head, (2 * first + step) * hopper::kBlock, piece);
      }
    }
    shared.announce(count, {-1, 0, 0, 0});
    ring.finish(at);
  } else {
    hopper::more_registers<kMultiplyingRegisters>();
    ResultGiver<AttendTile> results{shared};
    for (AttendTile tile{}; (tile = ring.next(at)).pair >= 0;) {
      const float* const scales = a.scales + (static_cast<std::int64_t>(tile.pair) * a.pairs.tiles.rows + tile.r) * kTile +
                                  product_group() * hopper::kBlock + attention_row();
      const float scale = scales[0];
      const float scale_below = scales[8];
      float sums[kColumns / 2] = {};
      multiply<false, true>(ring, at, tile.steps, sums);
      const bool multiplies = a.copies > 0 && a.copied[0].has_factors;
      if (multiplies) results.give_products<Factor::Silu>(sums, scale, scale_below);
      if (!multiplies || a.copies > 1) results.give_halves(sums, scale, scale_below);
    }
  }
#else
  __trap();
#endif
}

// Rows of a piece, and its tiles, at most.
std::int64_t most_rows(const Attention& op, std::int64_t length) { return ceil_div(std::min(op.chunk, length), kTile); }
std::int64_t bytes_of_pair(std::int64_t rows, std::int64_t tiles) {
  return tiles * kTileBytes + rows * kTile * static_cast<std::int64_t>(sizeof(float));
}

AttentionAtOnce most_at_once(const Attention& op, std::int64_t batch, std::int64_t length) {
  const std::int64_t rows = most_rows(op, length);
  const std::int64_t keys = ceil_div(op.chunk, kTile) + 1;  // a piece may begin inside a tile
  const std::int64_t each = bytes_of_pair(rows, std::min(rows * keys, keys * (keys + 1) / 2));
  return attention_at_once(op.heads * batch * ceil_div(length, op.chunk), each);
}

}  // namespace

std::size_t attention_forward_tiles_bytes(const Attention& op, std::int64_t batch, std::int64_t length) {
  // Windows of documents take no more, unless one pair of theirs does.
  const std::int64_t of_documents = bytes_of_pair(ceil_div(length, kTile), attention_tiles(op, length, 0).count<true>());
  return static_cast<std::size_t>(std::max(most_at_once(op, batch, length).bytes, of_documents)) + 3 * 256;
}

void attention_forward_tiles(Context& ctx, const AttentionForward& a, const AttentionChunks& pieces) {
  const Attention& op = a.op;
  const bool documents = static_cast<bool>(op.documents);
  const AttentionTiles tiles = attention_tiles(op, pieces.rows, pieces.in_chunk);
  const std::int64_t pairs = op.heads * pieces.count;
  const int count = documents ? tiles.count<true>() : tiles.count<false>();
  const std::int64_t each = bytes_of_pair(tiles.rows, count);
  const std::int64_t bytes = most_at_once(op, a.batch(), a.length()).bytes;
  const std::int64_t at_once = ceil_div(pairs, ceil_div(pairs, std::max<std::int64_t>(1, bytes / each)));
  ArenaScope scope(ctx.workspace());
  const auto next = static_cast<int*>(ctx.workspace().allocate(DType::I32, {1}).raw());
  const auto scales = pointer<float>(ctx.workspace().allocate(DType::F32, {at_once, tiles.rows * kTile}));
  const auto weights = static_cast<unsigned char*>(ctx.workspace().allocate(DType::U8, {at_once, count * kTileBytes}).raw());

  const Tensor& k = pieces.in_state ? a.state.k : a.k;
  const Tensor& v = pieces.in_state ? a.state.v : a.v;
  const std::int64_t keys = pieces.in_chunk + pieces.rows;
  const auto of_rows = [&](const Tensor& tensor) {
    return attention_map(tensor, pieces.row, pieces.rows, pieces.row_step, pieces.count, op.heads);
  };
  const auto of_keys = [&](const Tensor& tensor) {
    return attention_map(tensor, pieces.key_row, keys, pieces.key_step, pieces.count, op.heads);
  };
  AttentionPairs part = attention_pairs(op, pieces, tiles);
  const bool narrow = op.z_head_dim <= 2 * hopper::kBlock;
  const int shared = weights_shared(narrow ? 2 : 4);
  const auto weigh = documents ? (narrow ? weights_kernel<2, true> : weights_kernel<4, true>)
                               : (narrow ? weights_kernel<2, false> : weights_kernel<4, false>);
  const auto attend = documents ? attend_kernel<true> : attend_kernel<false>;
  Weights first{of_rows(a.q), of_keys(k), part, weights, scales, a.saved.lse ? pointer<float>(a.saved.lse) : nullptr, next};
  const auto rows = [&](const Tensor& tensor) { return attention_rows(tensor, pieces, op.heads); };
  const bool copies = !attention_writes(op, a.length());
  const bool keeps = a.gate.a && a.gate.gated;  // o beside what the gate makes of it
  const Tensor& gated = keeps ? a.gate.gated : a.o;
  const auto columns = [&](const Tensor& tensor, int blocks) {
    return attention_columns(tensor, pieces.row, pieces.rows, pieces.row_step, pieces.count, op.heads, blocks);
  };
  constexpr int kBlocks = kColumns / hopper::kBlock;
  const AttentionColumns factors = a.gate.a ? columns(a.gate.a, copies ? kBlocks : 1) : AttentionColumns{};
  AttentionEnd end{rows(a.o), {}, {}};
  if (a.gate.a) end = {keeps ? rows(a.o) : AttentionRows{}, rows(gated), factors};
  Attend second{attention_columns(v, pieces.key_row, keys, pieces.key_step, pieces.count, op.heads, kColumns / hopper::kBlock),
                end,
                {{columns(gated, kBlocks), factors, static_cast<bool>(a.gate.a)}, {columns(a.o, kBlocks), {}, false}},
                copies ? (keeps ? 2 : 1) : 0,
                part,
                static_cast<int>(ceil_div(op.v_head_dim, kColumns)),
                weights,
                scales,
                next};
  check(cudaFuncSetAttribute(weigh, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), kName);
  check(cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(ResultShared<AttendTile>)), kName);
  for (std::int64_t begin = 0; begin < pairs; begin += at_once) {
    part.first = static_cast<int>(begin);
    part.count = static_cast<int>(std::min(at_once, pairs - begin));
    first.pairs = part;
    second.pairs = part;
    weigh<<<part.count * tiles.rows, kWeightThreads, shared, stream_of(ctx)>>>(first);
    check_launch(kName);
    const int blocks = std::min(gpu_of(ctx).multiprocessors(), part.count * tiles.rows * second.columns);
    attend<<<blocks, kProductThreads, sizeof(ResultShared<AttendTile>), stream_of(ctx)>>>(second);
    check_launch(kName);
  }
}

}  // namespace megalodon::cuda
