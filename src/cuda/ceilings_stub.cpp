// What cuda/ceilings.h says in a build without the CUDA toolkit: never called, since no GPU could be opened.
#include "cuda/ceilings.h"
#include "megalodon/error.h"

namespace megalodon::cuda {

Ceilings measure_ceilings(Context& /*ctx*/) {
  throw Error(ErrorKind::Unsupported, "this program was built without CUDA", "device cuda");
}

}  // namespace megalodon::cuda
