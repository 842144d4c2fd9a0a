// Bodies of the embedding kernels, compiled once for each instruction set: plain C++ that the compiler
// vectorises for the target of the including file. Everything here has internal linkage.

namespace adaftr_fast {
namespace {

// Rows are fetched this many look-ups before they are needed: DRAM latency over the time of one copy.
constexpr int64_t kAhead = 24;
// Fields taken together when the batch is walked field by field: 8 int64 ids share a cache line.
constexpr int64_t kFieldBlock = 8;

template <int64_t kBytes>
inline void copy_row(char* __restrict to, const char* __restrict from, int64_t bytes) {
  __builtin_memcpy(to, from, kBytes ? kBytes : bytes);
}

template <typename Id, int64_t kBytes>
int64_t lookup_rows(const Ids<Id>& ids, const char* weight, int64_t row_bytes, char* out, int64_t begin, int64_t end) {
  const int64_t bytes = kBytes ? kBytes : row_bytes, fields = ids.fields, last = ids.batch * fields - 1;
  const int64_t* first_row = ids.first_row;
  for (int64_t b = begin; b < end; ++b) {
    int64_t ahead_field = kAhead % fields;
    for (int64_t f = 0, i = b * fields; f < fields; ++f, ++i) {
      const int64_t ahead = i + kAhead < last ? i + kAhead : last;
      // An id out of range only prefetches a foolish address, which is harmless.
      __builtin_prefetch(weight + (first_row[ahead_field] + static_cast<int64_t>(ids.data[ahead])) * bytes);
      if (++ahead_field == fields) ahead_field = 0;
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[i]));
      if (__builtin_expect(id >= static_cast<uint64_t>(first_row[f + 1] - first_row[f]), 0)) return i;
      copy_row<kBytes>(out + i * bytes, weight + (first_row[f] + static_cast<int64_t>(id)) * bytes, bytes);
    }
  }
  return -1;
}

template <typename Id>
int64_t lookup(const Ids<Id>& ids, const char* weight, int64_t row_bytes, char* out, int64_t begin, int64_t end) {
  switch (row_bytes) {
    case 16:
      return lookup_rows<Id, 16>(ids, weight, row_bytes, out, begin, end);
    case 32:
      return lookup_rows<Id, 32>(ids, weight, row_bytes, out, begin, end);
    case 64:
      return lookup_rows<Id, 64>(ids, weight, row_bytes, out, begin, end);
    case 128:
      return lookup_rows<Id, 128>(ids, weight, row_bytes, out, begin, end);
    default:
      return lookup_rows<Id, 0>(ids, weight, row_bytes, out, begin, end);
  }
}

// Calls visit(word index) for every word of field f's bits that is not zero, in order.
template <typename Visit>
inline void for_each_word(const RowSet& set, int64_t f, Visit visit) {
  for (int64_t s = set.sumword[f]; s < set.sumword[f + 1]; ++s) {
    for (uint64_t left = set.summary[s]; left; left &= left - 1) {
      visit(set.word[f] + (s - set.sumword[f]) * 64 + __builtin_ctzll(left));
    }
  }
}

inline void clear(const RowSet& set, int64_t f) {
  for_each_word(set, f, [&](int64_t w) { set.bits[w] = 0; });
  for (int64_t s = set.sumword[f]; s < set.sumword[f + 1]; ++s) set.summary[s] = 0;
}

template <typename Id>
int64_t mark_bits(const Ids<Id>& ids, const RowSet& set, int64_t begin, int64_t end) {
  for (int64_t b = 0; b < ids.batch; ++b) {
    for (int64_t f = begin, i = b * ids.fields + begin; f < end; ++f, ++i) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[i]));
      if (__builtin_expect(id >= static_cast<uint64_t>(ids.first_row[f + 1] - ids.first_row[f]), 0)) return i;
      set.bits[set.word[f] + (id >> 6)] |= uint64_t{1} << (id & 63);
      set.summary[set.sumword[f] + (id >> 12)] |= uint64_t{1} << ((id >> 6) & 63);
    }
  }
  return -1;
}

template <typename Id>
int64_t mark(const Ids<Id>& ids, const RowSet& set, int64_t* unique, int64_t begin, int64_t end) {
  for (int64_t from = begin; from < end; from += kFieldBlock) {
    const int64_t to = from + kFieldBlock < end ? from + kFieldBlock : end;
    const int64_t bad = mark_bits(ids, set, from, to);
    if (bad >= 0) {
      for (int64_t f = begin; f < to; ++f) clear(set, f);
      return bad;
    }
    for (int64_t f = from; f < to; ++f) {
      int32_t count = 0;
      for_each_word(set, f, [&](int64_t w) {
        set.rank[w] = count;
        count += __builtin_popcountll(set.bits[w]);
      });
      unique[f] = count;
    }
  }
  return -1;
}

inline void emit_rows(const RowSet& set, int64_t f, int64_t first_row, int64_t* rows) {
  for_each_word(set, f, [&](int64_t w) {
    const int64_t row = first_row + (w - set.word[f]) * 64;
    for (uint64_t left = set.bits[w]; left; left &= left - 1) *rows++ = row + __builtin_ctzll(left);
  });
}

template <typename W, typename Id, int64_t kWidth>
void add_gradients(const Ids<Id>& ids, const RowSet& set, const int64_t* base, const W* grad, int64_t width,
                   Compute<W>* values, int64_t begin, int64_t end) {
  const int64_t step = kWidth ? kWidth : width, stride = ids.fields * step;
  constexpr int64_t kRowsAhead = 8;
  for (int64_t b = 0; b < ids.batch; ++b) {
    const W* from = grad + b * stride + begin * step;
    const W* next = b + kRowsAhead < ids.batch ? from + kRowsAhead * stride : from;
    for (int64_t e = 0; e < (end - begin) * step; e += 64 / sizeof(W)) __builtin_prefetch(next + e);
    for (int64_t f = begin; f < end; ++f, from += step) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[b * ids.fields + f]));
      const int64_t w = set.word[f] + (id >> 6);
      const uint64_t before = set.bits[w] & ((uint64_t{1} << (id & 63)) - 1);
      Compute<W>* __restrict sum = values + (base[f] + set.rank[w] + __builtin_popcountll(before)) * step;
      for (int64_t e = 0; e < step; ++e) sum[e] += load(from + e);
    }
  }
}

template <typename W, typename Id>
void merge(const Ids<Id>& ids, const RowSet& set, const int64_t* base, const W* grad, int64_t width, int64_t* rows,
           Compute<W>* values, int64_t begin, int64_t end) {
  for (int64_t from = begin; from < end; from += kFieldBlock) {
    const int64_t to = from + kFieldBlock < end ? from + kFieldBlock : end;
    for (int64_t f = from; f < to; ++f) emit_rows(set, f, ids.first_row[f], rows + base[f]);
    __builtin_memset(values + base[from] * width, 0, (base[to] - base[from]) * width * sizeof(*values));
    if (width == 8) {
      add_gradients<W, Id, 8>(ids, set, base, grad, width, values, from, to);
    } else {
      add_gradients<W, Id, 0>(ids, set, base, grad, width, values, from, to);
    }
    for (int64_t f = from; f < to; ++f) clear(set, f);
  }
}

inline bool rising(const int64_t* rows, int64_t count) {
  int64_t falls = 0;
  for (int64_t u = 1; u < count; ++u) falls |= -static_cast<int64_t>(rows[u - 1] >= rows[u]);
  return falls == 0;
}

}  // namespace
}  // namespace adaftr_fast
