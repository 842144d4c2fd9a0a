// What the embedding's op.cpp files share: argument checks and dispatch by dtype.
#pragma once

#include <algorithm>
#include <atomic>

#include "cpu/embedding/lookup/lookup.h"
#include "cpu/embedding/optim/adam.h"
#include "cpu/runtime/tensor.h"

namespace adaftr_fast {

// Below this many rows a task is not worth another thread.
constexpr int64_t kRowsPerTask = 2048;

// Calls run(W{}) with the storage type of a table.
template <typename Run>
decltype(auto) by_table_type(const char* op, ScalarType type, Run run) {
  switch (type) {
    case kFloat:
      return run(float{});
    case kDouble:
      return run(double{});
    case kBFloat16:
      return run(BFloat16{});
    default:
      ADAFTR_CHECK_TYPE(type == kHalf, op, ": weight must be float32, float64, bfloat16 or float16, got ", type);
      return run(Float16{});
  }
}

// Calls run(Id{}) with the type of ids.
template <typename Run>
decltype(auto) by_id_type(const Tensor& ids, Run run) {
  return ids.scalar_type() == kInt ? run(int32_t{}) : run(int64_t{});
}

// The type that arithmetic and optimizer state of a table stored as `type` have.
inline ScalarType compute_type(ScalarType type) { return type == kDouble ? kDouble : kFloat; }

// The shape of field_offsets, before anything reads them.
void check_fields(const char* op, const Tensor& field_offsets);

void check_ids(const char* op, const Tensor& ids, const Tensor& field_offsets);

// The values of field_offsets: a wrong one would let the kernels read outside the table.
void check_field_offsets(const char* op, const Tensor& field_offsets, int64_t rows);

void check_weight(const char* op, const Tensor& weight);

// The shape [B, F * E] of the gradient of look-ups.
void check_gradient(const char* op, const Tensor& grad, int64_t batch, int64_t fields, int64_t width);

// Whether rows [count] rise strictly.
bool rows_rise(const int64_t* rows, int64_t count);

template <typename Id>
Ids<Id> ids_of(const Tensor& ids, const Tensor& field_offsets) {
  return {data_of<Id>(ids), data_of<int64_t>(field_offsets), ids.size(0), ids.size(1)};
}

template <typename Id>
void raise_bad_id(const char* op, const Ids<Id>& ids, int64_t position) {
  const int64_t f = position % ids.fields;
  ADAFTR_CHECK_INDEX(false, op, ": ids[", position / ids.fields, ", ", f, "] = ", ids.data[position],
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

// What the kernels index by: the steps that the schedule holds, those of the clock, and the horizon.
void check_clock(const char* op, const AdamClock& clock, int64_t steps);

// Calls run(table) with the tensors of a deferred Adam, checked against its weight. The steps that rows are current to
// are checked where `run` reads them.
template <typename W, typename Run>
void by_adam_table(const char* op, const Tensor& weight, const Tensors& state, Run run) {
  const ScalarType type = compute_type(weight.scalar_type());
  const int64_t rows = weight.size(0);
  ADAFTR_CHECK(state.size() == 6, op, ": state must be moments, current, series, schedule, powers, clock");
  const ScalarType types[] = {type, kInt, type, kDouble, type, kDouble};
  const int64_t steps = state[2].numel() / 8;
  const int64_t sizes[] = {2 * weight.numel(), rows, 8 * steps, 8 * steps, 2 * kPowers, 8};
  for (size_t i = 0; i < 6; ++i) {
    ADAFTR_CHECK(state[i].is_contiguous() && state[i].scalar_type() == types[i] && state[i].numel() == sizes[i], op,
                 ": state tensor ", i, " must be contiguous ", types[i], " of ", sizes[i], " numbers, got ",
                 state[i].scalar_type(), " ", shape(state[i]));
  }
  const auto* clock = reinterpret_cast<const AdamClock*>(data_of<double>(state[5]));
  check_clock(op, *clock, steps);
  bool strays = false;
  run(AdamTable<W>{mutable_data_of<W>(weight), mutable_data_of<Compute<W>>(state[0]),
                   mutable_data_of<int32_t>(state[1]),
                   reinterpret_cast<SeriesRow<Compute<W>>*>(state[2].mutable_data_ptr()),
                   reinterpret_cast<ScheduleRow*>(state[3].mutable_data_ptr()), data_of<Compute<W>>(state[4]), clock,
                   weight.size(1), &strays});
  ADAFTR_CHECK(!strays, op, ": state tensor 1 must hold steps from ", clock->base,
               " on, where the schedule begins, got a smaller one");
}

}  // namespace adaftr_fast
