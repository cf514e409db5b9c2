// Products of one row with matrix after matrix, in a kernel that does not end between them (Hopper). A block lies on each
// multiprocessor. One of its threads, the producer, copies rows of the matrices, in the order in which they will be multiplied,
// into a ring in shared memory as fast as that is emptied: weights depend on nothing, so memory need not rest while the other
// threads, the consumers, wait for other blocks, or do what stands between products, for as long as the ring has room.
//
// Multiprocessors do not get equal parts of memory's speed. Blocks therefore take pieces of a few rows by a ticket, whoever has
// room; and no more is asked for at once than keeps memory busy, or what else is read would wait in the same queues. An output
// does not depend on which block makes it: the warps of a block share the sum over a row in the same way, and what they have is
// summed up in their order.
//
// Four warps take a piece, 256 adjacent elements of each row at once, in turns. Tensor cores multiply two rows, each cut into
// eight parts that stand below one another as rows of their own, by x, whose eight parts stand side by side as columns: on the
// diagonal is what is wanted.
#pragma once

#include "cuda/hopper.cuh"

namespace megalodon::cuda {

namespace weight_stream {

constexpr int kWarps = 8;  // consumers
constexpr int kConsumers = kWarps * kWarp;
constexpr int kThreads = kConsumers + kWarp;
constexpr int kTeamWarps = 4;  // that take a piece together
constexpr int kTeams = kWarps / kTeamWarps;
constexpr int kRows = 4;   // of a piece, at most
constexpr int kAhead = 2;  // pieces under way at once
constexpr int kAsked = 4;  // tickets
constexpr int kMostSlots = 16;
constexpr int kFewestSlots = 4;
constexpr int kVector = 8;                      // elements of 16 bytes
constexpr int kStep = kWarp * kVector;          // of a row, that a warp takes at once
constexpr int kSumFloats = 2 * kWarps * kRows;  // what multiply asks for
// Each team learns from a piece to come that a product has no more for it.
static_assert(kTeams <= kAhead && kTeams <= kFewestSlots);

// [units, in], or with pair > 0 two such matrices of which the second begins `pair` rows after the first: a unit is then a row of
// each. A piece is `at_once` units.
struct Product {
  const Half* weight;
  int in, units, pair, at_once;
  __device__ unsigned pieces() const { return static_cast<unsigned>((units + at_once - 1) / at_once); }
};

// What a slot holds, or will.
struct Claim {
  int step;  // of the sequence of products
  int first, units;
};

struct Slots {
  hopper::Barrier claimed[kMostSlots], full[kMostSlots], empty[kMostSlots];
  Claim claims[kMostSlots];
};

// A place in the ring that moves on.
struct Position {
  int slot = 0;
  unsigned phase = 0;
  __device__ void next(int slots, int by = 1) {
    slot += by;
    if (slot >= slots) {
      slot -= slots;
      phase ^= 1;
    }
  }
};

struct Ring {
  char* memory;
  Slots* barriers;
  int slots, slot_bytes;
};

#if MEGALODON_HOPPER

// All consumers wait for one another.
__device__ __forceinline__ void meet() { hopper::wait_for_threads<kConsumers>(); }

// By all threads, before anything else.
__device__ __forceinline__ void init(const Ring& ring) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < ring.slots; ++i) {
      hopper::init(ring.barriers->claimed[i], 1);
      hopper::init(ring.barriers->full[i], 1);
      hopper::init(ring.barriers->empty[i], kTeamWarps);
    }
    hopper::fence_init();
  }
  __syncthreads();
}

// What one thread does: product_at(i) is the i-th of `steps` products. *tickets is zero at first.
template <class ProductAt>
__device__ __forceinline__ void produce(const Ring& ring, unsigned* tickets, int steps, ProductAt&& product_at) {
  std::uint64_t read_once = 0;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(read_once));
  Slots& slots = *ring.barriers;
  Position at, arrived;
  int step = 0;
  Product product = product_at(0);
  unsigned begin = 0;  // ticket of the product's first piece
  // The answer takes its time: several questions are always on their way.
  unsigned asked[kAsked];
#pragma unroll
  for (unsigned& answer : asked) answer = atomicAdd(tickets, 1U);
  const auto claim = [&](const Claim& what, int bytes) {
    hopper::wait(slots.empty[at.slot], at.phase ^ 1);
    slots.claims[at.slot] = what;
    if (bytes > 0) hopper::arrive_expecting(slots.full[at.slot], bytes);
    hopper::arrive(slots.claimed[at.slot]);
  };
  for (int under_way = 0;; ++under_way) {
    const unsigned ticket = asked[0];
#pragma unroll
    for (int i = 1; i < kAsked; ++i) asked[i - 1] = asked[i];
    asked[kAsked - 1] = atomicAdd(tickets, 1U);
    while (step < steps && ticket - begin >= product.pieces()) {
      begin += product.pieces();
      if (++step < steps) product = product_at(step);
    }
    if (step == steps) break;
    if (under_way == kAhead) {
      hopper::wait(slots.full[arrived.slot], arrived.phase);
      arrived.next(ring.slots);
      --under_way;
    }
    const int first = static_cast<int>(ticket - begin) * product.at_once;
    const int units = min(product.at_once, product.units - first);
    const int bytes = units * product.in * static_cast<int>(sizeof(Half));
    claim({step, first, units}, product.pair > 0 ? 2 * bytes : bytes);
    char* const to = ring.memory + at.slot * ring.slot_bytes;
    const Half* const from = product.weight + static_cast<std::int64_t>(first) * product.in;
    hopper::Barrier& full = slots.full[at.slot];
    hopper::load(to, from, bytes, full, read_once);
    if (product.pair > 0) {
      hopper::load(to + bytes, from + static_cast<std::int64_t>(product.pair) * product.in, bytes, full, read_once);
    }
    at.next(ring.slots);
  }
  for (int team = 0; team < kTeams; ++team) {  // each learns from a slot of its own that nothing follows
    claim({steps, 0, 0}, 0);
    at.next(ring.slots);
  }
}

// Where this thread's team begins.
__device__ __forceinline__ Position first_position() { return {static_cast<int>(threadIdx.x) / (kTeamWarps * kWarp), 0}; }

// What one of a team's warps has of the sums of a piece's rows, which lie in a slot.
__device__ __forceinline__ void multiply_piece(const Half* slot, int rows, int in, const Half* x, int warp,
                                               float (&sums)[kRows]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float c[kRows / 2][4] = {};
#pragma unroll 4
  for (int begin = warp * kStep; begin < in; begin += kTeamWarps * kStep) {
    const int k = begin + lane * kVector;
    const bool exists = k < in;
    const auto load = [&](const Half* from) { return exists ? *reinterpret_cast<const uint4*>(from + k) : uint4{}; };
    const uint4 v = load(x);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      // Rows that are not there are the last one once more.
      const uint4 a = load(slot + min(2 * i, rows - 1) * in);
      const uint4 b = load(slot + min(2 * i + 1, rows - 1) * in);
      multiply_add(c[i], a.x, b.x, a.y, b.y, v.x, v.y);
      multiply_add(c[i], a.z, b.z, a.w, b.w, v.z, v.w);
    }
  }
  const int g = lane / 4;
  const bool on_diagonal = lane % 4 == g / 2;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float(&of_row)[4] = c[i / 2];
    const float here = g % 2 == 0 ? of_row[i % 2 * 2] : of_row[i % 2 * 2 + 1];
    sums[i] = warp_sum(on_diagonal ? here : 0.0F);
  }
}

// The consumers' part of a product: x [in] lies in shared memory, `shared` are kSumFloats of it. Calls put(unit, first, second,
// with) for each of the block's units, in one thread, with its sum, or the sums of its two rows; `with` is what take(unit) gave
// the same thread before the product was there. Between two calls the consumers must meet.
template <class Take, class Put>
__device__ __forceinline__ void multiply(const Ring& ring, const Product& product, int step, const Half* x, float* shared,
                                         Position& at, Take&& take, Put&& put) {
  Slots& slots = *ring.barriers;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp % kTeamWarps;
  const int team = static_cast<int>(threadIdx.x) / kWarp / kTeamWarps;
  const int row = lane % kRows;
  const auto of_row = [](const float(&sums)[kRows], int i) {
    return i == 0 ? sums[0] : i == 1 ? sums[1] : i == 2 ? sums[2] : sums[3];
  };
  for (int turn = 0;; turn ^= 1) {
    hopper::wait(slots.claimed[at.slot], at.phase);
    const Claim claim = slots.claims[at.slot];
    if (claim.step != step) return;
    const int unit = claim.first + lane;
    const bool writes = warp == 0 && lane < claim.units;
    float with = 0;
    if (writes) with = take(unit);
    hopper::wait(slots.full[at.slot], at.phase);
    const int rows = product.pair > 0 ? 2 * claim.units : claim.units;
    float sums[kRows];
    multiply_piece(reinterpret_cast<const Half*>(ring.memory + at.slot * ring.slot_bytes), rows, product.in, x, warp, sums);
    __syncwarp();
    if (lane == 0) hopper::arrive(slots.empty[at.slot]);
    at.next(ring.slots, kTeams);
    float* const of_team = shared + (turn * kTeams + team) * kTeamWarps * kRows;
    if (lane < kRows) of_team[warp * kRows + lane] = of_row(sums, row);
    asm volatile("bar.sync %0, %1;" ::"r"(2 + team), "n"(kTeamWarps * kWarp) : "memory");
    if (!writes) continue;
    const auto total = [&](int i) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < kTeamWarps; ++other) sum += of_team[other * kRows + i];
      return sum;
    };
    put(unit, total(row), product.pair > 0 ? total(claim.units + row) : 0.0F, with);
  }
}

// Blocks wait for one another: each arrives at a counter, and whoever needs what they have written before that waits until all
// have. A counter counts on from layer to layer.
__device__ __forceinline__ void arrive(unsigned* counter) {
  meet();
  if (threadIdx.x != 0) return;
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ void wait(const unsigned* counter, unsigned arrivals) {
  if (threadIdx.x == 0) {
    unsigned count = 0;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    } while (count < arrivals);
  }
  meet();
}

#endif

}  // namespace weight_stream

}  // namespace megalodon::cuda
