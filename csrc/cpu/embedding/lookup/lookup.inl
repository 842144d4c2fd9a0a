// The look-up's kernel. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/embedding/groups.inl"

// Look-ups are taken in chunks. While the rows of one chunk are read, those of the next are prefetched, which hides the
// latency of DRAM.
constexpr int64_t kChunk = 64;

// Rows lie one after another, so that those whose size is no power of two may end within another cache line.
inline void prefetch(const void* from, int64_t bytes) {
  const auto* at = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
  if ((bytes & (bytes - 1)) != 0) __builtin_prefetch(at + bytes - 1);
}

// Two pieces of kBytes that overlap, from the first and up to the last byte.
template <int64_t kBytes>
inline void copy_ends(char* __restrict to, const char* __restrict from, int64_t bytes) {
  __builtin_memcpy(to, from, kBytes);
  __builtin_memcpy(to + bytes - kBytes, from + bytes - kBytes, kBytes);
}

template <int64_t kBytes>
inline void copy_row(void* __restrict to_row, const void* __restrict from_row, int64_t bytes) {
  auto* to = static_cast<char*>(to_row);
  const auto* from = static_cast<const char*>(from_row);
  if constexpr (kBytes > 0) {
    __builtin_memcpy(to, from, kBytes);
  } else if (bytes >= 32) {
    for (int64_t at = 32; at < bytes; at += 32) __builtin_memcpy(to + at - 32, from + at - 32, 32);
    __builtin_memcpy(to + bytes - 32, from + bytes - 32, 32);
  } else if (bytes >= 16) {
    copy_ends<16>(to, from, bytes);
  } else if (bytes >= 8) {
    copy_ends<8>(to, from, bytes);
  } else if (bytes >= 4) {
    copy_ends<4>(to, from, bytes);
  } else if (bytes >= 2) {
    copy_ends<2>(to, from, bytes);
  } else if (bytes == 1) {
    *to = *from;
  }
}

// Writes the table rows of the look-ups [at, at + count). Returns whether all ids are in range.
template <typename Id>
inline bool resolve(const Ids<Id>& ids, int64_t at, int64_t count, int64_t* rows) {
  uint64_t bad = 0;
  for (int64_t k = 0, f = at % ids.fields; k < count; f = 0) {
    const int64_t until = k + ids.fields - f < count ? k + ids.fields - f : count;
    for (; k < until; ++k, ++f) {
      const int64_t id = ids.data[at + k], first = ids.field_offsets[f];
      // The one unsigned comparison catches negative ids as well.
      bad |= static_cast<uint64_t>(id) >= static_cast<uint64_t>(ids.field_offsets[f + 1] - first);
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
