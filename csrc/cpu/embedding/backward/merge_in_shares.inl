// The merge for few fields, where a thread cannot own whole ones: all threads mark, then each adds up the gradients of
// a share of the rows. A row's gradients are added in the order of the batch by one thread, so the sums do not depend
// on the number of shares.
#pragma once

#include "cpu/embedding/backward/row_set.inl"
#include "cpu/embedding/groups.inl"
#include "cpu/embedding/lookup/lookup.inl"

// Which rows belong to one share. A hash spreads them, as popular rows often stand side by side; four neighbours stay
// together, since two sums of E = 8 share a cache line.
struct Share {
  uint32_t part, parts;

  bool owns(uint64_t id) const {
    const uint32_t hash = static_cast<uint32_t>(id >> 2) * 0x9e3779b1u;
    return static_cast<uint32_t>((uint64_t{hash} * parts) >> 32) == part;
  }
};

template <typename Id>
int64_t mark_shared(const Ids<Id>& ids, const RowSet& set, int64_t begin, int64_t end) {
  for (int64_t i = begin * ids.fields, f = 0; i < end * ids.fields; ++i, f = f + 1 < ids.fields ? f + 1 : 0) {
    const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids.data[i]));
    if (__builtin_expect(id >= static_cast<uint64_t>(ids.field_offsets[f + 1] - ids.field_offsets[f]), 0)) return i;
    set_bit_shared(field_set(set, f), id);
  }
  return -1;
}

// The look-ups of one share, with the places of their sums. They are listed without a branch, as the branch predictor
// cannot foresee whose they are.
struct ShareLookups {
  int64_t position[kChunk], place[kChunk], count = 0;

  template <typename Id, typename Fetch>
  void list(const Id* id, int64_t stride, int64_t first, int64_t size, const Share& share, const FieldSet& set,
            int64_t base, Fetch fetch) {
    count = 0;
    for (int64_t k = 0; k < size; ++k) {
      position[count] = first + k;
      count += share.owns(static_cast<uint64_t>(id[k * stride]));
    }
    for (int64_t k = 0; k < count; ++k) {
      place[k] = base + rank_of(set, static_cast<uint64_t>(id[(position[k] - first) * stride]));
      fetch(position[k], place[k]);
    }
  }
};

template <typename W, typename Id, int64_t kWidth>
void merge_share_rows(const Ids<Id>& ids, const RowSet& set, const int64_t* base, const W* grad, int64_t width,
                      Compute<W>* sums, const Share& share) {
  const int64_t step = kWidth ? kWidth : width;
  ShareLookups own;
  for (int64_t b = 0; b < ids.batch; b += kChunk) {
    const int64_t size = ids.batch - b < kChunk ? ids.batch - b : kChunk;
    for (int64_t f = 0; f < ids.fields; ++f) {
      own.list(ids.data + b * ids.fields + f, ids.fields, b, size, share, field_set(set, f), base[f],
               [&](int64_t row, int64_t place) {
                 prefetch(grad + (row * ids.fields + f) * step, step * sizeof(W));
                 prefetch(sums + place * step, step * sizeof(Compute<W>));
               });
      for (int64_t k = 0; k < own.count; ++k) {
        const W* from = grad + (own.position[k] * ids.fields + f) * step;
        Compute<W>* sum = sums + own.place[k] * step;
        for_each_group<kWidth>(step, [&](int64_t e, auto n) {
          store_group(sum + e, load_group(sum + e, n) + load_group(from + e, n), n);
        });
      }
    }
  }
}

template <typename W, typename Id>
void merge_share(const Ids<Id>& ids, const RowSet& set, const int64_t* base, const W* grad, int64_t width,
                 Compute<W>* sums, int64_t part, int64_t parts) {
  const Share share{static_cast<uint32_t>(part), static_cast<uint32_t>(parts)};
  if (width == 8) return merge_share_rows<W, Id, 8>(ids, set, base, grad, width, sums, share);
  merge_share_rows<W, Id, 0>(ids, set, base, grad, width, sums, share);
}
