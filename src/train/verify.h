// Recomputes what a golden file holds and measures the distance. Three kinds of file, told apart by their names:
//   X.safetensors         param.*, tokens, targets, logits, loss, grad.*, oracle.* (float64, the truth where present); the
//                         configuration is metadata "config"
//   X_stream.safetensors  tokens fed in pieces of the lengths `splits`: logits, and the states at the end
//   X_adamw.safetensors   batches, and metadata "optim": loss, grad_norm and lr of every step, and the parameters after the last
//                         (the first step may include the gradient of X's own window, as in tests/golden: see its README.md)
// The last two take configuration and parameters from the X.safetensors beside them.
#pragma once

#include <string>
#include <vector>

#include "core/context.h"

namespace megalodon {

struct Verified {
  std::string quantity;  // "grad.layers.0.mega.wz.weight"
  double error = 0;      // ||ours - truth|| / ||truth||; ||ours|| where the truth is zero; infinite where ours is not finite
  double worst = 0;      // the largest |ours - truth| of an entry
  std::string where;     // that entry's index, "[1, 17, 3]"
  double bound = 0;      // of `error`

  bool passed() const noexcept { return error <= bound; }
};

// One line a quantity. Throws Error(NotFound, Corrupt, Mismatch) for a file that is not one of the three kinds.
std::vector<Verified> verify_golden_file(Context& ctx, const std::string& path);

}  // namespace megalodon
