// The backward of the look-up: sums the gradients of duplicate ids into a coalesced gradient.
//
// B batch, F fields, E width, U distinct rows of one batch.
#pragma once

#include <cstdint>

#include "cpu/embedding/backward/row_set.h"
#include "cpu/embedding/lookup/lookup.h"
#include "cpu/embedding/types.h"

namespace adaftr_fast {

// The gradient of the look-ups, or grad + factor * looked_up: that of a loss with factor / 2 times the squares of what
// was looked up.
template <typename W>
struct LookupGradient {
  const W* grad;       // [B, F * E]
  const W* looked_up;  // [B, F * E], or null
  Compute<W> factor;
};

template <typename W, typename Id>
struct MergeKernels {
  // For fields [begin, end): writes the distinct rows in order to rows [U] and the sum of their gradients to
  // values [U, E], both from base[f] on.
  void (*merge)(const Ids<Id>&, const uint32_t* place, const int64_t* base, const LookupGradient<W>&, int64_t width,
                int64_t* rows, Compute<W>* values, int64_t begin, int64_t end);
  // Adds the gradients of the rows of one of `parts` shares to sums [U, E].
  void (*merge_share)(const Ids<Id>&, const RowSet&, const int64_t* base, const W* grad, int64_t width,
                      Compute<W>* sums, int64_t part, int64_t parts);
};

}  // namespace adaftr_fast
