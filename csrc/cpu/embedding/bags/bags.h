// Multi-valued fields: any number of ids for each field of a row, pooled into one vector.
//
// B batch, F fields, E width, N ids of all bags together, U distinct rows of one batch.
#pragma once

#include <cstdint>

#include "cpu/embedding/lookup/lookup.h"
#include "cpu/embedding/optim/adam.h"

namespace adaftr_fast {

// Names as in nn.EmbeddingBag. Bag (b, f), number i = b * F + f, holds the ids values[offsets[i]] to
// values[offsets[i + 1] - 1].
template <typename Id, typename T>
struct Bags {
  const Id* values;              // [N]
  const int64_t* offsets;        // [B * F + 1]
  const T* per_sample_weights;   // [N], or null
  const int64_t* field_offsets;  // [F + 1]
  int64_t batch;
  int64_t fields;
  bool mean;  // divide by the number of ids in the bag
};

template <typename W, typename Id>
struct BagKernels {
  using Input = Bags<Id, Compute<W>>;
  // Pools the bags of batch rows [begin, end) into out [B, F * E]; empty bags give zeros. With `adam`, the rows'
  // current values are pooled. Returns the position in values of an id out of range, or -1.
  int64_t (*pool)(const Input&, const W* weight, const AdamTable<W>* adam, int64_t width, W* out, int64_t begin,
                  int64_t end);
  // As IdKernels::mark_shared and MergeKernels::merge_share: bags differ in size too much for threads to own fields.
  int64_t (*mark)(const Input&, const RowSet&, int64_t begin, int64_t end);
  void (*merge)(const Input&, const RowSet&, const int64_t* base, const W* grad, int64_t width, Compute<W>* sums,
                int64_t part, int64_t parts);
};

}  // namespace adaftr_fast
