// The ops adaftr_fast::fused_embedding and advise_huge_pages_ on the CPU: checks, memory and launches.
#include <torch/library.h>

#include <atomic>

#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/huge_pages.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {
namespace {

template <typename Id>
void run_lookup(const Ids<Id>& ids, const at::Tensor& weight, at::Tensor& out) {
  const int64_t row_bytes = weight.size(1) * weight.element_size();
  const char* from = data_of<char>(weight);
  char* to = mutable_data_of<char>(out);
  std::atomic<int64_t> bad{-1};
  parallel_for(ids.batch, batch_grain(ids.fields), [&](int64_t begin, int64_t end) {
    keep_smallest(bad, lookup_kernels<Id>().lookup(ids, from, row_bytes, to, begin, end));
  });
  if (bad >= 0) raise_bad_id("fused_embedding", ids, bad);
}

at::Tensor fused_embedding(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets) {
  check_ids("fused_embedding", ids, field_offsets);
  check_weight("fused_embedding", weight);
  check_field_offsets("fused_embedding", field_offsets, weight.size(0));
  at::Tensor out = cached_empty({ids.size(0), ids.size(1) * weight.size(1)}, weight.options());
  if (out.numel() == 0) return out;
  const at::Tensor dense_ids = ids.contiguous();
  by_id_type(ids, [&](auto id) { run_lookup(ids_of<decltype(id)>(dense_ids, field_offsets), weight, out); });
  return out;
}

// For a table, before it is first written: its rows are looked up at random.
void advise_huge_pages_(at::Tensor& table) { advise_huge_pages(table.data_ptr(), table.nbytes()); }

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("fused_embedding", fused_embedding);
  m.impl("advise_huge_pages_", advise_huge_pages_);
}

}  // namespace adaftr_fast
