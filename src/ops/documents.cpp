#include "ops/documents.h"

#include <string>

#include "core/check.h"

namespace megalodon {

void check_documents(const Tensor& documents, std::int64_t batch, std::int64_t length, const char* op) {
  if (!documents) return;
  require_contiguous(documents, DType::I32, {batch, length}, op, "documents");
  if (documents.device() != Device::Cpu) return;  // out of the host's sight: the model checked them
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int32_t* begins = documents_of(documents, b);
    const auto fits = [&](std::int64_t t) { return begins[t] == t || (t > 0 && begins[t] == begins[t - 1]); };
    bool all = true;
    for (std::int64_t t = 0; t < length; ++t) all &= fits(t);
    for (std::int64_t t = 0; !all && t < length; ++t) {
      if (fits(t)) continue;
      throw Error(ErrorKind::InvalidArgument,
                  "documents[" + std::to_string(b) + ", " + std::to_string(t) + "] is " + std::to_string(begins[t]) +
                      ", neither that of the token before nor its own column",
                  op);
    }
  }
}

}  // namespace megalodon
