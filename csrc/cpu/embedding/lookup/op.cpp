// The ops adaftr_fast::fused_embedding and fused_embedding_backward on the CPU: checks, memory and launches.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/embedding/lookup/lookup.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/embedding/backward/merge_in_shares.h"
#include "cpu/embedding/backward/scratch.h"
#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/capability.h"

namespace adaftr_fast {

const EmbeddingKernels& embedding_kernels() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return kEmbeddingAvx2;
#endif
  return kEmbeddingGeneric;
}

void check_fields(const char* op, const at::Tensor& offsets) {
  TORCH_CHECK_VALUE(
      offsets.dim() == 1 && offsets.scalar_type() == at::kLong && offsets.is_contiguous() && offsets.size(0) >= 2, op,
      ": the tables' offsets must be contiguous int64 [F + 1] of F >= 1 fields, got ", offsets.scalar_type(), " ",
      offsets.sizes(), " with strides ", offsets.strides());
}

void check_ids(const char* op, const at::Tensor& ids, const at::Tensor& offsets) {
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kInt || ids.scalar_type() == at::kLong, op,
                   ": ids must be int32 or int64, got ", ids.scalar_type());
  check_fields(op, offsets);
  TORCH_CHECK_VALUE(ids.dim() == 2 && ids.size(1) == offsets.size(0) - 1, op, ": ids must be [B, ", offsets.size(0) - 1,
                    "] (one column a field), got ", ids.sizes());
}

void check_offsets(const char* op, const at::Tensor& offsets, int64_t rows) {
  const int64_t* first = offsets.const_data_ptr<int64_t>();
  const int64_t fields = offsets.size(0) - 1;
  bool rising = first[0] == 0 && first[fields] == rows;
  for (int64_t f = 0; f < fields; ++f) rising &= first[f] <= first[f + 1];
  TORCH_CHECK(rising, op, ": offsets must rise from 0 to the number of rows, ", rows);
}

bool rows_rise(const int64_t* rows, int64_t count) {
  std::atomic<bool> rise{true};
  at::parallel_for(0, count, 16 * kRowsPerTask, [&](int64_t begin, int64_t end) {
    const int64_t first = std::max<int64_t>(begin, 1) - 1;  // each range looks one row back
    if (!embedding_kernels().rising(rows + first, end - first)) rise = false;
  });
  return rise;
}

void check_weight(const char* op, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(), op, ": weight must be contiguous [R, E], got ",
                    weight.sizes());
}

namespace {

template <typename Id>
void run_lookup(const Ids<Id>& ids, const at::Tensor& weight, at::Tensor& out) {
  const int64_t row_bytes = weight.size(1) * weight.element_size();
  const char* from = data_of<char>(weight);
  char* to = mutable_data_of<char>(out);
  std::atomic<int64_t> bad{-1};
  at::parallel_for(0, ids.batch, batch_grain(ids.fields), [&](int64_t begin, int64_t end) {
    keep_smallest(bad, lookup_kernels<Id>().lookup(ids, from, row_bytes, to, begin, end));
  });
  if (bad >= 0) raise_bad_id("fused_embedding", ids, bad);
}

at::Tensor fused_embedding(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& offsets) {
  check_ids("fused_embedding", ids, offsets);
  check_weight("fused_embedding", weight);
  check_offsets("fused_embedding", offsets, weight.size(0));
  at::Tensor out = pooled_empty({ids.size(0), ids.size(1) * weight.size(1)}, weight.options());
  if (out.numel() == 0) return out;
  const at::Tensor dense_ids = ids.contiguous();
  by_id_type(ids, [&](auto id) { run_lookup(ids_of<decltype(id)>(dense_ids, offsets), weight, out); });
  return out;
}

// The place of each look-up among the distinct rows of its field, to place [F, B]; returns base [F + 1], the first
// place of each field in the result.
template <typename Id>
std::vector<int64_t> rank_lookups(const Ids<Id>& ids, uint32_t* place, int64_t grain) {
  std::vector<int64_t> base(ids.fields + 1, 0);
  std::atomic<int64_t> bad{-1};
  at::parallel_for(0, ids.fields, grain, [&](int64_t begin, int64_t end) {
    int64_t rows = 0;
    for (int64_t f = begin; f < end; ++f) rows = std::max(rows, ids.first_row[f + 1] - ids.first_row[f]);
    keep_smallest(bad, lookup_kernels<Id>().rank(ids, scratch_field(rows), place, base.data() + 1, begin, end));
  });
  if (bad >= 0) raise_bad_id("fused_embedding_backward", ids, bad);
  std::partial_sum(base.begin(), base.end(), base.begin());
  return base;
}

// Threads own whole fields where there are enough of them.
bool merges_in_shares(int64_t fields, int64_t lookups) {
  return at::get_num_threads() > 1 && fields < 4 * at::get_num_threads() && lookups >= 2 * kRowsPerTask;
}

template <typename W, typename Id>
std::tuple<at::Tensor, at::Tensor> run_merge(const Ids<Id>& ids, const at::Tensor& grad, int64_t width) {
  if (merges_in_shares(ids.fields, ids.batch * ids.fields)) {
    return merge_in_shares<Compute<W>>(
        {ids.first_row, ids.fields, ids.batch, ids.batch * ids.fields, width}, grad.options(),
        [&](const RowSet& set, int64_t begin, int64_t end) {
          return lookup_kernels<Id>().mark_shared(ids, set, begin, end);
        },
        [&](int64_t position) { raise_bad_id("fused_embedding_backward", ids, position); },
        [&](const RowSet& set, const int64_t* base, Compute<W>* sums, int64_t part, int64_t parts) {
          merge_kernels<W, Id>().merge_share(ids, set, base, data_of<W>(grad), width, sums, part, parts);
        });
  }
  const int64_t grain = batch_grain(ids.batch);
  const at::Tensor places = pooled_empty({ids.fields, ids.batch}, at::kInt);
  auto* place = static_cast<uint32_t*>(places.mutable_data_ptr());
  const std::vector<int64_t> base = rank_lookups(ids, place, grain);
  at::Tensor rows = pooled_empty({base.back()}, grad.options().dtype(at::kLong));
  at::Tensor values = pooled_empty({base.back(), width}, grad.options().dtype(compute_type(grad.scalar_type())));
  if (base.back() == 0) return {rows, values.to(grad.scalar_type())};  // an empty batch has no memory to write to
  const W* from = data_of<W>(grad);
  auto* rows_to = mutable_data_of<int64_t>(rows);
  auto* values_to = mutable_data_of<Compute<W>>(values);
  at::parallel_for(0, ids.fields, grain, [&](int64_t begin, int64_t end) {
    merge_kernels<W, Id>().merge(ids, place, base.data(), from, width, rows_to, values_to, begin, end);
  });
  return {rows, values.to(grad.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor> fused_embedding_backward(const at::Tensor& grad, const at::Tensor& ids,
                                                            const at::Tensor& offsets, int64_t width) {
  constexpr const char* kOp = "fused_embedding_backward";
  check_ids(kOp, ids, offsets);
  check_offsets(kOp, offsets, offsets.const_data_ptr<int64_t>()[ids.size(1)]);
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == ids.size(0) && grad.size(1) == ids.size(1) * width, kOp,
                    ": grad must be [", ids.size(0), ", ", ids.size(1) * width, "], got ", grad.sizes());
  const int64_t* first = offsets.const_data_ptr<int64_t>();
  for (int64_t f = 0; f < ids.size(1); ++f) {
    TORCH_CHECK_VALUE(first[f + 1] - first[f] <= int64_t{1} << 32, kOp, ": a field may have 2^32 rows, field ", f,
                      " has ", first[f + 1] - first[f]);
  }
  const at::Tensor dense_grad = grad.contiguous(), dense_ids = ids.contiguous();
  return by_table_type(kOp, grad.scalar_type(), [&](auto w) {
    return by_id_type(ids, [&](auto id) {
      return run_merge<decltype(w)>(ids_of<decltype(id)>(dense_ids, offsets), dense_grad, width);
    });
  });
}

bool strictly_rising(const at::Tensor& rows) {
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == at::kLong && rows.is_contiguous(),
              "strictly_rising: rows must be contiguous int64 [U], got ", rows.scalar_type(), " ", rows.sizes());
  return rows_rise(rows.const_data_ptr<int64_t>(), rows.size(0));
}

// Asks for huge pages before a table is first written: its rows are looked up at random, and with 4 KiB pages
// most look-ups would miss the TLB as well as the cache.
void advise_huge_pages_(at::Tensor& table) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const auto first = reinterpret_cast<uintptr_t>(table.data_ptr());
  const uintptr_t begin = (first + kHuge - 1) & ~(kHuge - 1), end = (first + table.nbytes()) & ~(kHuge - 1);
  // Advice only: a kernel without huge pages refuses it, and nothing is lost.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("fused_embedding", fused_embedding);
  m.impl("fused_embedding_backward", fused_embedding_backward);
  m.impl("strictly_rising", strictly_rising);
  m.impl("advise_huge_pages_", advise_huge_pages_);
}

}  // namespace adaftr_fast
