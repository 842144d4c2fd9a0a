// The kernels that merge the gradients of duplicate ids. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/embedding/backward/row_set.inl"
#include "cpu/embedding/groups.inl"

// Fields taken together when the batch is walked field by field: 8 int64 ids share a cache line.
constexpr int64_t kFieldBlock = 8;

// Words of large fields are fetched this many ids before they are marked.
constexpr int64_t kMarkAhead = 24;

// Walking a block of fields down the batch takes one or two cache lines of each row, a stride that the hardware
// does not prefetch.
constexpr int64_t kRowsAhead = 8;

template <typename Id>
inline void prefetch_ids(const Ids<Id>& ids, int64_t b, int64_t begin, int64_t end) {
  if (b + kRowsAhead >= ids.batch) return;
  const Id* next = ids.data + (b + kRowsAhead) * ids.fields;
  __builtin_prefetch(next + begin);
  __builtin_prefetch(next + end - 1);
}

// Writes the ids of fields [begin, end) field after field to copy [F, B]. Returns the position of an id out of range,
// or -1.
template <typename Id>
int64_t transpose_ids(const Ids<Id>& ids, uint32_t* copy, int64_t begin, int64_t end) {
  for (int64_t b = 0; b < ids.batch; ++b) {
    prefetch_ids(ids, b, begin, end);
    for (int64_t f = begin, i = b * ids.fields + begin; f < end; ++f, ++i) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[i]));
      if (__builtin_expect(id >= static_cast<uint64_t>(ids.field_offsets[f + 1] - ids.field_offsets[f]), 0)) return i;
      copy[f * ids.batch + b] = static_cast<uint32_t>(id);
    }
  }
  return -1;
}

template <typename Id>
int64_t rank(const Ids<Id>& ids, const FieldSet& scratch, uint32_t* place, int64_t* unique, int64_t begin,
             int64_t end) {
  for (int64_t from = begin; from < end; from += kFieldBlock) {
    const int64_t to = from + kFieldBlock < end ? from + kFieldBlock : end;
    const int64_t bad = transpose_ids(ids, place, from, to);
    if (bad >= 0) return bad;
    for (int64_t f = from; f < to; ++f) {
      const int64_t rows = ids.field_offsets[f + 1] - ids.field_offsets[f];
      const FieldSet set{scratch.words, scratch.summary, (rows + 4095) / 4096};
      uint32_t* at = place + f * ids.batch;
      for (int64_t b = 0; b < ids.batch; ++b) {
        __builtin_prefetch(set.words + (at[b + kMarkAhead < ids.batch ? b + kMarkAhead : b] >> 6), 1);
        set_bit(set, at[b]);
      }
      unique[f] = rank_words(set);
      for (int64_t b = 0; b < ids.batch; ++b) at[b] = static_cast<uint32_t>(rank_of(set, at[b]));
      clear(set);
    }
  }
  return -1;
}

template <typename W, typename Id, int64_t kWidth, bool kSquares>
void merge_block(const Ids<Id>& ids, const uint32_t* place, const int64_t* base, const LookupGradient<W>& of,
                 int64_t width, int64_t* rows, Compute<W>* values, int64_t begin, int64_t end) {
  const int64_t step = kWidth ? kWidth : width, stride = ids.fields * step;
  for (int64_t b = 0; b < ids.batch; ++b) {
    prefetch_ids(ids, b, begin, end);
    int64_t from = b * stride + begin * step;
    const int64_t next = b + kRowsAhead < ids.batch ? from + kRowsAhead * stride : from;
    prefetch(of.grad + next, (end - begin) * step * sizeof(W));
    if constexpr (kSquares) prefetch(of.looked_up + next, (end - begin) * step * sizeof(W));
    for (int64_t f = begin; f < end; ++f, from += step) {
      const int64_t at = base[f] + place[f * ids.batch + b];
      rows[at] = ids.field_offsets[f] + static_cast<int64_t>(ids.data[b * ids.fields + f]);
      Compute<W>* sum = values + at * step;
      for_each_group<kWidth>(step, [&](int64_t e, auto n) {
        auto x = load_group(of.grad + from + e, n);
        if constexpr (kSquares) x += of.factor * load_group(of.looked_up + from + e, n);
        store_group(sum + e, load_group(sum + e, n) + x, n);
      });
    }
  }
}

template <typename W, typename Id>
void merge(const Ids<Id>& ids, const uint32_t* place, const int64_t* base, const LookupGradient<W>& of, int64_t width,
           int64_t* rows, Compute<W>* values, int64_t begin, int64_t end) {
  const auto block = width == 8 ? (of.looked_up ? merge_block<W, Id, 8, true> : merge_block<W, Id, 8, false>)
                                : (of.looked_up ? merge_block<W, Id, 0, true> : merge_block<W, Id, 0, false>);
  for (int64_t from = begin; from < end; from += kFieldBlock) {
    const int64_t to = from + kFieldBlock < end ? from + kFieldBlock : end;
    __builtin_memset(values + base[from] * width, 0, (base[to] - base[from]) * width * sizeof(*values));
    block(ids, place, base, of, width, rows, values, from, to);
  }
}

inline bool rising(const int64_t* rows, int64_t count) {
  int64_t falls = 0;
  for (int64_t u = 1; u < count; ++u) falls |= -static_cast<int64_t>(rows[u - 1] >= rows[u]);
  return falls == 0;
}
