// The ops adaftr_fast::fused_embedding_backward and strictly_rising on the CPU: checks, memory and launches.

#include <algorithm>
#include <atomic>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/embedding/backward/merge_in_shares.h"
#include "cpu/embedding/backward/scratch.h"
#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {
namespace {

// The place of each look-up among the distinct rows of its field, to place [F, B]; returns base [F + 1], the first
// place of each field in the result.
template <typename Id>
std::vector<int64_t> rank_lookups(const Ids<Id>& ids, uint32_t* place, int64_t grain) {
  std::vector<int64_t> base(ids.fields + 1, 0);
  std::atomic<int64_t> bad{-1};
  parallel_for(ids.fields, grain, [&](int64_t begin, int64_t end) {
    int64_t rows = 0;
    for (int64_t f = begin; f < end; ++f) rows = std::max(rows, ids.field_offsets[f + 1] - ids.field_offsets[f]);
    keep_smallest(bad, id_kernels<Id>().rank(ids, scratch_field(rows), place, base.data() + 1, begin, end));
  });
  if (bad >= 0) raise_bad_id("fused_embedding_backward", ids, bad);
  std::partial_sum(base.begin(), base.end(), base.begin());
  return base;
}

// Threads own whole fields where there are enough of them.
bool merges_in_shares(int64_t fields, int64_t lookups) {
  return thread_count() > 1 && fields < 4 * thread_count() && lookups >= 2 * kRowsPerTask;
}

template <typename W, typename Id>
std::tuple<Tensor, Tensor> run_merge(const Ids<Id>& ids, const Tensor& given, int64_t width,
                                     const OptionalTensor& looked_up, double factor) {
  Tensor grad = given;
  if (merges_in_shares(ids.fields, ids.batch * ids.fields)) {
    if (looked_up.has_value()) grad = plus(grad, *looked_up, factor);
    return merge_in_shares<Compute<W>>(
        {ids.field_offsets, ids.fields, ids.batch, ids.batch * ids.fields, width}, grad.scalar_type(),
        [&](const RowSet& set, int64_t begin, int64_t end) {
          return id_kernels<Id>().mark_shared(ids, set, begin, end);
        },
        [&](int64_t position) { raise_bad_id("fused_embedding_backward", ids, position); },
        [&](const RowSet& set, const int64_t* base, Compute<W>* sums, int64_t part, int64_t parts) {
          index_kernels<W, Id>().merge.merge_share(ids, set, base, data_of<W>(grad), width, sums, part, parts);
        });
  }
  const int64_t grain = batch_grain(ids.batch);
  const Tensor places = cached_empty({ids.fields, ids.batch}, kInt);
  auto* place = static_cast<uint32_t*>(places.mutable_data_ptr());
  const std::vector<int64_t> base = rank_lookups(ids, place, grain);
  Tensor rows = cached_empty({base.back()}, kLong);
  Tensor values = cached_empty({base.back(), width}, compute_type(grad.scalar_type()));
  if (base.back() == 0) return {rows, as_type(values, grad.scalar_type())};  // an empty batch has no memory to write to
  const LookupGradient<W> from{data_of<W>(grad), data_of<W>(looked_up), static_cast<Compute<W>>(factor)};
  auto* rows_to = mutable_data_of<int64_t>(rows);
  auto* values_to = mutable_data_of<Compute<W>>(values);
  parallel_for(ids.fields, grain, [&](int64_t begin, int64_t end) {
    index_kernels<W, Id>().merge.merge(ids, place, base.data(), from, width, rows_to, values_to, begin, end);
  });
  return {rows, as_type(values, grad.scalar_type())};
}

std::tuple<Tensor, Tensor> merge_gradients(const char* kOp, const Tensor& grad, const Tensor& ids,
                                           const Tensor& field_offsets, int64_t width, const OptionalTensor& looked_up,
                                           double factor) {
  check_ids(kOp, ids, field_offsets);
  check_field_offsets(kOp, field_offsets, data_of<int64_t>(field_offsets)[ids.size(1)]);
  check_gradient(kOp, grad, ids.size(0), ids.size(1), width);
  const int64_t* first = data_of<int64_t>(field_offsets);
  for (int64_t f = 0; f < ids.size(1); ++f) {
    ADAFTR_CHECK_VALUE(first[f + 1] - first[f] <= int64_t{1} << 32, kOp, ": a field may have 2^32 rows, field ", f,
                       " has ", first[f + 1] - first[f]);
  }
  const Tensor dense_grad = as_contiguous(grad), dense_ids = as_contiguous(ids);
  return by_table_type(kOp, grad.scalar_type(), [&](auto w) {
    return by_id_type(ids, [&](auto id) {
      return run_merge<decltype(w)>(ids_of<decltype(id)>(dense_ids, field_offsets), dense_grad, width, looked_up,
                                    factor);
    });
  });
}

std::tuple<Tensor, Tensor> fused_embedding_backward(const Tensor& grad, const Tensor& ids, const Tensor& field_offsets,
                                                    int64_t width) {
  return merge_gradients("fused_embedding_backward", grad, ids, field_offsets, width, std::nullopt, 0);
}

std::tuple<Tensor, Tensor> embedding_and_squares_backward(const Tensor& grad, const Tensor& ids,
                                                          const Tensor& field_offsets, int64_t width,
                                                          const Tensor& looked_up, const Tensor& of_squares) {
  constexpr const char* kOp = "embedding_and_squares_backward";
  ADAFTR_CHECK_VALUE(same_sizes(looked_up, grad) && looked_up.scalar_type() == grad.scalar_type(), kOp,
                     ": looked_up must be ", grad.scalar_type(), " ", shape(grad), ", as grad, got ",
                     looked_up.scalar_type(), " ", shape(looked_up));
  const bool wide = grad.scalar_type() == kDouble;
  ADAFTR_CHECK_VALUE(of_squares.dim() == 0 && of_squares.scalar_type() == (wide ? kDouble : kFloat), kOp,
                     ": of_squares must be 0-dim ", wide ? kDouble : kFloat, ", got ", of_squares.scalar_type(), " ",
                     shape(of_squares));
  const double factor = 2 * (wide ? *data_of<double>(of_squares) : *data_of<float>(of_squares));
  return merge_gradients(kOp, grad, ids, field_offsets, width, as_contiguous(looked_up), factor);
}

bool strictly_rising(const Tensor& rows) {
  ADAFTR_CHECK(rows.dim() == 1 && rows.scalar_type() == kLong && rows.is_contiguous(),
               "strictly_rising: rows must be contiguous int64 [U], got ", rows.scalar_type(), " ", shape(rows));
  return rows_rise(data_of<int64_t>(rows), rows.size(0));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("fused_embedding_backward", TORCH_BOX(&fused_embedding_backward));
  m.impl("embedding_and_squares_backward", TORCH_BOX(&embedding_and_squares_backward));
  m.impl("strictly_rising", TORCH_BOX(&strictly_rising));
}

}  // namespace adaftr_fast
