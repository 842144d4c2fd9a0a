#include "cpu/embedding/checks.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/embedding/kernels.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {

void check_fields(const char* op, const Tensor& field_offsets) {
  ADAFTR_CHECK_VALUE(field_offsets.dim() == 1 && field_offsets.scalar_type() == kLong &&
                         field_offsets.is_contiguous() && field_offsets.size(0) >= 2,
                     op, ": field_offsets must be contiguous int64 [F + 1] of F >= 1 fields, got ",
                     field_offsets.scalar_type(), " ", shape(field_offsets), " with strides ",
                     Shown{field_offsets.strides()});
}

void check_ids(const char* op, const Tensor& ids, const Tensor& field_offsets) {
  ADAFTR_CHECK_TYPE(ids.scalar_type() == kInt || ids.scalar_type() == kLong, op, ": ids must be int32 or int64, got ",
                    ids.scalar_type());
  check_fields(op, field_offsets);
  ADAFTR_CHECK_VALUE(ids.dim() == 2 && ids.size(1) == field_offsets.size(0) - 1, op, ": ids must be [B, ",
                     field_offsets.size(0) - 1, "] (one column per field), got ", shape(ids));
}

void check_field_offsets(const char* op, const Tensor& field_offsets, int64_t rows) {
  const int64_t* first = data_of<int64_t>(field_offsets);
  const int64_t fields = field_offsets.size(0) - 1;
  bool rising = first[0] == 0 && first[fields] == rows;
  for (int64_t f = 0; f < fields; ++f) rising &= first[f] <= first[f + 1];
  ADAFTR_CHECK(rising, op, ": field_offsets must rise from 0 to the number of rows, ", rows);
}

bool rows_rise(const int64_t* rows, int64_t count) {
  std::atomic<bool> rise{true};
  parallel_for(count, 16 * kRowsPerTask, [&](int64_t begin, int64_t end) {
    const int64_t first = std::max<int64_t>(begin, 1) - 1;  // each range looks one row back
    if (!embedding_kernels().rising(rows + first, end - first)) rise = false;
  });
  return rise;
}

void check_clock(const char* op, const AdamClock& clock, int64_t steps) {
  const auto is_count = [](double x, int64_t end) {
    return x >= 0 && x < static_cast<double>(end) && x == std::floor(x);
  };
  ADAFTR_CHECK(
      is_count(clock.step, INT32_MAX) && is_count(clock.base, INT32_MAX) && is_count(clock.step - clock.base, steps),
      op, ": the clock must be within the ", steps, " steps of the schedule, got step ", clock.step,
      " of a schedule from step ", clock.base, " on");
  ADAFTR_CHECK(is_count(clock.horizon, kPowers), op, ": the horizon must be a whole number from 0 to ", kPowers - 1,
               ", got ", clock.horizon);
}

void check_weight(const char* op, const Tensor& weight) {
  ADAFTR_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(), op, ": weight must be contiguous [R, E], got ",
                     shape(weight));
}

void check_gradient(const char* op, const Tensor& grad, int64_t batch, int64_t fields, int64_t width) {
  // Divided, since the product of any width may overflow.
  ADAFTR_CHECK_VALUE(
      grad.dim() == 2 && grad.size(0) == batch && grad.size(1) % fields == 0 && grad.size(1) / fields == width, op,
      ": grad must be [", batch, ", ", fields, " * ", width, "], got ", shape(grad));
}

}  // namespace adaftr_fast
