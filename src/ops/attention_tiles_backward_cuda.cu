#include "ops/attention_tiles.cuh"

namespace megalodon::cuda {

namespace {

constexpr const char* kName = "attention_backward";
constexpr int kColumns = 256;  // of a tile of a result

// Weights and gradients of logits: w = exp(q . k - lse), w (do . v - delta), 128 rows by two tiles of keys at once.
struct Gradients {
  CUtensorMap q, k, v, do_;
  AttentionPairs pairs;
  int z_blocks, v_blocks;
  unsigned char *weights, *gradients;
  const float *lse, *delta;  // [rows of the window, heads]
  int* next;                 // set to 0 for the kernel that follows
  int* taken;                // 0 at first
  int* ends;                 // [pieces, tiles of rows], with documents: those before it see the tile of keys
};

// Row tiles 2 i and 2 i + 1 of a pair have i + 1 pairs of key tiles each, with documents (width + 1) / 2 of them at most.
template <bool Documents>
__host__ __device__ constexpr int gradient_tiles(const AttentionTiles& tiles) {
  const int half = tiles.rows / 2;
  if constexpr (Documents) {
    const int most = (tiles.width + 1) / 2;
    const int growing = half < most ? half : most;
    return growing * (growing + 1) + (half - growing) * 2 * most + tiles.rows % 2 * (half < most ? half + 1 : most);
  }
  return half * (half + 1) + tiles.rows % 2 * (half + 1);
}

struct GradientTile {
  int pair, r, key;  // its first tile of keys; the second is above the diagonal where key == r
};

using GradientRing = ProductRing<4, ProductLines, GradientTile>;
#if MEGALODON_HOPPER

// The i'th of them.
template <bool Documents>
__device__ __forceinline__ GradientTile gradient_tile(int tile, int of_pair, const AttentionTiles& tiles) {
  const int i = tile % of_pair;
  int half = 0;
  if constexpr (Documents) {
    const int most = (tiles.width + 1) / 2;
    while (half + 1 < most && (half + 1) * (half + 2) <= i) ++half;
    const int of_row = half + 1;
    const int rest = i - half * of_row;
    half += rest / (2 * of_row);  // 0 until rows have as many as they may
    return {tile / of_pair, 2 * half + rest / of_row % 2, 2 * (half - rest % of_row)};
  } else {
    while ((half + 1) * (half + 2) <= i) ++half;
    const int rest = i - half * (half + 1);
    return {tile / of_pair, 2 * half + rest / (half + 1), rest % (half + 1) * 2};
  }
}

// Of `ends`, those of the pieces at hand: found by halving, since no row sees keys before those that an earlier row sees.
__device__ __forceinline__ void find_ends(const Gradients& a) {
  const int rows = a.pairs.tiles.rows;
  const int end = (a.pairs.piece(a.pairs.count - 1) + 1) * rows;
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = a.pairs.piece(0) * rows + static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < end; i += step) {
    const int piece = i / rows;
    const int key = i % rows;
    int low = key + 1;
    int high = rows;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (a.pairs.first_tile(piece, middle) <= key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    a.ends[i] = low;
  }
}

template <int Keys, bool Documents>
__device__ __forceinline__ void gradients_tile(const Gradients& a, GradientRing& ring, GradientRing::Place& at,
                                               const GradientTile& tile) {
  const int group = product_group();
  const int row = tile.r * kTile + group * hopper::kBlock + attention_row();
  // Rows past the last weigh nothing.
  float lse[2] = {INFINITY, INFINITY};
  float delta[2] = {0, 0};
  int first_seen[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (Documents) first_seen[i] = a.pairs.first_seen(a.pairs.piece(tile.pair), row + 8 * i);
    if (row + 8 * i >= a.pairs.rows) continue;
    const std::int64_t value = a.pairs.at(tile.pair, row + 8 * i);
    lse[i] = a.lse[value];
    delta[i] = a.delta[value];
  }
  float s[Keys / 2] = {};
  multiply<false, false>(ring, at, a.z_blocks, s);
  // Here and no earlier, or the first products wait for memory.
  asm volatile("" : "+f"(lse[0]), "+f"(lse[1]));
  lse[0] *= kLog2E;
  lse[1] *= kLog2E;
  const std::int64_t first = (static_cast<std::int64_t>(tile.pair) * a.pairs.tiles.count<Documents>() +
                              a.pairs.tiles.before<Documents>(tile.r) + tile.key) *
                                 kTileBytes +
                             product_warp() * kLinesBytes;
  const auto write = [&](const std::uint32_t(&values)[16], unsigned char* tiles, int part) {
    unsigned char* const lines = ring.out[product_warp()][part % 2];
    put_lines(lines, values);
    __syncwarp();  // and what was read of the other lines has been
    copy_lines(lines, tiles + first + part * 2LL * hopper::kBlockBytes);
  };
  constexpr int kParts = Keys / hopper::kBlock;
  if (tile.key * kTile + Keys > tile.r * kTile || (Documents && first_seen[1] > tile.key * kTile)) {
    const int last = row - tile.key * kTile - attention_column();  // of this thread's columns that its first row sees
#pragma unroll
    for (int j = 0; j < Keys / 2; ++j) {
      const int column = j / 4 * 8 + j % 2;
      bool seen = column <= last + j / 2 % 2 * 8;
      if constexpr (Documents) seen = seen && column >= first_seen[j / 2 % 2] - tile.key * kTile - attention_column();
      if (!seen) s[j] = -INFINITY;
    }
  }
  std::uint32_t weights[kParts][16];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float* const two = s + 32 * part + 2 * j;
      weights[part][j] = pack_halves(exp2_fast(two[0] * kLog2E - lse[j % 2]), exp2_fast(two[1] * kLog2E - lse[j % 2]));
    }
    write(weights[part], a.weights, part);
  }
  multiply<false, false>(ring, at, a.v_blocks, s);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    std::uint32_t ds[16];
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float low = low_half(weights[part][j]);
      const float high = high_half(weights[part][j]);
      const float* const products = s + 32 * part + 2 * j;
      ds[j] = pack_halves(low * (products[0] - delta[j % 2]), high * (products[1] - delta[j % 2]));
    }
    write(ds, a.gradients, part);
  }
}

#endif

template <bool Documents>
__global__ void __launch_bounds__(kProductThreads, 1) gradients_kernel(const __grid_constant__ Gradients a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& ring = *reinterpret_cast<GradientRing*>(memory);
  ring.init();
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.next = 0;
  if constexpr (Documents) find_ends(a);
  GradientRing::Place at;
  const AttentionTiles& tiles = a.pairs.tiles;
  const int of_pair = gradient_tiles<Documents>(tiles);
  if (product_group() == 2) {
    hopper::fewer_registers<40>();
    if (threadIdx.x != 2 * hopper::kGroup) return;
    const int blocks = static_cast<int>(gridDim.x);
    for (int i = static_cast<int>(blockIdx.x), next = 0; i < of_pair * a.pairs.count; i = next) {
      next = blocks + atomicAdd(a.taken, 1);  // some are half as long, and what nobody sees is none
      const GradientTile tile = gradient_tile<Documents>(i, of_pair, tiles);
      const int head = a.pairs.head(tile.pair);
      const int piece = a.pairs.piece(tile.pair);
      const int keys = tile.key == tile.r ? kTile : 2 * kTile;
      if (Documents && a.pairs.first_tile(piece, tile.r) > tile.key + 1) continue;  // nothing of it is seen
      const auto fetch = [&](const CUtensorMap& rows, const CUtensorMap& columns, int steps) {
        for (int step = 0; step < steps; ++step, at.next()) {
          auto& stage = ring.fill(at, keys, tile);
          hopper::Barrier& full = ring.full[at.stage];
          hopper::load(stage.a, rows, full, step * hopper::kBlock, head, tile.r * kTile, piece);
          for (int n = 0; n < keys / kTile; ++n) {
            hopper::load(stage.b[2 * n], columns, full, step * hopper::kBlock, head, (tile.key + n) * kTile, piece);
          }
        }
      };
      fetch(a.q, a.k, a.z_blocks);
      fetch(a.do_, a.v, a.v_blocks);
    }
    ring.finish(at);
  } else {
    hopper::more_registers<232>();
    for (GradientTile tile{}; (tile = ring.next(at)).pair >= 0;) {
      if (tile.key == tile.r) {
        gradients_tile<kTile, Documents>(a, ring, at, tile);
      } else {
        gradients_tile<2 * kTile, Documents>(a, ring, at, tile);
      }
    }
  }
#else
  __trap();
#endif
}

template <class End>
struct ResultEnds {
  End dq, dk, dv;
};

// dv = weights^T do, dk = gradients^T q, dq = gradients k.
struct Results {
  AttentionColumns q, k, do_;
  ResultEnds<AttentionEnd> written;    // by the writing warps
  ResultEnds<AttentionCopies> copied;  // or by the copy engine
  bool copies;
  AttentionPairs pairs;
  int columns;  // tiles of dv's columns
  const unsigned char *weights, *gradients;
  int* next;
  int* taken;  // set to 0 for the kernel that follows
  const int* ends;
};

// The results' tiles of a pair in the order of their lengths: tiles `at` of keys of dv and dk, and the at'th row tile from the
// end of dq, sum over as many.
struct ResultTile {
  int pair, at, result;  // below `columns` a tile of dv's columns, then dk, then dq
  int steps;
};

// Z: columns of dq and dk, rounded up to 128 or 256.
template <int Z, bool Documents>
__global__ void __launch_bounds__(kProductThreads, 1) results_kernel(const __grid_constant__ Results a) {
#if MEGALODON_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<ResultShared<ResultTile>*>(memory);
  auto& ring = shared.ring;
  shared.init(a.copies ? 1 : kWritingWarps * kWarp);
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.taken = 0;
  RingPlace<3> place;
  if (product_group() == 2) {
    hopper::fewer_registers<kOtherRegisters>();
    const AttentionTiles& tiles = a.pairs.tiles;
    if (threadIdx.x >= 2 * hopper::kGroup + kWarp) {
      const auto count = [&](const ResultTile& tile) { return tile.result < a.columns ? 1 : Z / 128; };
      const auto in = [&](const auto& ends) {
        return [&](const ResultTile& tile, int i) {
          const bool of_values = tile.result < a.columns;
          const bool of_keys = tile.result <= a.columns;
          return AttentionPlace<std::decay_t<decltype(ends.dv)>>{of_values ? ends.dv
                                                                 : of_keys ? ends.dk
                                                                           : ends.dq,
                                                                 a.pairs.piece(tile.pair), a.pairs.head(tile.pair),
                                                                 (of_keys ? tile.at : tiles.rows - 1 - tile.at) * kTile,
                                                                 (of_values ? tile.result : i) * 512};
        };
      };
      if (!a.copies) return write_results<Factor::Slope>(shared, count, in(a.written));
      return copy_results(shared, count, in(a.copied));
    }
    if (threadIdx.x != 2 * hopper::kGroup) return;
    const int of_tile = a.columns + 2;
    const int all = of_tile * tiles.rows * a.pairs.count;
    int count = 0;
    for (int i = static_cast<int>(blockIdx.x); i < all; i = static_cast<int>(gridDim.x) + atomicAdd(a.next, 1)) {
      ResultTile tile{i / of_tile / tiles.rows, i / of_tile % tiles.rows, i % of_tile, 0};
      const int head = a.pairs.head(tile.pair);
      const int piece = a.pairs.piece(tile.pair);
      const std::int64_t of_pair = static_cast<std::int64_t>(tile.pair) * tiles.count<Documents>();
      tile.steps = 2 * (tiles.rows - tile.at);
      if (tile.result == a.columns + 1) {
        const int r = tiles.rows - 1 - tile.at;
        const int first = Documents ? a.pairs.first_tile(piece, r) : 0;  // tile of keys
        if constexpr (Documents) tile.steps -= 2 * first;
        shared.announce(count++, tile);
        const unsigned char* from = a.gradients + (of_pair + tiles.before<Documents>(r) + first) * kTileBytes;
        for (int step = 0; step < tile.steps; ++step, place.next(), from += 2 * hopper::kBlockBytes) {
          auto& stage = ring.fill(place, Z, tile);
          hopper::load(stage.a, from, 2 * hopper::kBlockBytes, ring.full[place.stage]);
          a.k.load(stage.b, ring.full[place.stage], Z / hopper::kBlock, 0, head, (2 * first + step) * hopper::kBlock, piece);
        }
      } else {
        const bool of_values = tile.result < a.columns;
        const int column = of_values ? tile.result * kColumns : 0;
        if constexpr (Documents) tile.steps = 2 * (a.ends[piece * tiles.rows + tile.at] - tile.at);
        shared.announce(count++, tile);
        for (int step = 0; step < tile.steps; ++step, place.next()) {
          const int r = tile.at + step / 2;
          const unsigned char* const from = (of_values ? a.weights : a.gradients) +
                                            (of_pair + tiles.before<Documents>(r) + tile.at) * kTileBytes +
                                            step % 2 * hopper::kBlockBytes;
          auto& stage = ring.fill(place, of_values ? kColumns : Z, tile);
          hopper::Barrier& full = ring.full[place.stage];
          for (int n = 0; n < 2; ++n) {
            hopper::load(stage.a[n], from + n * 2LL * hopper::kBlockBytes, hopper::kBlockBytes, full);
          }
          const int row = r * kTile + step % 2 * hopper::kBlock;
          if (of_values) {
            a.do_.load(stage.b, full, ring.kB, column, head, row, piece);
          } else {
            a.q.load(stage.b, full, Z / hopper::kBlock, 0, head, row, piece);
          }
        }
      }
    }
    shared.announce(count, {-1, 0, 0, 0});
    ring.finish(place);
  } else {
    hopper::more_registers<kMultiplyingRegisters>();
    ResultGiver<ResultTile> results{shared};
    for (ResultTile tile{}; (tile = ring.next(place)).pair >= 0;) {
      if (tile.result < a.columns) {
        float sums[kColumns / 2] = {};
        multiply<true, true>(ring, place, tile.steps, sums);
        if (a.copies && a.copied.dv.has_factors) {
          results.give_products<Factor::Slope>(sums, 1, 1);
        } else {
          results.give_halves(sums, 1, 1);
        }
      } else {
        float sums[Z / 2] = {};
        if (tile.result == a.columns) {
          multiply<true, true>(ring, place, tile.steps, sums);
        } else {
          multiply<false, true>(ring, place, tile.steps, sums);
        }
        results.give_floats(sums);
      }
    }
  }
#else
  __trap();
#endif
}

AttentionAtOnce most_at_once(const Attention& op, std::int64_t batch, std::int64_t length) {
  const std::int64_t rows = std::min(op.chunk, length);
  return attention_at_once(op.heads * batch * ceil_div(length, op.chunk),
                           2 * kTileBytes * attention_tiles(op, rows, 0).count<false>());
}

Tensor take_ends(Arena& arena, std::int64_t batch, std::int64_t length) {
  return arena.allocate(DType::I32, {batch, ceil_div(length, kTile)});
}

}  // namespace

std::size_t attention_backward_tiles_bytes(const Attention& op, std::int64_t batch, std::int64_t length) {
  Arena arena = Arena::counter();
  take_ends(arena, batch, length);
  // Windows of documents take no more, unless one pair of theirs does.
  const std::int64_t of_documents = 2 * kTileBytes * attention_tiles(op, length, 0).count<true>();
  return static_cast<std::size_t>(std::max(most_at_once(op, batch, length).bytes, of_documents)) + 4 * 256 + arena.peak();
}

void attention_backward_tiles(Context& ctx, const AttentionBackward& a, const AttentionChunks& pieces) {
  const Attention& op = a.op;
  const std::int64_t batch = a.q.shape()[0];
  const std::int64_t length = a.q.shape()[1];
  const bool documents = static_cast<bool>(op.documents);
  const AttentionTiles tiles = attention_tiles(op, pieces.rows, 0);
  const std::int64_t pairs = op.heads * pieces.count;
  const std::int64_t bytes = most_at_once(op, batch, length).bytes;
  const std::int64_t each = (documents ? tiles.count<true>() : tiles.count<false>()) * kTileBytes;
  const std::int64_t at_once = ceil_div(pairs, ceil_div(pairs, std::max<std::int64_t>(1, bytes / (2 * each))));
  ArenaScope scope(ctx.workspace());
  const auto next = static_cast<int*>(ctx.workspace().allocate(DType::I32, {2}).raw());
  const auto weights = static_cast<unsigned char*>(ctx.workspace().allocate(DType::U8, {at_once, each}).raw());
  const auto gradients = static_cast<unsigned char*>(ctx.workspace().allocate(DType::U8, {at_once, each}).raw());
  const auto ends = documents ? pointer<int>(take_ends(ctx.workspace(), batch, length)) : nullptr;

  const auto map = [&](const Tensor& tensor) {
    return attention_map(tensor, pieces.row, pieces.rows, pieces.row_step, pieces.count, op.heads);
  };
  const auto rows = [&](const Tensor& tensor) { return attention_rows(tensor, pieces, op.heads); };
  AttentionPairs part = attention_pairs(op, pieces, tiles);
  Gradients first{map(a.q),
                  map(a.k),
                  map(a.v),
                  map(a.do_),
                  part,
                  static_cast<int>(ceil_div(op.z_head_dim, hopper::kBlock)),
                  static_cast<int>(ceil_div(op.v_head_dim, hopper::kBlock)),
                  weights,
                  gradients,
                  pointer<const float>(a.lse),
                  pointer<const float>(a.delta),
                  next,
                  next + 1,
                  ends};
  const bool narrow = op.z_head_dim <= 128;
  const auto columns = [&](const Tensor& tensor, int width) {
    return attention_columns(tensor, pieces.row, pieces.rows, pieces.row_step, pieces.count, op.heads, width / hopper::kBlock);
  };
  const bool copies = !attention_writes(op, length);
  const AttentionColumns factors = a.a ? columns(a.a, copies ? kColumns : hopper::kBlock) : AttentionColumns{};
  AttentionEnd dv{rows(a.dv), {}, {}};
  if (a.a) dv = {{}, rows(a.dv), factors};
  Results second{columns(a.q, narrow ? 128 : 256),
                 columns(a.k, narrow ? 128 : 256),
                 columns(a.do_, kColumns),
                 {{rows(a.dq), {}, {}}, {rows(a.dk), {}, {}}, dv},
                 {{columns(a.dq, kColumns), {}, false},
                  {columns(a.dk, kColumns), {}, false},
                  {columns(a.dv, kColumns), factors, static_cast<bool>(a.a)}},
                 copies,
                 part,
                 static_cast<int>(ceil_div(op.v_head_dim, kColumns)),
                 weights,
                 gradients,
                 next,
                 next + 1,
                 ends};
  const auto weigh = documents ? gradients_kernel<true> : gradients_kernel<false>;
  const auto results = documents ? (narrow ? results_kernel<128, true> : results_kernel<256, true>)
                                 : (narrow ? results_kernel<128, false> : results_kernel<256, false>);
  check(cudaFuncSetAttribute(weigh, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(GradientRing)), kName);
  check(cudaFuncSetAttribute(results, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(ResultShared<ResultTile>)), kName);
  gpu_of(ctx).zero(next + 1, sizeof(int));
  for (std::int64_t begin = 0; begin < pairs; begin += at_once) {
    part.first = static_cast<int>(begin);
    part.count = static_cast<int>(std::min(at_once, pairs - begin));
    first.pairs = part;
    second.pairs = part;
    const auto launch = [&](auto kernel, const auto& arguments, int threads, std::size_t shared, int all) {
      kernel<<<std::min(gpu_of(ctx).multiprocessors(), all), threads, shared, stream_of(ctx)>>>(arguments);
      check_launch(kName);
    };
    launch(weigh, first, kProductThreads, sizeof(GradientRing),
           (documents ? gradient_tiles<true>(tiles) : gradient_tiles<false>(tiles)) * part.count);
    launch(results, second, kProductThreads, sizeof(ResultShared<ResultTile>), (second.columns + 2) * tiles.rows * part.count);
  }
}

}  // namespace megalodon::cuda
