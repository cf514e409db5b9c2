#include "train/update.h"

#include <algorithm>
#include <array>

#include "cuda/built.h"

namespace megalodon {

Update::Update(Context& ctx)
    : ctx_(ctx),
      arena_(1024, "numbers of the optimizer", ctx.accelerator()),
      inputs_(arena_.allocate(DType::F64, {kAdamWRates + 1})),
      norm_(arena_.allocate(DType::F64, {1})) {
  if constexpr (cuda::kBuilt) {
    if (ctx.device() == Device::Cuda) ctx.reserve_workspace(cuda::adamw_workspace_bytes());
  }
}

double Update::norm(const Tensor& gradients) {
  gradient_norm(ctx_, gradients, norm_);
  return norm_on_host();
}

double Update::step(const AdamW& adamw, std::int64_t step, double max_norm, double loss, Megalodon& model,
                    const Tensor& gradients, const Tensor& m, const Tensor& v) {
  const AdamWRates rates = adamw_rates(adamw, step, max_norm);
  std::array<double, kAdamWRates + 1> inputs{};
  std::copy(rates.begin(), rates.end(), inputs.begin());
  inputs.back() = loss;
  ctx_.copy(Tensor(inputs.data(), inputs_.shape()), inputs_);
  gradient_norm(ctx_, gradients, norm_);
  adamw_step(ctx_, inputs_.piece(0, {kAdamWRates}), norm_, inputs_.piece(kAdamWRates, {1}), model.flat(), gradients, m, v,
             model.matrices());
  return norm_on_host();
}

double Update::norm_on_host() {
  double norm = 0;
  ctx_.copy(norm_, Tensor(&norm, {1}));
  return norm;
}

}  // namespace megalodon
