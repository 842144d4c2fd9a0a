// Bodies of the embedding kernels, compiled once for each instruction set: plain C++ that the compiler
// vectorises for the target of the including file. Everything here has internal linkage.

namespace adaftr_fast {
namespace {

// Fields taken together when the batch is walked field by field: 8 int64 ids share a cache line.
constexpr int64_t kFieldBlock = 8;

// Look-ups are taken in chunks: while the rows of one are read, those of the next are being fetched, which covers
// the latency of DRAM.
constexpr int64_t kChunk = 64;

inline void prefetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
}

template <int64_t kBytes>
inline void copy_row(void* __restrict to, const void* __restrict from, int64_t bytes) {
  __builtin_memcpy(to, from, kBytes ? kBytes : bytes);
}

// Writes the table rows of the look-ups [at, at + count) and says whether all ids are in range.
template <typename Id>
inline bool resolve(const Ids<Id>& ids, int64_t at, int64_t count, int64_t* rows) {
  uint64_t bad = 0;
  for (int64_t k = 0, f = at % ids.fields; k < count; f = 0) {
    const int64_t until = k + ids.fields - f < count ? k + ids.fields - f : count;
    for (; k < until; ++k, ++f) {
      const int64_t id = ids.data[at + k], first = ids.first_row[f];
      // The one unsigned comparison catches negative ids as well.
      bad |= static_cast<uint64_t>(id) >= static_cast<uint64_t>(ids.first_row[f + 1] - first);
      rows[k] = first + id;
    }
  }
  return bad == 0;
}

// The first of the look-ups [at, at + count) whose id is out of range.
template <typename Id>
int64_t first_bad(const Ids<Id>& ids, int64_t at, int64_t count) {
  int64_t row;
  while (count-- > 1 && resolve(ids, at, 1, &row)) ++at;
  return at;
}

// Calls read(position, row) for the look-ups of batch rows [begin, end) in order, fetch(row) for each about a chunk
// earlier, and announce(row) about a chunk before that. Returns the position of the first id out of range, or -1.
template <typename Id, typename Announce, typename Fetch, typename Read>
inline int64_t for_each_lookup(const Ids<Id>& ids, int64_t begin, int64_t end, Announce announce, Fetch fetch,
                               Read read) {
  int64_t rows[3][kChunk], size[3] = {0, 0, 0};
  const int64_t last = end * ids.fields;
  int64_t at = begin * ids.fields;  // the next look-up to resolve
  for (int64_t chunk = 0;; ++chunk) {
    const int64_t coming = chunk % 3, next = (chunk + 2) % 3, now = (chunk + 1) % 3;
    const int64_t from = at - size[next] - size[now];
    size[coming] = last - at < kChunk ? last - at : kChunk;
    if (!resolve(ids, at, size[coming], rows[coming])) return first_bad(ids, at, size[coming]);
    at += size[coming];
    if (size[coming] + size[next] + size[now] == 0) return -1;
    for (int64_t k = 0; k < kChunk; ++k) {
      if (k < size[coming]) announce(rows[coming][k]);
      if (k < size[next]) fetch(rows[next][k]);
      if (k < size[now]) read(from + k, rows[now][k]);
    }
  }
}

template <typename Id, int64_t kBytes>
int64_t lookup_rows(const Ids<Id>& ids, const char* weight, int64_t row_bytes, char* out, int64_t begin, int64_t end) {
  const int64_t bytes = kBytes ? kBytes : row_bytes;
  return for_each_lookup(
      ids, begin, end, [](int64_t) {},
      [&](int64_t row) { prefetch(weight + row * bytes, kBytes && kBytes < 64 ? 1 : bytes); },
      [&](int64_t i, int64_t row) { copy_row<kBytes>(out + i * bytes, weight + row * bytes, bytes); });
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
  for_each_word(set, f, [&](int64_t w) { set.words[w].bits = 0; });
  for (int64_t s = set.sumword[f]; s < set.sumword[f + 1]; ++s) set.summary[s] = 0;
}

inline void set_bit(const RowSet& set, int64_t f, uint64_t id) {
  set.words[set.word[f] + (id >> 6)].bits |= uint64_t{1} << (id & 63);
  set.summary[set.sumword[f] + (id >> 12)] |= uint64_t{1} << ((id >> 6) & 63);
}

// Fills the ranks of a field and returns the number of its distinct rows.
inline int64_t rank_rows(const RowSet& set, int64_t f) {
  int64_t count = 0;
  for_each_word(set, f, [&](int64_t w) {
    set.words[w].rank = count;
    count += __builtin_popcountll(set.words[w].bits);
  });
  return count;
}

// How many distinct rows of the field stand before the marked id.
inline int64_t rank_of(const RowSet& set, int64_t f, uint64_t id) {
  const RowSet::Word& word = set.words[set.word[f] + (id >> 6)];
  return word.rank + __builtin_popcountll(word.bits & ((uint64_t{1} << (id & 63)) - 1));
}

// Walking a block of fields down the batch takes one or two cache lines of each row, a stride that the hardware does
// not foresee.
constexpr int64_t kRowsAhead = 8;

template <typename Id>
inline void prefetch_ids(const Ids<Id>& ids, int64_t b, int64_t begin, int64_t end) {
  if (b + kRowsAhead >= ids.batch) return;
  const Id* next = ids.data + (b + kRowsAhead) * ids.fields;
  __builtin_prefetch(next + begin);
  __builtin_prefetch(next + end - 1);
}

template <typename Id>
int64_t mark_bits(const Ids<Id>& ids, const RowSet& set, int64_t begin, int64_t end) {
  for (int64_t b = 0; b < ids.batch; ++b) {
    prefetch_ids(ids, b, begin, end);
    for (int64_t f = begin, i = b * ids.fields + begin; f < end; ++f, ++i) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[i]));
      if (__builtin_expect(id >= static_cast<uint64_t>(ids.first_row[f + 1] - ids.first_row[f]), 0)) return i;
      set_bit(set, f, id);
    }
  }
  return -1;
}

template <typename Id>
int64_t mark(const Ids<Id>& ids, const RowSet& set, int64_t* unique, int64_t begin, int64_t end) {
  for (int64_t from = begin; from < end; from += kFieldBlock) {
    const int64_t to = from + kFieldBlock < end ? from + kFieldBlock : end;
    const int64_t bad = mark_bits(ids, set, from, to);
    if (bad >= 0) return bad;
    for (int64_t f = from; f < to; ++f) unique[f] = rank_rows(set, f);
  }
  return -1;
}

inline void emit_rows(const RowSet& set, int64_t f, int64_t first_row, int64_t* rows) {
  for_each_word(set, f, [&](int64_t w) {
    const int64_t row = first_row + (w - set.word[f]) * 64;
    for (uint64_t left = set.words[w].bits; left; left &= left - 1) *rows++ = row + __builtin_ctzll(left);
  });
}

template <typename W, typename Id, int64_t kWidth>
void add_gradients(const Ids<Id>& ids, const RowSet& set, const int64_t* base, const W* grad, int64_t width,
                   Compute<W>* values, int64_t begin, int64_t end) {
  const int64_t step = kWidth ? kWidth : width, stride = ids.fields * step;
  for (int64_t b = 0; b < ids.batch; ++b) {
    prefetch_ids(ids, b, begin, end);
    const W* from = grad + b * stride + begin * step;
    const W* next = b + kRowsAhead < ids.batch ? from + kRowsAhead * stride : from;
    prefetch(next, (end - begin) * step * sizeof(W));
    for (int64_t f = begin; f < end; ++f, from += step) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[b * ids.fields + f]));
      Compute<W>* sum = values + (base[f] + rank_of(set, f, id)) * step;
      for_each_group<kWidth>(
          step, [&](int64_t e, auto n) { store_group(sum + e, load_group(sum + e, n) + load_group(from + e, n), n); });
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
