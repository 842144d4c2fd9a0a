// The look-ups of one id per field on CUDA tensors.
#include <torch/library.h>

#include "cuda/embedding/checks.cuh"

namespace adaftr_fast::cuda {
namespace {

constexpr const char* kOp = "fused_embedding";

void check_lookup(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets) {
  check_weight(kOp, weight);
  check_fields(kOp, field_offsets, ids);
  TORCH_CHECK_VALUE(ids.dim() == 2 && ids.size(1) == field_offsets.size(0) - 1, kOp, ": ids must be [B, ",
                    field_offsets.size(0) - 1, "] (one column per field), got ", ids.sizes());
  TORCH_CHECK_VALUE(weight.device() == ids.device(), kOp, ": weight and ids must be on one device, got ",
                    weight.device(), " and ", ids.device());
  raise_reported(weight.device());
}

// The widest unit of memory, up to 16 bytes, of which a row is a multiple.
template <typename Run>
void by_unit(int64_t row_bytes, std::initializer_list<at::Tensor> tensors, Run run) {
  uintptr_t ends = static_cast<uintptr_t>(row_bytes);
  for (const at::Tensor& tensor : tensors) ends |= reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (ends % 16 == 0) return run(Pack<uint32_t, 4>{});
  if (ends % 8 == 0) return run(Pack<uint32_t, 2>{});
  if (ends % 4 == 0) return run(uint32_t{});
  run(uint16_t{});
}

// Rows as they are in memory, whatever their type.
void look_up_stored(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets, at::Tensor& out) {
  const int64_t row_bytes = weight.size(1) * weight.element_size();
  by_unit(row_bytes, {weight, out}, [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t width = row_bytes / static_cast<int64_t>(sizeof(Unit));
    const Lanes lanes = lanes_for(width);
    by_id_type(ids, [&](auto id) {
      using Id = decltype(id);
      const Fields fields = fields_of(field_offsets, weight.size(0), report_of(weight.device()));
      launch(Lookup<Unit, Id>{static_cast<const Unit*>(weight.const_data_ptr()), ids.const_data_ptr<Id>(), fields,
                              static_cast<Unit*>(out.mutable_data_ptr()), width, lanes},
             ids.numel() << lanes.shift);
    });
  });
}

// Rows at their current values, where a deferred Adam has steps to apply.
void look_up_current(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
                     at::TensorList state, at::Tensor& out) {
  by_table_type(kOp, weight.scalar_type(), [&](auto element) {
    using W = decltype(element);
    const AdamState<Compute<W>> adam = adam_state<W>(kOp, weight, state);
    by_pack<W>(weight.size(1), {weight, out, state[0]}, [&](auto pack) {
      const Lanes lanes = lanes_for(weight.size(1) / pack());
      by_id_type(ids, [&](auto id) {
        using Id = decltype(id);
        const PresentRows<W, pack(), true> rows{weight.const_data_ptr<W>(), adam, weight.size(1)};
        const Fields fields = fields_of(field_offsets, weight.size(0), report_of(weight.device()));
        launch(DeferredLookup<W, Id, pack()>{rows, ids.const_data_ptr<Id>(), fields, out.mutable_data_ptr<W>(), lanes},
               ids.numel() << lanes.shift);
      });
    });
  });
}

// `sparse` is of the gradient.
at::Tensor fused_embedding(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
                           at::TensorList state, bool /*sparse*/) {
  check_lookup(weight, ids, field_offsets);
  const DeviceGuard guard(weight.device());
  at::Tensor out = at::empty({ids.size(0), ids.size(1) * weight.size(1)}, weight.options());
  if (state.empty()) {
    look_up_stored(weight, ids.contiguous(), field_offsets, out);
  } else {
    look_up_current(weight, ids.contiguous(), field_offsets, state, out);
  }
  return out;
}

at::Tensor embedding_rows(const at::Tensor& ids, const at::Tensor& field_offsets) {
  check_fields("embedding_rows", field_offsets, ids);
  const DeviceGuard guard(ids.device());
  at::Tensor rows = at::empty({ids.numel()}, field_offsets.options());
  const at::Tensor dense = ids.contiguous();
  by_id_type(ids, [&](auto id) {
    using Id = decltype(id);
    const Fields fields = fields_of(field_offsets, INT64_MAX, {});
    launch(Rows<Id>{dense.const_data_ptr<Id>(), fields, rows.mutable_data_ptr<int64_t>()}, ids.numel());
  });
  return rows;
}

ADAFTR_FAST_DEVICE_OPS(m) {
  m.impl("embedding_rows", embedding_rows);
  m.impl("fused_embedding", fused_embedding);
}

}  // namespace
}  // namespace adaftr_fast::cuda
