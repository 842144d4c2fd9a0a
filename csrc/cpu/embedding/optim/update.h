// Optimizer steps on the rows of one batch.
//
// R rows of the table, E width, U distinct rows of the batch. Every kernel takes a range of U; rows are distinct,
// so ranges may run at the same time.
#pragma once

#include <cstdint>

#include "cpu/embedding/types.h"

namespace adaftr_fast {

// The merged gradient of a batch.
template <typename W>
struct RowGradient {
  const int64_t* rows;  // [U], distinct
  const W* values;      // [U, E]
  int64_t width;
};

struct UpdateScalars {
  double step_size;
  double weight_decay;  // L2: added to the gradient, for the rows of the batch only
  double epsilon;
  double beta1;
  double beta2;
};

template <typename W>
struct UpdateKernels {
  using T = Compute<W>;
  using Step = void (*)(W* weight, T* state, const RowGradient<W>&, const UpdateScalars&, int64_t begin, int64_t end);
  Step sgd;              // no state
  Step adagrad;          // state [R, E]: sum of g²
  Step rowwise_adagrad;  // state [R]: sum over steps of the mean of g² over E
  Step lazy_adam;        // state [R, 2, E]: first and second moment
};

}  // namespace adaftr_fast
