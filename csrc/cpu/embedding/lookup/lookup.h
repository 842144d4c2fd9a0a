// The multi-field embedding on the CPU: look-up, and the merge of duplicate ids into a coalesced gradient.
//
// B batch, F fields, E width, R rows of all fields together, U distinct rows of one batch.
// Kernels see pointers and sizes only; every one works on a range of batch rows or of fields, so that the
// caller decides who runs what and no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "cpu/embedding/types.h"

namespace adaftr_fast {

// The index of one batch: ids of field f lie in [0, first_row[f + 1] - first_row[f]).
template <typename Id>
struct Ids {
  const Id* data;            // [B, F]
  const int64_t* first_row;  // [F + 1]
  int64_t batch;
  int64_t fields;
};

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

// The same of all fields.
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
  void (*emit)(const RowSet&, int64_t f, int64_t first_row, int64_t* rows, char* sums, int64_t row_bytes, int64_t begin,
               int64_t end);
  void (*clear)(const RowSet&, int64_t fields);
};

template <typename Id>
struct LookupKernels {
  // Copies the rows of batch rows [begin, end) into out [B, F * row_bytes]. Returns the flat position of the
  // first id out of range, or -1; the copied values are then of no use.
  int64_t (*lookup)(const Ids<Id>&, const char* weight, int64_t row_bytes, char* out, int64_t begin, int64_t end);
  // For fields [begin, end): the number of distinct rows to unique [F], and of each look-up how many of them stand
  // before its own to place [F, B]. The scratch has room for any one of the fields, so that it stays in cache.
  // Returns the flat position of an id out of range, or -1.
  int64_t (*rank)(const Ids<Id>&, const FieldSet& scratch, uint32_t* place, int64_t* unique, int64_t begin,
                  int64_t end);
  // Sets the bits of batch rows [begin, end), beside other threads. Returns the first position out of range, or -1.
  int64_t (*mark_shared)(const Ids<Id>&, const RowSet&, int64_t begin, int64_t end);
};

template <typename W, typename Id>
struct MergeKernels {
  // For fields [begin, end): writes the distinct rows in order to rows [U] and the sum of their gradients to
  // values [U, E], both from base[f] on. grad is [B, F * E].
  void (*merge)(const Ids<Id>&, const uint32_t* place, const int64_t* base, const W* grad, int64_t width, int64_t* rows,
                Compute<W>* values, int64_t begin, int64_t end);
  // Adds the gradients of the rows of one of `parts` shares to sums [U, E].
  void (*merge_share)(const Ids<Id>&, const RowSet&, const int64_t* base, const W* grad, int64_t width,
                      Compute<W>* sums, int64_t part, int64_t parts);
};

}  // namespace adaftr_fast
