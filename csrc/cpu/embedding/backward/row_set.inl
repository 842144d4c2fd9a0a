// The kernels of row sets (row_set.h). Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/embedding/lookup/lookup.inl"

inline FieldSet field_set(const RowSet& set, int64_t f) {
  return {set.words + set.word[f], set.summary + set.sumword[f], set.sumword[f + 1] - set.sumword[f]};
}

// Calls visit(word index) for every word whose bits are not all zero, in order.
template <typename Visit>
inline void for_each_word(const FieldSet& set, Visit visit) {
  int64_t found[kChunk + 64], count = 0;
  for (int64_t s = 0; s < set.sumwords; ++s) {
    uint64_t left = set.summary[s];
    const int64_t here = std::popcount(left);
    // Four at a time, whether there are as many or not: the branch predictor cannot foresee how many there are.
    for (int64_t k = 0; k < here; k += 4) {
      for (int64_t i = k; i < k + 4; ++i, left &= left - 1) found[count + i] = s * 64 + std::countr_zero(left);
    }
    count += here;
    if (count < kChunk && s + 1 < set.sumwords) continue;
    for (int64_t k = 0; k < count; ++k) visit(found[k]);
    count = 0;
  }
}

inline void clear(const FieldSet& set) {
  for_each_word(set, [&](int64_t w) { set.words[w].bits = 0; });
  for (int64_t s = 0; s < set.sumwords; ++s) set.summary[s] = 0;
}

inline void set_bit(const FieldSet& set, uint64_t id) {
  set.words[id >> 6].bits |= uint64_t{1} << (id & 63);
  set.summary[id >> 12] |= uint64_t{1} << ((id >> 6) & 63);
}

// Fills the ranks of a field and returns the number of its distinct rows.
inline int64_t rank_words(const FieldSet& set) {
  int64_t count = 0;
  for_each_word(set, [&](int64_t w) {
    set.words[w].rank = count;
    count += std::popcount(set.words[w].bits);
  });
  return count;
}

// How many distinct rows of the field stand before the marked id.
inline int64_t rank_of(const FieldSet& set, uint64_t id) {
  const FieldSet::Word& word = set.words[id >> 6];
  return word.rank + std::popcount(word.bits & ((uint64_t{1} << (id & 63)) - 1));
}

// As set_bit, while other threads set bits too.
inline void set_shared(uint64_t& word, uint64_t bit) {
  if (!(__atomic_load_n(&word, __ATOMIC_RELAXED) & bit)) __atomic_fetch_or(&word, bit, __ATOMIC_RELAXED);
}

inline void set_bit_shared(const FieldSet& set, uint64_t id) {
  set_shared(set.words[id >> 6].bits, uint64_t{1} << (id & 63));
  set_shared(set.summary[id >> 12], uint64_t{1} << ((id >> 6) & 63));
}

inline int64_t rank_field(const RowSet& set, int64_t f) { return rank_words(field_set(set, f)); }

inline void clear_fields(const RowSet& set, int64_t fields) {
  for (int64_t f = 0; f < fields; ++f) clear(field_set(set, f));
}

// Writes the marked rows of one field that stand in its summary words [begin, end), and zeros for their sums.
inline void emit_range(const RowSet& set, int64_t f, int64_t field_offset, int64_t* rows, char* sums, int64_t row_bytes,
                       int64_t begin, int64_t end) {
  const FieldSet field = field_set(set, f);
  const FieldSet part{field.words + begin * 64, field.summary + begin, end - begin};
  for_each_word(part, [&](int64_t w) {
    const FieldSet::Word& word = part.words[w];
    int64_t at = word.rank;
    __builtin_memset(sums + at * row_bytes, 0, std::popcount(word.bits) * row_bytes);
    for (uint64_t left = word.bits; left; left &= left - 1) {
      rows[at++] = field_offset + (begin * 64 + w) * 64 + std::countr_zero(left);
    }
  });
}

constexpr RowSetKernels kRowSets = {rank_field, emit_range, clear_fields};
