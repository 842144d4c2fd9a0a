// What the embedding's op.cpp files share: argument checks and dispatch by dtype.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>

#include "cpu/embedding/lookup/lookup.h"
#include "cpu/embedding/optim/adam.h"

namespace adaftr_fast {

// Below this many rows a task is not worth another thread.
constexpr int64_t kRowsPerTask = 2048;

// Calls run(W{}) with the storage type of a table.
template <typename Run>
decltype(auto) by_table_type(const char* op, at::ScalarType type, Run run) {
  switch (type) {
    case at::kFloat:
      return run(float{});
    case at::kDouble:
      return run(double{});
    case at::kBFloat16:
      return run(BFloat16{});
    default:
      TORCH_CHECK_TYPE(type == at::kHalf, op, ": weight must be float32, float64, bfloat16 or float16, got ", type);
      return run(Float16{});
  }
}

// Calls run(Id{}) with the type of ids.
template <typename Run>
decltype(auto) by_id_type(const at::Tensor& ids, Run run) {
  return ids.scalar_type() == at::kInt ? run(int32_t{}) : run(int64_t{});
}

// The type that arithmetic and optimizer state of a table stored as `type` have.
inline at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

template <typename T>
const T* data_of(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The shape of field_offsets, before anything reads them.
void check_fields(const char* op, const at::Tensor& field_offsets);

void check_ids(const char* op, const at::Tensor& ids, const at::Tensor& field_offsets);

// The values of field_offsets: a wrong one would let the kernels read outside the table.
void check_field_offsets(const char* op, const at::Tensor& field_offsets, int64_t rows);

void check_weight(const char* op, const at::Tensor& weight);

// Whether rows [count] rise strictly.
bool rows_rise(const int64_t* rows, int64_t count);

template <typename Id>
Ids<Id> ids_of(const at::Tensor& ids, const at::Tensor& field_offsets) {
  return {data_of<Id>(ids), data_of<int64_t>(field_offsets), ids.size(0), ids.size(1)};
}

template <typename Id>
void raise_bad_id(const char* op, const Ids<Id>& ids, int64_t position) {
  const int64_t f = position % ids.fields;
  TORCH_CHECK_INDEX(false, op, ": ids[", position / ids.fields, ", ", f, "] = ", ids.data[position],
                    " is out of range for field ", f, ", whose ids are 0 to ",
                    ids.field_offsets[f + 1] - ids.field_offsets[f] - 1);
}

// Keeps the smallest of the positions that the threads report, so that the message is the same in every run.
inline void keep_smallest(std::atomic<int64_t>& bad, int64_t position) {
  int64_t seen = bad.load();
  while (position >= 0 && (seen < 0 || position < seen) && !bad.compare_exchange_weak(seen, position)) {
  }
}

// Batch rows a task should have at least.
inline int64_t batch_grain(int64_t fields) { return std::max<int64_t>(1, kRowsPerTask / std::max<int64_t>(1, fields)); }

// The tensors of a deferred Adam, checked against its table.
template <typename W>
AdamTable<W> adam_table(const char* op, const at::Tensor& weight, at::TensorList state) {
  const at::ScalarType type = compute_type(weight.scalar_type());
  const int64_t rows = weight.size(0);
  TORCH_CHECK(state.size() == 6, op, ": state must be moments, current, series, schedule, powers, clock");
  const at::ScalarType types[] = {type, at::kInt, type, at::kDouble, type, at::kDouble};
  const int64_t steps = state[2].numel() / 8;
  const int64_t sizes[] = {2 * weight.numel(), rows, 8 * steps, 8 * steps, 2 * kPowers, 8};
  for (size_t i = 0; i < 6; ++i) {
    TORCH_CHECK(state[i].is_contiguous() && state[i].scalar_type() == types[i] && state[i].numel() == sizes[i], op,
                ": state tensor ", i, " must be contiguous ", types[i], " of ", sizes[i], " numbers, got ",
                state[i].scalar_type(), " ", state[i].sizes());
  }
  const auto* clock = reinterpret_cast<const AdamClock*>(data_of<double>(state[5]));
  TORCH_CHECK(clock->step - clock->base < static_cast<double>(steps), op, ": the schedule holds ", steps,
              " steps, but step ", clock->step, " is reached");
  return {mutable_data_of<W>(weight),
          mutable_data_of<Compute<W>>(state[0]),
          mutable_data_of<int32_t>(state[1]),
          reinterpret_cast<SeriesRow<Compute<W>>*>(state[2].mutable_data_ptr()),
          reinterpret_cast<ScheduleRow*>(state[3].mutable_data_ptr()),
          data_of<Compute<W>>(state[4]),
          clock,
          weight.size(1)};
}

}  // namespace adaftr_fast
