// What a device can do at most: the yardstick of every benchmark.
#pragma once

#include "megalodon/dtype.h"

namespace megalodon {

// Operations (2 m n k a product) and bytes a second.
struct Ceilings {
  double products_f32 = 0, products_bf16 = 0;  // bf16: 0 where the device does not multiply it
  double read = 0;                             // of reading memory
  double copy = 0;                             // bytes read plus bytes written

  double products(DType dtype) const noexcept { return dtype == DType::BF16 ? products_bf16 : products_f32; }
};

}  // namespace megalodon
