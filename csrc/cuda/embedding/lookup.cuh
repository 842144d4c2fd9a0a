// The look-ups. B batch, F fields, E width, R rows of all fields, N ids of all bags.
#pragma once

#include "cuda/embedding/adam.cuh"
#include "cuda/runtime/report.cuh"

namespace adaftr_fast::cuda {

// The fields of a table: which rows each has, and the field of a position in ids [B, F].
struct Fields {
  const int64_t* offsets;  // [F + 1]
  Divider count;           // F
  int64_t num_rows;        // R
  Report report;

  // The table's row of an id at (b, f), or -1 after a report.
  template <typename Id>
  ADAFTR_FAST_HD int64_t row(Id given, uint32_t f, int64_t position, int64_t b) const {
    const auto id = static_cast<int64_t>(given);
    const int64_t first = offsets[f], rows = offsets[f + 1] - first;
    const bool is_in_field = static_cast<uint64_t>(id) < static_cast<uint64_t>(rows);
    if (is_in_field && static_cast<uint64_t>(first + id) < static_cast<uint64_t>(num_rows)) return first + id;
    if (is_in_field) {
      report({Fault::fields, static_cast<int32_t>(f), position, b, first + id, num_rows});
      return -1;
    }
    report({Fault::id, static_cast<int32_t>(f), position, b, id, rows - 1});
    return -1;
  }
};

// out[b, f] = weight[field_offsets[f] + ids[b, f]], zeros for an id out of range. Only copies, so an element is any
// unit of memory that divides a row. Threads: B F lanes.
template <typename Unit, typename Id>
struct Lookup {
  const Unit* weight;  // [R, E]
  const Id* ids;       // [B, F]
  Fields fields;
  Unit* out;      // [B, F * E]
  int64_t width;  // in units
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const auto i = static_cast<uint32_t>(lanes.unit(thread)), b = fields.count.quotient(i);
    const int64_t row = fields.row(ids[i], i - b * fields.count.divisor, i, b);
    for (int64_t e = lanes.first(thread); e < width; e += lanes.count()) {
      out[i * width + e] = row < 0 ? Unit{} : weight[row * width + e];
    }
  }
};

// Reads rows at their present values: through the steps of Adam that they have missed, where kDeferred.
template <typename W, int kPack, bool kDeferred>
struct PresentRows {
  using T = Compute<W>;
  const W* weight;
  AdamState<T> state;
  int64_t width;

  ADAFTR_FAST_HD Pack<T, kPack> at(int64_t row, int64_t e) const {
    auto w = read<T, kPack>(weight + row * width + e);
    if constexpr (kDeferred) {
      const AdamView<T> adam(state, 0);
      const int64_t from = state.current[row];
      if (!adam.is_stale(from)) return w;
      const T* moments = state.moments + row * 2 * width + e;
      const auto m = read<T, kPack>(moments), v = read<T, kPack>(moments + width);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) {
        Element<T> x{w.at[p], m.at[p], v.at[p]};
        adam.catch_up(from, x);
        w.at[p] = x.w;
      }
    }
    return w;
  }
};

// As Lookup, at present values. Threads: B F lanes.
template <typename W, typename Id, int kPack>
struct DeferredLookup {
  PresentRows<W, kPack, true> rows;
  const Id* ids;
  Fields fields;
  W* out;
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    using T = Compute<W>;
    const auto i = static_cast<uint32_t>(lanes.unit(thread)), b = fields.count.quotient(i);
    const int64_t row = fields.row(ids[i], i - b * fields.count.divisor, i, b);
    for (int64_t e = lanes.first(thread) * kPack; e < rows.width; e += lanes.count() * kPack) {
      write(out + i * rows.width + e, row < 0 ? Pack<T, kPack>{} : rows.at(row, e));
    }
  }
};

// The bags of a batch: bag b F + f holds values[offsets[b F + f]] to values[offsets[b F + f + 1] - 1].
template <typename Id>
struct Bags {
  const Id* values;        // [N]
  const int64_t* offsets;  // [B F + 1]
  int64_t bags, count;     // B F, N

  struct Range {
    int64_t begin, end;
  };

  // An empty range after a report, where the offsets do not rise within 0 to N.
  ADAFTR_FAST_HD Range of(int64_t bag, const Report& report) const {
    const Range range{offsets[bag], offsets[bag + 1]};
    const bool from_zero = bag > 0 || range.begin == 0;
    if (from_zero && 0 <= range.begin && range.begin <= range.end && range.end <= count) return range;
    report({Fault::offsets, 0, from_zero ? bag + 1 : 0, 0, from_zero ? range.end : range.begin, count});
    return {0, 0};
  }

  // The bag of the id at `position`, by bisection; `bags` for one behind the last bag.
  ADAFTR_FAST_HD int64_t holding(int64_t position) const {
    int64_t low = 0, high = bags + 1;  // the first offset above `position` is in [low, high)
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (offsets[middle] <= position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low - 1;
  }
};

// The id of a position behind the last bag, where `select_bags` has padded.
constexpr int64_t kPad = -1;

// out[b, f] = scale * sum of factor[i] * weight[row of values[i]] over a bag. Threads: B F lanes.
template <typename W, typename Id, int kPack, bool kDeferred>
struct PoolBags {
  using T = Compute<W>;
  PresentRows<W, kPack, kDeferred> rows;
  Bags<Id> bags;
  const T* factors;  // [N], or null
  Fields fields;
  bool mean;
  W* out;
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t bag = lanes.unit(thread);
    const auto range = bags.of(bag, fields.report);
    check_tail(bag);
    const auto b = fields.count.quotient(static_cast<uint32_t>(bag));
    const uint32_t f = static_cast<uint32_t>(bag) - b * fields.count.divisor;
    const T scale = mean && range.end > range.begin ? T(1) / static_cast<T>(range.end - range.begin) : T(1);
    for (int64_t e = lanes.first(thread) * kPack; e < rows.width; e += lanes.count() * kPack) {
      Pack<T, kPack> sum = {};
      for (int64_t i = range.begin; i < range.end; ++i) {
        const int64_t row = fields.row(bags.values[i], f, i, b);
        if (row < 0) continue;
        const auto x = rows.at(row, e);
        const T factor = factors == nullptr ? T(1) : factors[i];
        ADAFTR_FAST_UNROLL
        for (int p = 0; p < kPack; ++p) sum.at[p] += factor * x.at[p];
      }
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) sum.at[p] *= scale;
      write(out + bag * rows.width + e, sum);
    }
  }

  // Ids behind the last bag are in none: each bag looks at some of them.
  ADAFTR_FAST_HD void check_tail(int64_t bag) const {
    const int64_t last = bags.offsets[bags.bags];
    if (last < 0) return;  // reported as an offset
    for (int64_t i = last + bag; i < bags.count; i += bags.bags) {
      if (bags.values[i] != kPad) fields.report({Fault::offsets, 0, bags.bags, 0, last, bags.count});
    }
  }
};

// What each id adds to the gradient: its row, and scale * factor[i] * grad[its bag]. A padded id adds zeros to the row
// of the first id, so that no row gains a gradient. Threads: N lanes.
template <typename W, typename Id, int kPack>
struct BagTerms {
  using T = Compute<W>;
  Bags<Id> bags;
  const T* factors;  // [N], or null
  Fields fields;
  bool mean;
  const W* grad;  // [B F, E]
  int64_t* rows;  // [N]
  W* terms;       // [N, E]
  int64_t width;
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t i = lanes.unit(thread), holding = bags.holding(i);
    const bool is_pad = holding < 0 || holding >= bags.bags;
    const int64_t bag = is_pad ? bags.holding(0) : holding;
    T scale = is_pad ? T(0) : factors == nullptr ? T(1) : factors[i];
    if (mean && !is_pad) scale /= static_cast<T>(bags.offsets[bag + 1] - bags.offsets[bag]);
    if (lanes.first(thread) == 0) rows[i] = row_of(is_pad ? 0 : i, bag);
    for (int64_t e = lanes.first(thread) * kPack; e < width; e += lanes.count() * kPack) {
      Pack<T, kPack> term = {};
      if (!is_pad) {
        term = read<T, kPack>(grad + bag * width + e);
        ADAFTR_FAST_UNROLL
        for (int p = 0; p < kPack; ++p) term.at[p] *= scale;
      }
      write(terms + i * width + e, term);
    }
  }

  ADAFTR_FAST_HD int64_t row_of(int64_t i, int64_t bag) const {
    if (bag < 0 || bag >= bags.bags) return 0;  // every bag is empty
    const auto b = fields.count.quotient(static_cast<uint32_t>(bag));
    const int64_t row = fields.row(bags.values[i], static_cast<uint32_t>(bag) - b * fields.count.divisor, i, b);
    return row < 0 ? 0 : row;
  }
};

// Which fields of a batch of bags are selected, and the place of each among them. Passed by value.
constexpr int64_t kMostFields = 1024;

struct Selection {
  int16_t place[kMostFields];  // [F]: among the C selected, or -1
};

// ends[b C + c + 1] = number of ids of the c-th selected field of row b. Threads: B F.
template <typename Id>
struct SelectedLengths {
  Bags<Id> bags;
  Selection selected;
  Divider fields;
  int64_t chosen;  // C
  Report report;
  int64_t* lengths;  // [B C]

  ADAFTR_FAST_HD void operator()(int64_t bag) const {
    const auto b = fields.quotient(static_cast<uint32_t>(bag));
    const int place = selected.place[static_cast<uint32_t>(bag) - b * fields.divisor];
    const auto range = bags.of(bag, report);
    if (place >= 0) lengths[b * chosen + place] = range.end - range.begin;
    if (bag + 1 == bags.bags && bags.offsets[bags.bags] != bags.count) {
      report({Fault::offsets, 0, bags.bags, 0, bags.offsets[bags.bags], bags.count});
    }
  }
};

// positions[k] = where the k-th selected id stands in values. Threads: N.
template <typename Id>
struct SelectedPositions {
  Bags<Id> bags;
  Selection selected;
  Divider fields;
  int64_t chosen;
  const int64_t* starts;  // [B C + 1]
  int64_t* positions;     // [N], zeros before

  ADAFTR_FAST_HD void operator()(int64_t i) const {
    const int64_t bag = bags.holding(i);
    if (bag < 0 || bag >= bags.bags) return;
    const auto b = fields.quotient(static_cast<uint32_t>(bag));
    const int place = selected.place[static_cast<uint32_t>(bag) - b * fields.divisor];
    if (place < 0) return;
    const int64_t to = starts[b * chosen + place] + i - bags.offsets[bag];
    if (static_cast<uint64_t>(to) < static_cast<uint64_t>(bags.count)) positions[to] = i;
  }
};

}  // namespace adaftr_fast::cuda
