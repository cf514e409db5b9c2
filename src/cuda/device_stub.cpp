// What cuda/device.h says in a build without the CUDA toolkit.
#include "cuda/device.h"
#include "megalodon/error.h"

namespace megalodon::cuda {

AcceleratorPtr open_device() {
  throw Error(ErrorKind::Unsupported, "this program was built without CUDA", "device cuda",
              "Build it with the preset cuda, or use --device cpu");
}

}  // namespace megalodon::cuda
