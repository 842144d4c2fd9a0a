// The look-ups. B batch, F fields, E width, R rows of all fields, N ids of all bags.
#pragma once

#include "cuda/embedding/adam.cuh"
#include "cuda/runtime/report.cuh"

namespace adaftr_fast::cuda {

// The rows of one field.
struct Field {
  int64_t first, rows;

  template <typename Id>
  ADAFTR_FAST_HD bool has(Id id) const {
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(rows);
  }
};

// The fields of a table.
struct Fields {
  const int64_t* offsets;  // [F + 1]
  Divider count;           // F
  int64_t num_rows;        // R
  Report report;

  // Field f, without what would lie outside the table.
  ADAFTR_FAST_HD Field at(uint32_t f) const {
    const int64_t first = offsets[f], end = offsets[f + 1] < num_rows ? offsets[f + 1] : num_rows;
    return {first, first < 0 ? 0 : end - first};
  }

  // The field of a position in ids [B, F] or of a bag, and its row b.
  ADAFTR_FAST_HD uint32_t of(uint32_t position, uint32_t* b) const {
    *b = count.quotient(position);
    return position - *b * count.divisor;
  }

  ADAFTR_FAST_HD void report_bad(int64_t id, uint32_t f, int64_t b) const {
    const int64_t rows = offsets[f + 1] - offsets[f];
    const bool is_in_field = static_cast<uint64_t>(id) < static_cast<uint64_t>(rows);  // so the table is too small
    if (is_in_field) return report({Fault::fields, static_cast<int32_t>(f), b, offsets[f] + id, num_rows});
    report({Fault::id, static_cast<int32_t>(f), b, id, rows - 1});
  }

  // The table's row of an id, or -1 after a report.
  template <typename Id>
  ADAFTR_FAST_HD int64_t row(Id id, uint32_t f, int64_t b) const {
    const Field field = at(f);
    if (field.has(id)) return field.first + static_cast<int64_t>(id);
    report_bad(static_cast<int64_t>(id), f, b);
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
    const auto i = static_cast<uint32_t>(lanes.unit(thread));
    uint32_t b;
    const uint32_t f = fields.of(i, &b);
    const int64_t row = fields.row(ids[i], f, b);
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
    const auto w = read<T, kPack>(weight + row * width + e);
    if constexpr (kDeferred) {
      const AdamView<T> adam(state, 0);
      const int64_t from = adam.since(row);
      if (!adam.is_stale(from)) return w;
      const T* moments = state.moments + row * 2 * width + e;
      Elements<T, kPack> x{w, read<T, kPack>(moments), read<T, kPack>(moments + width)};
      adam.catch_up(from, x);
      return x.w;
    }
    return w;
  }
};

// rows[b, f] = the table's row of ids[b, f], R for an id out of range: its gradient is left out. The look-up has
// reported it. Threads: B F.
template <typename Id>
struct Rows {
  const Id* ids;
  Fields fields;
  int64_t* rows;  // [B F]

  ADAFTR_FAST_HD void operator()(int64_t i) const {
    uint32_t b;
    const Field field = fields.at(fields.of(static_cast<uint32_t>(i), &b));
    rows[i] = field.has(ids[i]) ? field.first + static_cast<int64_t>(ids[i]) : fields.offsets[fields.count.divisor];
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
    const auto i = static_cast<uint32_t>(lanes.unit(thread));
    uint32_t b;
    const uint32_t f = fields.of(i, &b);
    const int64_t row = fields.row(ids[i], f, b);
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
    report({Fault::offsets, 0, from_zero ? bag + 1 : 0, from_zero ? range.end : range.begin, count});
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
    uint32_t b;
    const uint32_t f = fields.of(static_cast<uint32_t>(bag), &b);
    const Field field = fields.at(f);
    int64_t bad = -1;  // reported behind the loop, whose loads could not overlap otherwise
    for (int64_t e = lanes.first(thread) * kPack; e < rows.width; e += lanes.count() * kPack) {
      Pack<T, kPack> sum = {};
      for (int64_t i = range.begin; i < range.end; ++i) {
        const auto id = static_cast<int64_t>(bags.values[i]);
        if (!field.has(id)) {
          bad = i;
          continue;
        }
        const auto x = rows.at(field.first + id, e);
        const T factor = factors == nullptr ? T(1) : factors[i];
        ADAFTR_FAST_UNROLL
        for (int p = 0; p < kPack; ++p) sum.at[p] += factor * x.at[p];
      }
      const T scale = mean && range.end > range.begin ? T(1) / static_cast<T>(range.end - range.begin) : T(1);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) sum.at[p] *= scale;
      write(out + bag * rows.width + e, sum);
    }
    if (bad >= 0) fields.report_bad(static_cast<int64_t>(bags.values[bad]), f, b);
  }

  // Ids behind the last bag are in none: each bag looks at some of them.
  ADAFTR_FAST_HD void check_tail(int64_t bag) const {
    const int64_t last = bags.offsets[bags.bags];
    if (last < 0) return;  // reported as an offset
    for (int64_t i = last + bag; i < bags.count; i += bags.bags) {
      if (bags.values[i] != kPad) fields.report({Fault::offsets, 0, bags.bags, last, bags.count});
    }
  }
};

// What each id adds to the gradient: its row, and scale * factor[i] * grad[its bag]. An id out of range has row R,
// whose gradient is left out. A padded id adds zeros to the row of another id, so that no row gains a gradient; it has
// row R if there is none. Threads: B F lanes.
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
    const int64_t bag = lanes.unit(thread);
    const int lane = lanes.first(thread);
    const auto range = bags.of(bag, fields.report);
    const T scale = mean && range.end > range.begin ? T(1) / static_cast<T>(range.end - range.begin) : T(1);
    if (lane == 0) {
      for (int64_t i = range.begin; i < range.end; ++i) rows[i] = row_of(i, bag);
    }
    for (int64_t e = lane * kPack; e < width; e += lanes.count() * kPack) {
      const auto g = read<T, kPack>(grad + bag * width + e);
      for (int64_t i = range.begin; i < range.end; ++i) {
        const T factor = factors == nullptr ? scale : scale * factors[i];
        Pack<T, kPack> term;
        ADAFTR_FAST_UNROLL
        for (int p = 0; p < kPack; ++p) term.at[p] = factor * g.at[p];
        write(terms + i * width + e, term);
      }
    }
    pad(bag, lane);
  }

  // Each bag takes some of the ids behind the last one; their zeros are spread over the ids of the bags.
  ADAFTR_FAST_HD void pad(int64_t bag, int lane) const {
    const int64_t last = bags.offsets[bags.bags];
    if (last < 0) return;
    for (int64_t i = last + bag; i < bags.count; i += bags.bags) {
      if (lane == 0) rows[i] = last == 0 ? none() : row_of(i % last, bags.holding(i % last));
      for (int64_t e = lane * kPack; e < width; e += lanes.count() * kPack) {
        write(terms + i * width + e, Pack<T, kPack>{});
      }
    }
  }

  ADAFTR_FAST_HD int64_t none() const { return fields.offsets[fields.count.divisor]; }

  ADAFTR_FAST_HD int64_t row_of(int64_t i, int64_t bag) const {
    if (bag < 0 || bag >= bags.bags) return none();  // bad offsets
    uint32_t b;
    const Field field = fields.at(fields.of(static_cast<uint32_t>(bag), &b));
    return field.has(bags.values[i]) ? field.first + static_cast<int64_t>(bags.values[i]) : none();
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
      report({Fault::offsets, 0, bags.bags, bags.offsets[bags.bags], bags.count});
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
