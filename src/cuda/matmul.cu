#include "cuda/matmul.h"

#include "megalodon/error.h"

namespace megalodon::cuda {

struct MatmulPlans::Impl {
  Gpu& gpu;
};

MatmulPlans::MatmulPlans(Gpu& gpu) : impl_(std::make_unique<Impl>(Impl{gpu})) {}
MatmulPlans::~MatmulPlans() = default;

void MatmulPlans::execute(const Matmul&, const void*, const void*, void*, const void*) {
  throw Error(ErrorKind::Unsupported, "products on the GPU", "matmul");
}

void matmul(Context& ctx, const Matmul& op, const void* a, const void* b, void* c, const void* bias) {
  gpu_of(ctx).plans().execute(op, a, b, c, bias);
}

}  // namespace megalodon::cuda
