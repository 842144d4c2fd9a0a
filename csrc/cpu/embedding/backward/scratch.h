// A row set is expensive to clear and cheap to keep, so each thread keeps one, all zero between uses.
#pragma once

#include <cstdint>

#include "cpu/embedding/backward/row_set.h"

namespace adaftr_fast {

// This thread's row set, with room for these fields (field_offsets is [F + 1]); valid until the thread asks again.
RowSet scratch_rows(const int64_t* field_offsets, int64_t fields);

// The same memory, with room for one field of so many rows.
FieldSet scratch_field(int64_t rows);

}  // namespace adaftr_fast
