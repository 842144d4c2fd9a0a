// The kernels that pool bags, and merge their gradients. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/embedding/backward/merge_in_shares.inl"
#include "cpu/embedding/backward/row_set.inl"
#include "cpu/embedding/groups.inl"
#include "cpu/embedding/optim/adam.inl"

// Ids of a bag are fetched this many before they are needed.
constexpr int64_t kBagAhead = 16;

template <typename Id, typename T>
inline T bag_scale(const Bags<Id, T>& bags, int64_t bag) {
  const int64_t count = bags.offsets[bag + 1] - bags.offsets[bag];
  return bags.mean && count > 0 ? T(1) / static_cast<T>(count) : T(1);
}

template <typename Id, typename T>
inline T id_weight(const Bags<Id, T>& bags, int64_t i) {
  return bags.per_sample_weights != nullptr ? bags.per_sample_weights[i] : T(1);
}

// The first position in bag (b, f) whose id is out of range, or -1.
template <typename Id, typename T>
inline int64_t bad_in_bag(const Bags<Id, T>& bags, int64_t bag, int64_t f) {
  const auto size = static_cast<uint64_t>(bags.field_offsets[f + 1] - bags.field_offsets[f]);
  for (int64_t i = bags.offsets[bag]; i < bags.offsets[bag + 1]; ++i) {
    if (static_cast<uint64_t>(static_cast<int64_t>(bags.values[i])) >= size) return i;
  }
  return -1;
}

// read(row, first element, number of elements) gives a group of a row.
template <typename W, typename Id, typename Read>
inline void pool_bag(const Bags<Id, Compute<W>>& bags, const W* weight, int64_t bag, int64_t f, int64_t width, W* out,
                     Read read) {
  using T = Compute<W>;
  const int64_t begin = bags.offsets[bag], end = bags.offsets[bag + 1];
  const Id* values = bags.values;
  const int64_t first = bags.field_offsets[f];
  for_each_group<0>(width, [&](int64_t e, auto n) {
    Group<T> sum = {};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t ahead = i + kBagAhead < end ? i + kBagAhead : end - 1;
      __builtin_prefetch(weight + (first + static_cast<int64_t>(values[ahead])) * width + e);
      sum += id_weight(bags, i) * read(first + static_cast<int64_t>(values[i]), e, n);
    }
    store_group(out + e, sum * bag_scale(bags, bag), n);
  });
}

template <typename W, typename Id, typename Read>
inline int64_t pool_rows(const Bags<Id, Compute<W>>& bags, const W* weight, int64_t width, W* out, int64_t begin,
                         int64_t end, Read read) {
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t f = 0; f < bags.fields; ++f) {
      const int64_t bag = b * bags.fields + f, bad = bad_in_bag(bags, bag, f);
      if (bad >= 0) return bad;
      pool_bag<W>(bags, weight, bag, f, width, out + bag * width, read);
    }
  }
  return -1;
}

template <typename W, typename Id>
int64_t pool(const Bags<Id, Compute<W>>& bags, const W* weight, const AdamTable<W>* table, int64_t width, W* out,
             int64_t begin, int64_t end) {
  using T = Compute<W>;
  if (table == nullptr) {
    return pool_rows<W>(bags, weight, width, out, begin, end,
                        [&](int64_t row, int64_t e, auto n) { return load_group(weight + row * width + e, n); });
  }
  const Adam<W> adam(*table);
  return pool_rows<W>(bags, weight, width, out, begin, end, [&](int64_t row, int64_t e, auto n) {
    const W* w = weight + row * width + e;
    const int64_t from = adam.since(row);
    if (!adam.is_stale(from)) return load_group(w, n);
    const T* m = table->moments + row * 2 * width + e;
    return present_weight(adam, from, AdamGroup<T>{load_group(w, n), load_group(m, n), load_group(m + width, n)});
  });
}

template <typename Id, typename T>
int64_t mark_bags(const Bags<Id, T>& bags, const RowSet& set, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t f = 0; f < bags.fields; ++f) {
      const int64_t bag = b * bags.fields + f, bad = bad_in_bag(bags, bag, f);
      if (bad >= 0) return bad;
      for (int64_t i = bags.offsets[bag]; i < bags.offsets[bag + 1]; ++i) {
        set_bit_shared(field_set(set, f), static_cast<uint64_t>(bags.values[i]));
      }
    }
  }
  return -1;
}

template <typename W, typename Id, int64_t kWidth>
void merge_bag(const Bags<Id, Compute<W>>& bags, int64_t bag, const W* grad, int64_t width, const ShareLookups& own,
               Compute<W>* sums) {
  for_each_group<kWidth>(width, [&](int64_t e, auto n) {
    const Group<Compute<W>> slope = load_group(grad + bag * width + e, n) * bag_scale(bags, bag);
    for (int64_t k = 0; k < own.count; ++k) {
      Compute<W>* sum = sums + own.place[k] * width + e;
      store_group(sum, load_group(sum, n) + id_weight(bags, own.position[k]) * slope, n);
    }
  });
}

template <typename W, typename Id>
void merge_bags(const Bags<Id, Compute<W>>& bags, const RowSet& set, const int64_t* base, const W* grad, int64_t width,
                Compute<W>* sums, int64_t part, int64_t parts) {
  const Share share{static_cast<uint32_t>(part), static_cast<uint32_t>(parts)};
  ShareLookups own;
  for (int64_t bag = 0; bag < bags.batch * bags.fields; ++bag) {
    const int64_t f = bag % bags.fields, end = bags.offsets[bag + 1];
    for (int64_t i = bags.offsets[bag]; i < end; i += kChunk) {
      own.list(bags.values + i, 1, i, end - i < kChunk ? end - i : kChunk, share, field_set(set, f), base[f],
               [&](int64_t, int64_t place) { prefetch(sums + place * width, width * sizeof(Compute<W>)); });
      if (width == 8) {
        merge_bag<W, Id, 8>(bags, bag, grad, width, own, sums);
      } else {
        merge_bag<W, Id, 0>(bags, bag, grad, width, own, sums);
      }
    }
  }
}
