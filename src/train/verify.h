// Recomputes what a golden file holds and measures the distance. Three kinds of file, told apart by their names:
//   X.safetensors         param.*, tokens, targets, logits, loss, grad.*, oracle.* (float64, the truth where present); the
//                         configuration is metadata "config"
//   X_stream.safetensors  tokens fed in pieces of the lengths `splits`: logits, and the states at the end
//   X_adamw.safetensors   batches, and metadata "optim": loss, grad_norm and lr of every step, and the parameters after the last
//                         (the first step may include the gradient of X's own window, as in tests/golden: see its README.md)
// The last two take configuration and parameters from the X.safetensors beside them. Dropout is off.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"
#include "io/safetensors.h"
#include "megalodon/config.h"
#include "model/megalodon.h"
#include "ops/adamw.h"

namespace megalodon {

struct Verified {
  std::string quantity;  // "grad.layers.0.mega.wz.weight"
  double error = 0;      // ||ours - truth|| / ||truth||; ||ours|| where the truth is zero; infinite where ours is not finite
  double worst = 0;      // the largest |ours - truth| of an entry
  std::string where;     // that entry's index, "[1, 17, 3]"
  double bound = 0;      // of `error`

  bool passed() const noexcept { return error <= bound; }
};

// One line a quantity, with the bounds that float32 is held to; a GPU, whose sums are cut otherwise, to twice those. Throws
// Error(NotFound, Corrupt, Mismatch) for a file that is not one of the three kinds.
std::vector<Verified> verify_golden_file(Context& ctx, const std::string& path, Precision precision = Precision::F32);

// Widens the bounds of `verified` to twice what `naive` is off by; none gets tighter. `exact`, like the others the same
// quantities of the same file, is what float64 comes to: where even that is past its bound the file is wrong, and nothing is
// widened.
void widen_to_twice(const std::vector<Verified>& naive, const std::vector<Verified>& exact, std::vector<Verified>& verified);

// What computes: a model that begins with the parameters of X. Its numbers are handed over in float64, which holds every
// precision exactly. `window` is the shape [B, L] of tokens.
class GoldenModel {
 public:
  using Tokens = std::vector<std::int32_t>;
  struct Values {
    Shape shape;
    std::vector<double> values;
  };

  virtual ~GoldenModel() = default;
  // [B, L, K], of tokens that follow those of the calls before.
  virtual std::vector<double> logits(const Shape& window, const Tokens& tokens) = 0;
  // What is remembered of them, under the names of X_stream and in its shapes.
  virtual std::map<std::string, Values> state() = 0;
  // Adds the gradient of the mean loss of a window that stands alone; returns that loss.
  virtual double add_gradient(const Shape& window, const Tokens& tokens, const Tokens& targets) = 0;
  virtual void clear_gradient() = 0;
  virtual double gradient_norm() = 0;
  // One step (from 1) along the gradient, its norm clipped to `clip`.
  virtual void step(const AdamW& adamw, std::int64_t step, double clip) = 0;
  virtual std::vector<double> gradient(const std::string& parameter) = 0;
  virtual std::vector<double> parameter(const std::string& name) = 0;
};
using MakeGoldenModel = std::function<std::unique_ptr<GoldenModel>(const ModelConfig& config, const SafetensorsFile& x)>;

// The same of any implementation, with the bounds that float32 is held to.
std::vector<Verified> verify_golden_file(const std::string& path, const MakeGoldenModel& make);

}  // namespace megalodon
