// Whether this build has the CUDA backend.
#pragma once

namespace megalodon::cuda {

inline constexpr bool kBuilt = MEGALODON_CUDA != 0;  // the build defines it, 0 or 1

}  // namespace megalodon::cuda
