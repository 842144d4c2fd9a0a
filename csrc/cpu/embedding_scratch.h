// Row sets are expensive to clear and cheap to keep: they are lent out, one for each concurrent backward, and
// come back all zero.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/embedding.h"

namespace adaftr_fast {

struct Scratch {
  RowSet set;
  at::Tensor words;  // of RowSet::Word
  std::vector<uint64_t> summary;
  std::vector<int64_t> word, sumword;
};

// A row set for these fields (first_row is [F + 1]); it goes back when the pointer dies.
std::shared_ptr<Scratch> borrow_scratch(const int64_t* first_row, int64_t fields);

}  // namespace adaftr_fast
