// What cuda/ceilings.h says in a build without the CUDA toolkit: never called, since no GPU could be opened.
#include "cuda/ceilings.h"
#include "megalodon/error.h"

namespace megalodon::cuda {

namespace {

[[noreturn]] void refuse() { throw Error(ErrorKind::Unsupported, "this program was built without CUDA", "device cuda"); }

}  // namespace

double measure_matmul_rate(Context& /*ctx*/, DType /*dtype*/) { refuse(); }
Ceilings measure_ceilings(Context& /*ctx*/) { refuse(); }

}  // namespace megalodon::cuda
