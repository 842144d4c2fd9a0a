// The loader's copy of columns into rows, each to a place of its own.
#pragma once

#include <cstdint>
#include <vector>

namespace adaftr_fast {

// Writes row i of the columns, which have `count` elements of 4 bytes each, to rows[places[i]], or to rows[i] where
// places is null. Rows are as wide as there are columns.
void place_rows(const std::vector<const int32_t*>& columns, int64_t count, const int64_t* places, int32_t* rows);

}  // namespace adaftr_fast
