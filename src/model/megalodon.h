// The Megalodon language model (arXiv 2404.08801, section 3): forward, loss and backward over windows of B sequences x L tokens.
//
//   x = Embedding(tokens)                       each block:  y   = x + MovingAverageGatedAttention(x)
//   x = Block(x) for each block                              out = x + FeedForward(y)        (the two-hop residual)
//   logits = TimestepNorm(x) W_out^T
#pragma once

#include <cstdint>
#include <memory>

#include "core/context.h"
#include "model/parameters.h"
#include "model/state.h"

namespace megalodon {

// How parameters are kept, and what the model computes in. Norms, CEMA, softmax, loss, the residual sum and all sums of products
// are float32 in each.
enum class Precision {
  F32,             // everything float32
  BF16,            // matrices and what they multiply are bfloat16; enough to run a model
  BF16WithMaster,  // the same, beside float32 matrices that an optimizer changes
};

// A configuration with its parameters.
class Megalodon {
 public:
  // Parameters are zero until initialize() or until they are filled. They lie in the memory of `accelerator`, the host's for
  // null. Throws Error(InvalidArgument, OutOfMemory), and Error(Unsupported) for bfloat16 on a processor that does not multiply
  // it.
  explicit Megalodon(const ModelConfig& config, Precision precision = Precision::F32, AcceleratorPtr accelerator = nullptr);
  // For inference in bfloat16, of matrices that lie somewhere else: [total - vectors] bf16 in the order of the layout, never
  // written, in memory that `owner` keeps. set() is then for vectors alone.
  Megalodon(const ModelConfig& config, const Tensor& matrices, std::shared_ptr<const void> owner);
  // What the former takes in memory.
  static std::size_t storage_bytes(const ModelConfig& config, Precision precision);

  void initialize(std::uint64_t seed);
  // Sets the parameter at `index` of layout().entries(), in every precision that is kept here. values: its elements, F32 or BF16.
  void set(std::size_t index, const Tensor& values);
  // Rounds the float32 matrices into the bfloat16 ones, after a change of flat().
  void round_matrices();

  // Where the parameters are; null for the host.
  const AcceleratorPtr& accelerator() const noexcept { return accelerator_; }
  const ModelConfig& config() const noexcept { return config_; }
  const ParameterLayout& layout() const noexcept { return layout_; }
  DType dtype() const noexcept { return matrices_ ? DType::BF16 : DType::F32; }  // of what products multiply
  const Tensor& flat() const noexcept { return flat_; }          // [layout().total()] f32; with BF16 [layout().vectors()]
  const Tensor& matrices() const noexcept { return matrices_; }  // [total - vectors] bf16; null with F32
  const Parameters& parameters() const noexcept { return parameters_; }
  const Tensor& rotary_table() const noexcept { return rotary_table_; }

 private:
  Megalodon(const ModelConfig& config, Precision precision, const Tensor& matrices, std::shared_ptr<const void> owner,
            AcceleratorPtr accelerator);

  AcceleratorPtr accelerator_;
  ModelConfig config_;
  ParameterLayout layout_;
  std::shared_ptr<const void> owner_;  // of matrices_; null where they are in arena_
  Arena arena_;
  Tensor flat_;
  Tensor matrices_;
  Parameters parameters_;
  Tensor rotary_table_;  // [C, z_head_dim / 2, 2]
};

// Memory that was planned, in bytes.
struct MemoryPlan {
  std::size_t activations = 0;
  std::size_t workspace = 0;
};

// Runs a model forward over windows of up to `batch` x `length` tokens, in memory that does not grow with the number of layers.
class Inference {
 public:
  // Plans and allocates. The model must outlive this. Throws Error(OutOfMemory).
  Inference(Context& ctx, const Megalodon& model, std::int64_t batch, std::int64_t length);
  ~Inference();
  static MemoryPlan plan(const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length, const Place& place);

  std::int64_t length() const noexcept;  // the longest window

  // Each reads tokens [B, L] i32, L <= length(), after what `state` has read, and advances it. On a bad token nothing is changed;
  // tokens of a GPU, which only sampling puts there, are not looked at.
  void logits(const Tensor& tokens, ModelState& state, const Tensor& logits);       // [B, L, K] f32, of every position
  void last_logits(const Tensor& tokens, ModelState& state, const Tensor& logits);  // [B, K] f32, of the last position
  void losses(const Tensor& tokens, const Tensor& targets, ModelState& state,
              const Tensor& losses);  // [B, L] f32, nats; target -1: 0
  // The same of windows of documents that are read from an empty state each: [B, L] i32, see ops/documents.h.
  void losses(const Tensor& tokens, const Tensor& targets, const Tensor& documents, const Tensor& losses);
  void advance(const Tensor& tokens, ModelState& state);  // nothing but the state

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What a training step keeps of each block's forward for its backward. The same bits on a CPU whichever it is.
enum class Recompute {
  Keep,       // all of it: where memory is plenty, a GPU's step takes least time so
  None,       // all but what is elementwise in something else that is kept
  Selective,  // the feed-forward's hidden layer is computed again too, the widest tensor: about a quarter less memory
  Block,      // a block's input alone: its whole forward runs again
};
// "none", ...
inline const char* to_string(Recompute recompute) noexcept {
  if (recompute == Recompute::Keep) return "keep";
  if (recompute == Recompute::None) return "none";
  return recompute == Recompute::Selective ? "selective" : "block";
}

// What makes dropout masks differ from window to window; the same values give the same masks.
struct DropoutKey {
  std::uint64_t seed = 0;
  std::uint64_t window = 0;  // counts micro-batches over the whole run
};

// What training goes down besides the loss; see ops/cross_entropy.h.
struct Objective {
  float label_smoothing = 0;
  float z_loss = 0;

  bool plain() const noexcept { return label_smoothing == 0 && z_loss == 0; }
};

// Forward, loss and backward over windows of exactly `batch` x `length` tokens.
class Training {
 public:
  // Plans and allocates. The model must outlive this. Throws Error(OutOfMemory).
  Training(Context& ctx, const Megalodon& model, std::int64_t batch, std::int64_t length, Recompute recompute = Recompute::None,
           const Objective& objective = {});
  ~Training();
  static MemoryPlan plan(const ModelConfig& config, DType dtype, std::int64_t batch, std::int64_t length, const Place& place,
                         Recompute recompute = Recompute::None);

  // Returns the sum of the losses (nats) over targets that are not -1, and adds scale * d(sum of objectives)/d(parameters) to
  // `gradients`, a flat array of the model's layout. state: null starts every sequence afresh; otherwise the window goes on from
  // it (its positions must be multiples of the chunk size) and it is advanced; no gradient flows into it. documents: [B, L] i32
  // (ops/documents.h), each of which starts afresh, without a state; null for one a window.
  double forward_backward(const Tensor& tokens,   // [B, L] i32
                          const Tensor& targets,  // [B, L] i32
                          ModelState* state, const Tensor& gradients, float scale, const DropoutKey& dropout = {},
                          const Tensor& documents = {});
  // The sum of the objectives of that call; the sum of the losses where nothing was added.
  double objective_sum() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace megalodon
