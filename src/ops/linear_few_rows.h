// linear_forward for so few rows that reading the weights takes the time: generation.
#pragma once

#include "ops/linear.h"

namespace megalodon::cpu {

constexpr std::int64_t kFewRows = 16;  // up to here this beats oneDNN, which repacks the weights

// What linear_forward says; x has from 1 to kFewRows rows. Reads every row of the weights once and from front to back, a
// contiguous share for each thread. Products of bfloat16 are exact and summed in float32, in an order that depends on the sizes
// and the instruction set alone. dot_instructions: the processor's bfloat16 dot products may be used; they take subnormal inputs
// for zero.
void linear_few_rows(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& y,
                     bool accumulate, bool dot_instructions);

}  // namespace megalodon::cpu

namespace megalodon::cuda {

constexpr std::int64_t kFewRows = 8;  // up to here this is no slower than cuBLASLt

// What is done with sums before they are rounded and written: nothing; silu; or, of s [..., out], silu(s[..., i]) times
// s[..., out / 2 + i], which makes half as many columns of y. For pairs out is a multiple of kPairs.
enum class Gate { None, Silu, Pairs };
constexpr std::int64_t kPairs = 16;

// y = gate(x W^T + b + added), where added may be y, or null, and x has from 1 to kFewRows rows. Reads the weights once. Products
// of bfloat16 are exact; sums are float32, in an order that depends on the sizes, pitches and alignment alone.
void linear_few_rows(Context& ctx, const Linear& op, const Tensor& weight, const Tensor& bias, const Tensor& x,
                     const Tensor& added, const Tensor& y, Gate gate);

}  // namespace megalodon::cuda
