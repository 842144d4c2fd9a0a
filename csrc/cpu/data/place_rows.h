// The loader's copy of columns into rows, each to a place of its own.
#pragma once

#include <cstdint>

namespace adaftr_fast {

// Writes row i of the columns, [count] elements of 4 bytes each, to rows[places[i]], or to rows[i] where places is
// null. Rows are as wide as there are columns.
void place_rows(const void* const* columns, int64_t width, int64_t count, const int64_t* places, void* rows);

}  // namespace adaftr_fast
