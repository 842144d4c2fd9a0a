// The ops adaftr_fast::fused_embedding and advise_huge_pages_ on the CPU: checks, memory and launches.

#include <atomic>

#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/huge_pages.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {
namespace {

constexpr const char* kOp = "fused_embedding";

template <typename Run>
void run_lookup(const Tensor& ids, const Tensor& field_offsets, Run run) {
  const Tensor dense_ids = as_contiguous(ids);
  by_id_type(ids, [&](auto id) {
    const auto all = ids_of<decltype(id)>(dense_ids, field_offsets);
    std::atomic<int64_t> bad{-1};
    parallel_for(all.batch, batch_grain(all.fields),
                 [&](int64_t begin, int64_t end) { keep_smallest(bad, run(all, begin, end)); });
    if (bad >= 0) raise_bad_id(kOp, all, bad);
  });
}

// Rows as they are in memory, whatever their type.
void look_up_stored(const Tensor& weight, const Tensor& ids, const Tensor& field_offsets, Tensor& out) {
  const int64_t row_bytes = weight.size(1) * weight.element_size();
  const char* from = data_of<char>(weight);
  char* to = mutable_data_of<char>(out);
  run_lookup(ids, field_offsets, [&]<typename Id>(const Ids<Id>& all, int64_t begin, int64_t end) {
    return id_kernels<Id>().lookup(all, from, row_bytes, to, begin, end);
  });
}

// Rows at their current values, where a deferred Adam has steps to apply.
template <typename W>
void look_up_current(const AdamTable<W>& table, const Tensor& ids, const Tensor& field_offsets, Tensor& out) {
  W* to = mutable_data_of<W>(out);
  run_lookup(ids, field_offsets, [&]<typename Id>(const Ids<Id>& all, int64_t begin, int64_t end) {
    return index_kernels<W, Id>().adam_lookup(all, table, to, begin, end);
  });
}

// `sparse` is of the gradient.
Tensor fused_embedding(const Tensor& weight, const Tensor& ids, const Tensor& field_offsets, const Tensors& state,
                       bool /*sparse*/) {
  check_ids(kOp, ids, field_offsets);
  check_weight(kOp, weight);
  check_field_offsets(kOp, field_offsets, weight.size(0));
  Tensor out = cached_empty({ids.size(0), ids.size(1) * weight.size(1)}, weight.scalar_type());
  if (out.numel() == 0) return out;
  if (state.empty()) {
    look_up_stored(weight, ids, field_offsets, out);
  } else {
    by_table_type(kOp, weight.scalar_type(), [&](auto w) {
      by_adam_table<decltype(w)>(kOp, weight, state,
                                 [&](const auto& table) { look_up_current(table, ids, field_offsets, out); });
    });
  }
  return out;
}

// For a table, before it is first written: its rows are looked up at random.
void advise_huge_pages_(Tensor& table) { advise_huge_pages(table.data_ptr(), table.numel() * table.element_size()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("fused_embedding", TORCH_BOX(&fused_embedding));
  m.impl("advise_huge_pages_", TORCH_BOX(&advise_huge_pages_));
}

}  // namespace adaftr_fast
