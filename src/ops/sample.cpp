#include "ops/sample.h"

#include "core/check.h"
#include "ops/dispatch.h"

namespace megalodon {

namespace {
constexpr const char* kName = "sample";
}  // namespace

void sample(Context& ctx, std::span<const Draw> draws, const Tensor& logits, const Tensor& chosen) {
  const auto rows = std::ssize(draws);
  require_matrix(logits, DType::F32, rows, logits.cols(), kName, "logits");
  require_contiguous(chosen, DType::I32, {rows}, kName, "chosen");
  require(logits.cols() > 0, kName, "there are no logits to choose from");
  dispatch(
      ctx, logits.dtype(), kName,
      [&] {
        std::vector<cpu::Candidate> scratch;
        for (std::int64_t b = 0; b < rows; ++b) {
          const std::span<const float> row(logits.row<float>(b), static_cast<std::size_t>(logits.cols()));
          chosen.data<std::int32_t>()[b] = cpu::sample_row(draws[static_cast<std::size_t>(b)], row, scratch);
        }
      },
      [&] { cuda::sample(ctx, draws, logits, chosen); });
}

std::size_t sample_workspace_bytes(std::int64_t outputs, const Place& place) {
  if constexpr (cuda::kBuilt) {
    if (place.device == Device::Cuda) return cuda::sample_workspace_bytes(outputs);
  }
  return 0;
}

}  // namespace megalodon
