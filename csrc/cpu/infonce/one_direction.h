// torch.ops.adaftr_fast.infonce on CPU, for the ops of both directions and of blocks.
#pragma once

#include <optional>
#include <tuple>

#include "cpu/infonce/kernels.h"
#include "cpu/runtime/tensor.h"

namespace adaftr_fast {

using OneDirection = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

OneDirection infonce(const Tensor& anchors, const Tensor& candidates, const Tensor& tau, const OptionalTensor& positive,
                     const OptionalTensor& row_group, const OptionalTensor& column_group, const Tensor& scale,
                     bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,
                     std::optional<double> ignore_above, bool ieee);

// Its kernel for inputs of a type.
template <class T>
SweepKernel<InfoNCEProblem<T>> infonce_kernel(ScalarType inputs, bool ieee);

// Its kernel of products of bfloat16 for inputs of a type; one that converts to false where it takes none.
SweepKernel<InfoNCEProblem<float>> bf16_kernel(ScalarType inputs, bool ieee);

}  // namespace adaftr_fast
