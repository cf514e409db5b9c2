#include "cpu/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/matmul.h"
#include "cpu/onednn_call.h"

namespace megalodon::cpu {

namespace {

// The best of six, the first of which warms up, or of as many as begin before `limit` seconds: a ceiling is what the machine can
// do, not what it does while something else runs.
double best_seconds(const std::function<void()>& work, double limit = std::numeric_limits<double>::infinity()) {
  double best = std::numeric_limits<double>::infinity();
  double spent = 0;
  for (int i = 0; i < 6 && spent < limit; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

}  // namespace

double measure_matmul_rate(Context& ctx, DType dtype) {
  constexpr std::int64_t kSize = 2048;
  constexpr double kProductSeconds = 0.25;
  using dnnl::memory;
  const auto type = dtype == DType::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
  const int threads = ctx.threads().size();
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  struct Share {
    dnnl::matmul primitive;
    memory a, b, c;
  };
  std::vector<Share> shares(static_cast<std::size_t>(threads));
  ctx.threads().run([&](int thread) {
    const OneOmpThread one_thread;
    const std::int64_t rows = kSize * (thread + 1) / threads - kSize * thread / threads;
    const memory::desc a({rows, kSize}, type, memory::format_tag::ab);
    const memory::desc b({kSize, kSize}, type, memory::format_tag::any);  // oneDNN's own packing
    const memory::desc c({rows, kSize}, type, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc desc({a, b, c}, engine);
    Share& share = shares[static_cast<std::size_t>(thread)];
    share = {dnnl::matmul(desc), {a, engine}, {desc.weights_desc(), engine}, {c, engine}};
    for (const memory& m : {share.a, share.b}) {
      std::memset(m.get_data_handle(), 0x3C, m.get_desc().get_size());  // 0.0115 in either
    }
  });
  const auto product = [&] {
    ctx.threads().run([&](int thread) {
      const OneOmpThread one_thread;
      const NoSignals no_signals;
      Share& share = shares[static_cast<std::size_t>(thread)];
      dnnl::stream stream(engine);
      share.primitive.execute(stream, {{DNNL_ARG_SRC, share.a}, {DNNL_ARG_WEIGHTS, share.b}, {DNNL_ARG_DST, share.c}});
    });
  };
  const double seconds = best_seconds(product, kProductSeconds);
  // oneDNN counts by thread who still needs its scratch memory: each primitive goes where it came from.
  ctx.threads().run([&](int thread) { shares[static_cast<std::size_t>(thread)] = {}; });
  return 2.0 * kSize * kSize * kSize / seconds;
}

double measure_copy_bandwidth(Context& ctx) {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20;
  const Buffer from(kBytes, "bandwidth");
  const Buffer to(kBytes, "bandwidth");
  const auto copy = [&] {
    ctx.threads().parallel_for(kBytes, 4096, [&](std::int64_t begin, std::int64_t end, int) {
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
    });
  };
  return 2.0 * kBytes / best_seconds(copy);
}

Ceilings measure_ceilings(Context& ctx) {
  Ceilings ceilings;
  ceilings.products_f32 = measure_matmul_rate(ctx);
  if (has_bfloat16_products()) ceilings.products_bf16 = measure_matmul_rate(ctx, DType::BF16);
  ceilings.read = measure_read_bandwidth(ctx);
  ceilings.copy = measure_copy_bandwidth(ctx);
  return ceilings;
}

}  // namespace megalodon::cpu
