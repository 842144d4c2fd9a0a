// The distinct rows of a batch, as bit sets.
//
// F fields, R rows of all fields together, U distinct rows of one batch.
#pragma once

#include <cstdint>

namespace adaftr_fast {

// Which rows of a field occur, as one bit a row. Two levels, so that finding the set bits in order costs
// O(U + R / 4096): rows come out sorted without a sort. All zero between uses.
struct FieldSet {
  // Bits and rank side by side: in large tables either alone would cost a cache miss.
  struct Word {
    uint64_t bits;  // one bit a row
    int64_t rank;   // how many rows of the field stand before this word
  };
  Word* words;
  uint64_t* summary;  // one bit for each of `words` whose bits are not zero
  int64_t sumwords;   // words of `summary`
};

// The same for all fields.
struct RowSet {
  FieldSet::Word* words;
  uint64_t* summary;
  const int64_t* word;     // [F + 1] the field's first word
  const int64_t* sumword;  // [F + 1] the field's first word in `summary`
};

struct RowSetKernels {
  // Fills the ranks of field f and returns the number of its distinct rows.
  int64_t (*rank)(const RowSet&, int64_t f);
  // For summary words [begin, end) of field f: writes the marked rows to rows, and zeros of row_bytes each to sums;
  // both point to where the field's begin.
  void (*emit)(const RowSet&, int64_t f, int64_t field_offset, int64_t* rows, char* sums, int64_t row_bytes,
               int64_t begin, int64_t end);
  void (*clear)(const RowSet&, int64_t fields);
};

}  // namespace adaftr_fast
