// What the GPU can do at most, measured.
#pragma once

#include "core/ceilings.h"
#include "core/context.h"

namespace megalodon::cuda {

// Products: 8192^3 on random data, cuBLASLt's fastest. Copy: 4 GiB inside the device, bytes read plus bytes written, and as
// reading the same: what is only read runs no faster. For a context of a GPU. Allocates some 8 GiB for the time it takes.
Ceilings measure_ceilings(Context& ctx);

}  // namespace megalodon::cuda
