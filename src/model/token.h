// One token of one sequence through all blocks, as one kernel of a Hopper GPU: what block_forward does op by op. Weights come
// without a pause, whatever stands between products. Internal to the model layer.
#pragma once

#include <vector>

#include "model/block.h"

namespace megalodon::cuda {

// Whether this GPU takes such blocks so: in bfloat16, where rows may be read 16 bytes at once and what lies in shared memory
// fits.
bool token_fits(Context& ctx, const BlockOps& op, const std::vector<BlockParameters>& blocks, DType dtype);

// What token_forward takes of the workspace.
std::size_t token_workspace_bytes(const BlockOps& op);

// x [1, 1, D] f32 becomes the last block's output. The states, one a block, are read and updated; none of their tensors may be
// null. `saved` and `scratch` are for one token, without a backward. token_fits must have said yes.
void token_forward(Context& ctx, const BlockOps& op, const std::vector<BlockParameters>& blocks, const BlockWindow& window,
                   const std::vector<BlockState>& states, const BlockSaved& saved, const BlockScratch& scratch, const Tensor& x);

}  // namespace megalodon::cuda
