#include "cuda/elementwise.cuh"
#include "ops/silu_gate.cuh"
#include "ops/silu_gate.h"

namespace megalodon::cuda {

namespace {

template <class T, int N>
struct Forward {
  Matrix<const T> a, b;  // b may be null
  Matrix<T> y;

  struct Loaded {
    Pack<T, N> a, b;
  };
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const {
    loaded.a = load_pack<N>(a.row(row) + col);
    if (b) loaded.b = load_pack<N>(b.row(row) + col);
  }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out.v[i] = from_f32<T>(silu_gate(to_f32(loaded.a.v[i]), b ? to_f32(loaded.b.v[i]) : 1.0F));
    }
    store_pack<N>(y.row(row) + col, out);
  }
};

template <class T, int N>
struct Backward {
  Matrix<const T> a, b, dy;  // b may be null
  Matrix<T> da, db, y;       // db and y may be null

  struct Loaded {
    Pack<T, N> a, b, dy;
  };
  __device__ void load(std::int64_t row, std::int64_t col, Loaded& loaded) const {
    loaded.a = load_pack<N>(a.row(row) + col);
    loaded.dy = load_pack<N>(dy.row(row) + col);
    if (b) loaded.b = load_pack<N>(b.row(row) + col);
  }
  __device__ void store(std::int64_t row, std::int64_t col, const Loaded& loaded) const {
    Pack<T, N> to_a, to_b, to_y;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float gate = b ? to_f32(loaded.b.v[i]) : 1.0F;
      const GateGradients to = silu_gate_gradients(to_f32(loaded.a.v[i]), gate, to_f32(loaded.dy.v[i]));
      to_a.v[i] = from_f32<T>(to.da);
      to_b.v[i] = from_f32<T>(to.db);
      to_y.v[i] = from_f32<T>(to.y);
    }
    store_pack<N>(da.row(row) + col, to_a);
    if (db) store_pack<N>(db.row(row) + col, to_b);
    if (y) store_pack<N>(y.row(row) + col, to_y);
  }
};

}  // namespace

void silu_gate_forward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  with_type(a.dtype(), [&](auto element) {
    using T = decltype(element);
    constexpr int kPack = 16 / sizeof(T);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 2>(ctx, Forward<T, N>{matrix<const T>(a), matrix<const T>(b), matrix<T>(y)}, a.rows(), a.cols(),
                        "silu_gate_forward");
    };
    if (can_pack<kPack>(a) && can_pack<kPack>(b) && can_pack<kPack>(y)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

void silu_gate_backward(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& dy, const Tensor& da, const Tensor& db,
                        const Tensor& y) {
  with_type(a.dtype(), [&](auto element) {
    using T = decltype(element);
    constexpr int kPack = 16 / sizeof(T);
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      elementwise<N, 1>(
          ctx,
          Backward<T, N>{matrix<const T>(a), matrix<const T>(b), matrix<const T>(dy), matrix<T>(da), matrix<T>(db), matrix<T>(y)},
          a.rows(), a.cols(), "silu_gate_backward");
    };
    if (can_pack<kPack>(a) && can_pack<kPack>(b) && can_pack<kPack>(dy) && can_pack<kPack>(da) && can_pack<kPack>(db) &&
        can_pack<kPack>(y)) {
      run(std::integral_constant<int, kPack>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace megalodon::cuda
