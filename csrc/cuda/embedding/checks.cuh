// What the embedding's ops check on the host, and the arguments that their kernels share.
#pragma once

#include <ATen/ATen.h>

#include "cuda/embedding/lookup.cuh"
#include "cuda/runtime/device.cuh"

namespace adaftr_fast::cuda {

inline at::ScalarType compute_type(at::ScalarType table) { return table == at::kDouble ? at::kDouble : at::kFloat; }

inline void check_weight(const char* op, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous() && weight.is_floating_point(), op,
                    ": weight must be contiguous floating point [R, E], got ", weight.scalar_type(), " ",
                    weight.sizes());
}

inline void check_fields(const char* op, const at::Tensor& field_offsets, const at::Tensor& ids) {
  TORCH_CHECK_VALUE(field_offsets.dim() == 1 && field_offsets.scalar_type() == at::kLong &&
                        field_offsets.is_contiguous() && field_offsets.size(0) > 1,
                    op, ": field_offsets must be contiguous int64 [F + 1] of F >= 1 fields, got ",
                    field_offsets.scalar_type(), " ", field_offsets.sizes(), " with strides ", field_offsets.strides());
  TORCH_CHECK_VALUE(field_offsets.device() == ids.device(), op, ": ids and field_offsets must be on one device, got ",
                    ids.device(), " and ", field_offsets.device());
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kInt || ids.scalar_type() == at::kLong, op,
                   ": ids must be int32 or int64, got ", ids.scalar_type());
  TORCH_CHECK_VALUE(ids.numel() <= INT32_MAX, op, ": expected at most ", INT32_MAX, " ids on a GPU, got ", ids.numel());
}

inline Fields fields_of(const at::Tensor& field_offsets, int64_t num_rows, const Report& report) {
  return {field_offsets.const_data_ptr<int64_t>(), Divider(static_cast<uint32_t>(field_offsets.size(0) - 1)), num_rows,
          report};
}

// Calls run with a value of the table's element type.
template <typename Run>
void by_table_type(const char* op, at::ScalarType type, Run run) {
  switch (type) {
    case at::kFloat:
      return run(float{});
    case at::kDouble:
      return run(double{});
    case at::kBFloat16:
      return run(at::BFloat16{});
    case at::kHalf:
      return run(at::Half{});
    default:
      TORCH_CHECK_TYPE(false, op, ": weight must be float32, float64, bfloat16 or float16, got ", type);
  }
}

template <typename Run>
void by_id_type(const at::Tensor& ids, Run run) {
  if (ids.scalar_type() == at::kInt) return run(int32_t{});
  run(int64_t{});
}

// Elements of W in 16 bytes.
template <typename W>
constexpr int kVector = 16 / static_cast<int>(sizeof(W));

// Calls run with the number of elements that a thread moves at once: 16 bytes of the table where all rows begin at
// such.
template <typename W, typename Run>
void by_pack(int64_t width, std::initializer_list<at::Tensor> tensors, Run run) {
  if (fits_packs<kVector<W>>(width, tensors)) return run(std::integral_constant<int, kVector<W>>{});
  run(std::integral_constant<int, 1>{});
}

// The deferred Adam's state; adaftr_fast/ops/embedding/reference/optim.py describes the tensors.
template <typename W>
AdamState<Compute<W>> adam_state(const char* op, const at::Tensor& weight, at::TensorList state) {
  using T = Compute<W>;
  TORCH_CHECK_VALUE(state.size() == 6, op, ": the state must be 6 tensors, got ", state.size());
  const at::ScalarType type = compute_type(weight.scalar_type());
  const at::ScalarType types[] = {type, at::kInt, type, at::kDouble, type, at::kDouble};
  const int64_t rows = weight.size(0), capacity = state[2].numel() / 8;
  TORCH_CHECK_VALUE(capacity > 0, op, ": the schedule must hold a step, got tensor 2 of the state of ",
                    state[2].numel(), " numbers");
  const int64_t sizes[] = {2 * weight.numel(), rows, 8 * capacity, 8 * capacity, 2 * kPowers, 8};
  for (size_t i = 0; i < 6; ++i) {
    TORCH_CHECK_VALUE(state[i].device() == weight.device() && state[i].is_contiguous() &&
                          state[i].scalar_type() == types[i] && state[i].numel() == sizes[i],
                      op, ": tensor ", i, " of the state must be contiguous ", types[i], " of ", sizes[i],
                      " numbers on ", weight.device(), ", got ", state[i].scalar_type(), " of ", state[i].numel(),
                      " on ", state[i].device());
  }
  return {static_cast<T*>(state[0].data_ptr()),
          state[1].data_ptr<int32_t>(),
          reinterpret_cast<SeriesRow<T>*>(state[2].data_ptr()),
          reinterpret_cast<ScheduleRow*>(state[3].data_ptr()),
          static_cast<const T*>(state[4].const_data_ptr()),
          reinterpret_cast<AdamClock*>(state[5].data_ptr()),
          capacity,
          report_of(weight.device())};
}

}  // namespace adaftr_fast::cuda
