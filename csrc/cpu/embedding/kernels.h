// The embedding's kernels of one instruction set, as a table, and the table to use.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "cpu/embedding/backward/merge.h"
#include "cpu/embedding/backward/row_set.h"
#include "cpu/embedding/bags/bags.h"
#include "cpu/embedding/lookup/lookup.h"
#include "cpu/embedding/optim/adam.h"
#include "cpu/embedding/optim/update.h"
#include "cpu/embedding/types.h"

namespace adaftr_fast {

// Kernels for tables stored as W.
template <typename W>
struct TypedKernels {
  MergeKernels<W, int32_t> merge32;
  MergeKernels<W, int64_t> merge64;
  UpdateKernels<W> update;
  AdamKernels<W> adam;
  BagKernels<W, int32_t> bags32;
  BagKernels<W, int64_t> bags64;
};

struct EmbeddingKernels {
  // Whether rows [count] rise strictly.
  bool (*rising)(const int64_t* rows, int64_t count);
  RowSetKernels row_sets;
  std::tuple<LookupKernels<int32_t>, LookupKernels<int64_t>> lookup;
  std::tuple<RankKernels<int32_t>, RankKernels<int64_t>> rank;
  std::tuple<TypedKernels<float>, TypedKernels<double>, TypedKernels<BFloat16>, TypedKernels<Float16>> typed;
};

namespace generic {
extern const EmbeddingKernels kEmbedding;
}
namespace avx2 {
extern const EmbeddingKernels kEmbedding;
}

// The kernels for capability().
const EmbeddingKernels& embedding_kernels();

template <typename Id>
const LookupKernels<Id>& lookup_kernels() {
  return std::get<LookupKernels<Id>>(embedding_kernels().lookup);
}

template <typename Id>
const RankKernels<Id>& rank_kernels() {
  return std::get<RankKernels<Id>>(embedding_kernels().rank);
}

template <typename W>
const TypedKernels<W>& typed_kernels() {
  return std::get<TypedKernels<W>>(embedding_kernels().typed);
}

template <typename W, typename Id>
const MergeKernels<W, Id>& merge_kernels() {
  if constexpr (sizeof(Id) == sizeof(int32_t)) {
    return typed_kernels<W>().merge32;
  } else {
    return typed_kernels<W>().merge64;
  }
}

template <typename W, typename Id>
const BagKernels<W, Id>& bag_kernels() {
  if constexpr (sizeof(Id) == sizeof(int32_t)) {
    return typed_kernels<W>().bags32;
  } else {
    return typed_kernels<W>().bags64;
  }
}

}  // namespace adaftr_fast
