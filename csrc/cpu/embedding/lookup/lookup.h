// The ids of a look-up of one id of each field.
//
// B batch, F fields.
#pragma once

#include <cstdint>

#include "cpu/embedding/types.h"

namespace adaftr_fast {

// The index of one batch: ids of field f lie in [0, field_offsets[f + 1] - field_offsets[f]).
template <typename Id>
struct Ids {
  const Id* data;                // [B, F]
  const int64_t* field_offsets;  // [F + 1]
  int64_t batch;
  int64_t fields;
};

}  // namespace adaftr_fast
