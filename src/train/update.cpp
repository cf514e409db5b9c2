#include "train/update.h"

namespace megalodon {

void update_parameters(Context& ctx, const AdamW& adamw, std::int64_t step, double norm, double max_norm, Megalodon& model,
                       const Tensor& gradients, const Tensor& m, const Tensor& v) {
  const std::int64_t vectors = model.layout().vectors();
  const auto scale = static_cast<float>(max_norm > 0 ? clip_scale(norm, max_norm) : 1.0);
  const auto update = [&](std::int64_t begin, std::int64_t count, const Tensor& copy) {
    const auto part = [&](const Tensor& flat) { return Tensor(flat.data<float>() + begin, {count}); };
    adamw_step(ctx, adamw, step, scale, part(model.flat()), part(gradients), part(m), part(v), copy);
  };
  update(0, vectors, Tensor());
  update(vectors, model.layout().total() - vectors, model.matrices());
}

}  // namespace megalodon
