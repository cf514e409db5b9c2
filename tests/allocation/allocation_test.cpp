// A step allocates nothing: neither in training nor in decoding, once the first ones have made what later ones use again.
// operator new is replaced in this program, and counts.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <string_view>
#include <vector>

#include "core/rng.h"
#include "cpu/matmul.h"
#include "train/update.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

// oneDNN makes and drops a list of arguments each time that a primitive runs.
bool is_onednn(void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && std::string_view(info.dli_fname).find("libdnnl") != std::string_view::npos;
}

void* counted(std::size_t bytes, void* caller) {
  if (counting.load() && !is_onednn(caller)) allocations.fetch_add(1);
  if (void* memory = std::malloc(std::max<std::size_t>(1, bytes))) return memory;
  throw std::bad_alloc();
}

void* counted(std::size_t bytes, std::align_val_t alignment, void* caller) {
  if (counting.load() && !is_onednn(caller)) allocations.fetch_add(1);
  const auto to = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(to, (std::max<std::size_t>(1, bytes) + to - 1) / to * to)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, __builtin_return_address(0)); }
void* operator new[](std::size_t bytes) { return counted(bytes, __builtin_return_address(0)); }
void* operator new(std::size_t bytes, std::align_val_t to) { return counted(bytes, to, __builtin_return_address(0)); }
void* operator new[](std::size_t bytes, std::align_val_t to) { return counted(bytes, to, __builtin_return_address(0)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace megalodon {
namespace {

// The fewest allocations of several steps. Which thread multiplies which block of attention is chance, and so is when the last
// thread has made its last primitive: what every step allocates is what counts.
template <class Step>
int fewest_allocations(Step&& step) {
  constexpr int kWarmUp = 3;
  constexpr int kSteps = 10;
  int fewest = 1 << 30;
  for (int i = 0; i < kWarmUp + kSteps; ++i) {
    allocations.store(0);
    counting.store(true);
    step();
    counting.store(false);
    if (i >= kWarmUp) fewest = std::min(fewest, allocations.load());
  }
  return fewest;
}

ModelConfig small() {
  ModelConfig c;
  c.num_layers = 2;
  c.model_dim = 32;
  c.z_dim = 16;
  c.value_dim = 64;
  c.num_heads = 2;
  c.ffn_hidden_dim = 48;
  c.cema_ndim = 8;
  c.chunk_size = 80;  // more than one block of attention
  c.vocab_size = 29;
  c.norm_num_groups = 4;
  c.swiglu = c.rescale_nffn = true;
  return c;
}

std::vector<std::int32_t> random_tokens(std::int64_t count) {
  Rng rng(1);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(rng.below(29)));
  return tokens;
}

class AllocationTest : public testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    if (GetParam() != Precision::F32 && !cpu::has_bfloat16_products()) GTEST_SKIP() << "no bfloat16 products";
  }
};

TEST(Allocation, IsCounted) {
  EXPECT_EQ(fewest_allocations([] { const std::vector<int> some(3); }), 1);
  EXPECT_EQ(fewest_allocations([] {}), 0);
}

TEST_P(AllocationTest, ATrainingStepAllocatesNothing) {
  Megalodon model(small(), GetParam());
  model.initialize(1);
  Context ctx(2);
  const std::int64_t batch = 2;
  const std::int64_t length = 160;  // rows enough for packed weights
  Training training(ctx, model, batch, length);
  ModelState state(model.config(), batch, model.dtype());
  auto tokens = random_tokens(batch * length);
  const Tensor window(tokens.data(), {batch, length});
  const std::int64_t count = model.layout().total();
  std::vector<float> arrays[3];  // gradients, m, v
  for (auto& array : arrays) array.resize(static_cast<std::size_t>(count));
  const auto flat = [&](int i) { return Tensor(arrays[i].data(), {count}); };
  Update update(ctx);
  std::int64_t steps = 0;
  const int allocated = fewest_allocations([&] {
    std::fill(arrays[0].begin(), arrays[0].end(), 0.0F);
    const double loss = training.forward_backward(window, window, &state, flat(0), 1.0F);
    update.step({.lr = 1e-3}, ++steps, {.clip = 1.0}, loss, model, flat(0), flat(1), flat(2));
  });
  EXPECT_EQ(allocated, 0);
}

TEST_P(AllocationTest, ADecodedTokenAllocatesNothing) {
  Megalodon model(small(), GetParam() == Precision::BF16WithMaster ? Precision::BF16 : GetParam());
  model.initialize(1);
  Context ctx(2);
  const std::int64_t batch = 3;
  Inference inference(ctx, model, batch, 1);
  ModelState state(model.config(), batch, model.dtype());
  state.positions.data<std::int64_t>()[1] = 7;  // sequences at different places of a chunk
  auto tokens = random_tokens(batch);
  std::vector<float> values(static_cast<std::size_t>(batch * 29));
  const int allocated = fewest_allocations([&] {
    inference.last_logits(Tensor(tokens.data(), {batch, 1}), state, Tensor(values.data(), {batch, 29}));
  });
  EXPECT_EQ(allocated, 0);
}

INSTANTIATE_TEST_SUITE_P(Precisions, AllocationTest, testing::Values(Precision::F32, Precision::BF16WithMaster),
                         [](const auto& of) { return of.param == Precision::F32 ? "F32" : "BF16"; });

}  // namespace
}  // namespace megalodon
