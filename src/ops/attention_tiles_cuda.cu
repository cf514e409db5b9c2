#include "ops/attention_tiles.cuh"

namespace megalodon::cuda {

CUtensorMap attention_map(const Tensor& tensor, std::int64_t row, std::int64_t rows, std::int64_t row_step, std::int64_t pieces,
                          std::int64_t heads) {
  const std::size_t size = size_of(tensor.dtype());
  const auto dim = static_cast<std::size_t>(tensor.cols() / heads);
  const auto pitch = static_cast<std::size_t>(tensor.pitch());
  const cuuint64_t extents[] = {dim, static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(rows),
                                static_cast<cuuint64_t>(pieces)};
  const cuuint64_t strides[] = {dim * size, pitch * size,
                                static_cast<cuuint64_t>(std::max<std::int64_t>(row_step, 1)) * pitch * size};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(128 / size), 1, kTile, 1};
  return hopper::make_map(attention_at(tensor, row, 0), tensor.dtype(), 4, extents, strides, box, "attention");
}

AttentionColumns attention_columns(const Tensor& tensor, std::int64_t row, std::int64_t rows, std::int64_t row_step,
                                   std::int64_t pieces, std::int64_t heads, int blocks) {
  const std::size_t size = size_of(tensor.dtype());
  const auto dim = static_cast<std::size_t>(tensor.cols() / heads);
  const auto pitch = static_cast<std::size_t>(tensor.pitch());
  const std::size_t width = 128 / size;
  const bool at_once = dim % width == 0;
  const cuuint64_t extents[] = {at_once ? width : dim, static_cast<cuuint64_t>(rows), at_once ? dim / width : 1,
                                static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(pieces)};
  const cuuint64_t strides[] = {pitch * size, width * size, dim * size,
                                static_cast<cuuint64_t>(std::max<std::int64_t>(row_step, 1)) * pitch * size};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(width), hopper::kBlock, at_once ? static_cast<cuuint32_t>(blocks) : 1, 1, 1};
  return {hopper::make_map(attention_at(tensor, row, 0), tensor.dtype(), 5, extents, strides, box, "attention"), at_once,
          static_cast<int>(width)};
}

bool attention_fits_tiles(Context& ctx, const Attention& op, std::initializer_list<const Tensor*> tensors) {
  constexpr std::int64_t kMostZ = 256;
  if (attention_masks(op).any() || op.z_head_dim > kMostZ || op.chunk < hopper::kBlock) return false;
  for (const Tensor* tensor : tensors) {
    if (!*tensor) continue;
    if (tensor->dtype() != DType::BF16 && tensor == *tensors.begin()) return false;
    const auto whole = static_cast<std::int64_t>(16 / size_of(tensor->dtype()));
    if ((tensor->cols() / op.heads) % whole != 0 || tensor->pitch() % whole != 0) return false;
    if (reinterpret_cast<std::uintptr_t>(tensor->raw()) % 16 != 0) return false;
  }
  return gpu_of(ctx).code().hopper;
}

}  // namespace megalodon::cuda
