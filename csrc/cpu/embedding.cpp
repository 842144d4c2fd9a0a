// The ops adaftr_fast::fused_embedding and fused_embedding_backward on the CPU: checks, memory and launches.
#include "cpu/embedding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/capability.h"
#include "cpu/embedding_scratch.h"

namespace adaftr_fast {

const EmbeddingKernels& embedding_kernels() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return kEmbeddingAvx2;
#endif
  return kEmbeddingGeneric;
}

namespace {

// Below this many look-ups a task is not worth another thread.
constexpr int64_t kLookupsPerTask = 2048;

const LookupKernels<int32_t>& lookup_kernels(int32_t) { return embedding_kernels().lookup32; }
const LookupKernels<int64_t>& lookup_kernels(int64_t) { return embedding_kernels().lookup64; }
const MergeKernels<float, int32_t>& merge_kernels(float, int32_t) { return embedding_kernels().merge_float_32; }
const MergeKernels<float, int64_t>& merge_kernels(float, int64_t) { return embedding_kernels().merge_float_64; }
const MergeKernels<double, int32_t>& merge_kernels(double, int32_t) { return embedding_kernels().merge_double_32; }
const MergeKernels<double, int64_t>& merge_kernels(double, int64_t) { return embedding_kernels().merge_double_64; }

void check_ids(const char* op, const at::Tensor& ids, const at::Tensor& offsets) {
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kInt || ids.scalar_type() == at::kLong, op,
                   ": ids must be int32 or int64, got ", ids.scalar_type());
  TORCH_CHECK(offsets.dim() == 1 && offsets.scalar_type() == at::kLong && offsets.is_contiguous(), op,
              ": offsets must be contiguous int64 [F + 1], got ", offsets.scalar_type(), " ", offsets.sizes());
  TORCH_CHECK_VALUE(ids.dim() == 2 && ids.size(1) == offsets.size(0) - 1, op, ": ids must be [B, ", offsets.size(0) - 1,
                    "] (one column a field), got ", ids.sizes());
}

// offsets are data: a wrong one would let the kernels read outside the table.
void check_offsets(const char* op, const at::Tensor& offsets, int64_t rows) {
  const int64_t* first = offsets.const_data_ptr<int64_t>();
  const int64_t fields = offsets.size(0) - 1;
  bool rising = first[0] == 0 && first[fields] == rows;
  for (int64_t f = 0; f < fields; ++f) rising &= first[f] <= first[f + 1];
  TORCH_CHECK(rising, op, ": offsets must rise from 0 to the number of rows, ", rows);
}

template <typename Id>
Ids<Id> ids_of(const at::Tensor& ids, const at::Tensor& offsets) {
  return {ids.const_data_ptr<Id>(), offsets.const_data_ptr<int64_t>(), ids.size(0), ids.size(1)};
}

template <typename Id>
void raise_bad_id(const char* op, const Ids<Id>& ids, int64_t position) {
  const int64_t f = position % ids.fields;
  TORCH_CHECK_INDEX(false, op, ": ids[", position / ids.fields, ", ", f, "] = ", ids.data[position],
                    " is out of range for field ", f, ", whose ids are 0 to ",
                    ids.first_row[f + 1] - ids.first_row[f] - 1);
}

// Keeps the smallest of the positions that the threads report, so that the message is the same in every run.
void keep_smallest(std::atomic<int64_t>& bad, int64_t position) {
  int64_t seen = bad.load();
  while (position >= 0 && (seen < 0 || position < seen) && !bad.compare_exchange_weak(seen, position)) {
  }
}

template <typename Id>
void run_lookup(const Ids<Id>& ids, const at::Tensor& weight, at::Tensor& out) {
  const int64_t row_bytes = weight.size(1) * weight.element_size();
  const auto* from = static_cast<const char*>(weight.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  std::atomic<int64_t> bad{-1};
  const int64_t grain = std::max<int64_t>(1, kLookupsPerTask / ids.fields);
  at::parallel_for(0, ids.batch, grain, [&](int64_t begin, int64_t end) {
    keep_smallest(bad, lookup_kernels(Id{}).lookup(ids, from, row_bytes, to, begin, end));
  });
  if (bad >= 0) raise_bad_id("fused_embedding", ids, bad);
}

at::Tensor fused_embedding(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& offsets) {
  check_ids("fused_embedding", ids, offsets);
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(),
                    "fused_embedding: weight must be contiguous [R, E], got ", weight.sizes());
  check_offsets("fused_embedding", offsets, weight.size(0));
  at::Tensor out = at::empty({ids.size(0), ids.size(1) * weight.size(1)}, weight.options());
  if (out.numel() == 0) return out;
  const at::Tensor dense_ids = ids.contiguous();
  if (ids.scalar_type() == at::kInt) {
    run_lookup(ids_of<int32_t>(dense_ids, offsets), weight, out);
  } else {
    run_lookup(ids_of<int64_t>(dense_ids, offsets), weight, out);
  }
  return out;
}

// Marks and ranks the rows of a batch; returns base [F + 1], the first place of each field in the result.
template <typename Id>
std::vector<int64_t> mark_rows(const Ids<Id>& ids, const RowSet& set, int64_t grain) {
  std::vector<int64_t> unique(ids.fields), base(ids.fields + 1, 0);
  std::atomic<int64_t> bad{-1};
  at::parallel_for(0, ids.fields, grain, [&](int64_t begin, int64_t end) {
    keep_smallest(bad, lookup_kernels(Id{}).mark(ids, set, unique.data(), begin, end));
  });
  if (bad >= 0) {
    // Ranges without a bad id have left their bits set.
    std::fill(set.bits, set.bits + set.word[ids.fields], 0);
    std::fill(set.summary, set.summary + set.sumword[ids.fields], 0);
    raise_bad_id("fused_embedding_backward", ids, bad);
  }
  for (int64_t f = 0; f < ids.fields; ++f) base[f + 1] = base[f] + unique[f];
  return base;
}

template <typename T, typename Id>
std::tuple<at::Tensor, at::Tensor> run_merge(const Ids<Id>& ids, const at::Tensor& grad, int64_t width) {
  const auto scratch = borrow_scratch(ids.first_row, ids.fields);
  const int64_t grain = std::max<int64_t>(1, kLookupsPerTask / std::max<int64_t>(1, ids.batch));
  const std::vector<int64_t> base = mark_rows(ids, scratch->set, grain);
  at::Tensor rows = at::empty({base.back()}, grad.options().dtype(at::kLong));
  at::Tensor values = at::empty({base.back(), width}, grad.options());
  const T* from = grad.const_data_ptr<T>();
  auto* rows_to = rows.mutable_data_ptr<int64_t>();
  T* values_to = values.mutable_data_ptr<T>();
  at::parallel_for(0, ids.fields, grain, [&](int64_t begin, int64_t end) {
    merge_kernels(T{}, Id{}).merge(ids, scratch->set, base.data(), from, width, rows_to, values_to, begin, end);
  });
  return {rows, values};
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> merge_typed(const at::Tensor& grad, const at::Tensor& ids, const at::Tensor& offsets,
                                               int64_t width) {
  if (ids.scalar_type() == at::kInt) return run_merge<T>(ids_of<int32_t>(ids, offsets), grad, width);
  return run_merge<T>(ids_of<int64_t>(ids, offsets), grad, width);
}

std::tuple<at::Tensor, at::Tensor> fused_embedding_backward(const at::Tensor& grad, const at::Tensor& ids,
                                                            const at::Tensor& offsets, int64_t width) {
  check_ids("fused_embedding_backward", ids, offsets);
  check_offsets("fused_embedding_backward", offsets, offsets.const_data_ptr<int64_t>()[ids.size(1)]);
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == ids.size(0) && grad.size(1) == ids.size(1) * width,
                    "fused_embedding_backward: grad must be [", ids.size(0), ", ", ids.size(1) * width, "], got ",
                    grad.sizes());
  const at::Tensor dense_grad = grad.contiguous(), dense_ids = ids.contiguous();
  if (grad.scalar_type() == at::kFloat) return merge_typed<float>(dense_grad, dense_ids, offsets, width);
  TORCH_CHECK_TYPE(grad.scalar_type() == at::kDouble, "fused_embedding_backward: grad must be float32 or float64, got ",
                   grad.scalar_type());
  return merge_typed<double>(dense_grad, dense_ids, offsets, width);
}

bool strictly_rising(const at::Tensor& rows) {
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == at::kLong && rows.is_contiguous(),
              "strictly_rising: rows must be contiguous int64 [U], got ", rows.scalar_type(), " ", rows.sizes());
  const int64_t* row = rows.const_data_ptr<int64_t>();
  bool rising = true;
  for (int64_t u = 1; u < rows.size(0); ++u) rising &= row[u - 1] < row[u];
  return rising;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("fused_embedding", fused_embedding);
  m.impl("fused_embedding_backward", fused_embedding_backward);
  m.impl("strictly_rising", strictly_rising);
}

}  // namespace adaftr_fast
