#include "train/update.h"

#include <algorithm>
#include <array>

#include "cuda/built.h"

namespace megalodon {

Update::Update(Context& ctx, std::vector<Stretch> stretches)
    : ctx_(ctx),
      stretches_(std::move(stretches)),
      arena_(1024 + stretches_.size() * 2 * sizeof(std::int64_t), "numbers of the optimizer", ctx.accelerator()),
      inputs_(arena_.allocate(DType::F64, {kAdamWRates + 1})),
      norm_(arena_.allocate(DType::F64, {1})) {
  if constexpr (cuda::kBuilt) {
    if (ctx.device() == Device::Cuda) ctx.reserve_workspace(cuda::adamw_workspace_bytes());
  }
  const auto decays = [](const Stretch& stretch) { return stretch.treatment == AdamWTreatment::Decays; };
  if (std::all_of(stretches_.begin(), stretches_.end(), decays)) return;
  std::vector<std::int64_t> table;
  for (const Stretch& stretch : stretches_) {
    table.push_back(stretch.end);
    table.push_back(static_cast<std::int64_t>(stretch.treatment));
  }
  table_ = arena_.allocate(DType::I64, {static_cast<std::int64_t>(stretches_.size()), 2});
  ctx.copy(Tensor(table.data(), table_.shape()), table_);
}

double Update::norm(const Tensor& gradients) {
  gradient_norm(ctx_, gradients, norm_);
  return norm_on_host();
}

double Update::step(const AdamW& adamw, std::int64_t step, const UpdateOptions& options, double loss, Megalodon& model,
                    const Tensor& gradients, const Tensor& m, const Tensor& v, const Tensor& average) {
  const AdamWRates rates = adamw_rates(adamw, step, options.clip, options.norm_limit, options.average_decay);
  std::array<double, kAdamWRates + 1> inputs{};
  std::copy(rates.begin(), rates.end(), inputs.begin());
  inputs.back() = loss;
  ctx_.copy(Tensor(inputs.data(), inputs_.shape()), inputs_);
  for (const Stretch& stretch : stretches_) {
    if (stretch.treatment != AdamWTreatment::Frozen) continue;
    ctx_.zero(gradients.piece(stretch.begin, {stretch.end - stretch.begin}));
  }
  gradient_norm(ctx_, gradients, norm_);
  adamw_step(ctx_, inputs_.piece(0, {kAdamWRates}), norm_, inputs_.piece(kAdamWRates, {1}), model.flat(), gradients, m, v,
             model.matrices(), average, table_);
  return norm_on_host();
}

double Update::norm_on_host() {
  double norm = 0;
  ctx_.copy(norm_, Tensor(&norm, {1}));
  return norm;
}

}  // namespace megalodon
