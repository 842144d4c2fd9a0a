// The optimizers' steps, fused with the merge of duplicate rows: the merged gradient of a row is in registers only.
//
// M look-ups of a batch, E width, R rows of the table. The look-ups are sorted by row, stably, so that the gradients of
// a row are added in the order of the batch: the result is the same in every run. A row that a field of two values
// repeats 32,000 times must not be one thread's chain of additions. So the sorted look-ups are cut into tiles of kTile.
// A row within a tile is summed and applied by one thread (MergePieces); a row that crosses tiles leaves a sum per
// tile, and these are added, in order, and applied by the thread of the tile in which the row begins (MergeTiles).
#pragma once

#include "cuda/embedding/adam.cuh"

namespace adaftr_fast::cuda {

constexpr int64_t kTile = 256;

// The look-ups in the order of their rows.
template <typename W>
struct SortedTerms {
  using T = Compute<W>;
  const int32_t* rows;   // [M], ascending; R for one out of range
  const int32_t* order;  // [M], where each stood
  const W* grad;         // [M, E], in the order before
  T* sums;               // [2 * tiles, E]: of the row that a tile begins with, and of one that begins inside
  int64_t count, num_rows, width;

  ADAFTR_FAST_HD bool begins(int64_t k) const { return k == 0 || rows[k - 1] != rows[k]; }
  ADAFTR_FAST_HD bool ends(int64_t end) const { return end == count || rows[end] != rows[end - 1]; }

  // Where a row that begins in [low, high) begins.
  ADAFTR_FAST_HD int64_t head(int32_t row, int64_t low, int64_t high) const {
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (rows[middle] < row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  template <int kPack>
  ADAFTR_FAST_HD Pack<T, kPack> sum(int64_t begin, int64_t end, int64_t e) const {
    Pack<T, kPack> sum = {};
    ADAFTR_FAST_UNROLL_4  // loads overlap; the additions keep their order
    for (int64_t k = begin; k < end; ++k) {
      const auto g = read<T, kPack>(grad + static_cast<int64_t>(order[k]) * width + e);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) sum.at[p] += g.at[p];
    }
    return sum;
  }
};

// Threads: M lanes.
template <typename Rule, typename W, int kPack>
struct MergePieces {
  SortedTerms<W> terms;
  Rule rule;
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    const int64_t k = lanes.unit(thread), row = terms.rows[k];
    const bool begins = terms.begins(k);
    if ((!begins && k % kTile != 0) || row >= terms.num_rows) return;
    int64_t end = k + 1;
    while (end < terms.count && end % kTile != 0 && terms.rows[end] == row) ++end;
    const auto sum = [&](int64_t e) { return terms.template sum<kPack>(k, end, e); };
    if (begins && terms.ends(end)) return rule.template apply<kPack>(row, k, lanes, lanes.first(thread), sum);
    auto* to = terms.sums + (k / kTile * 2 + (k % kTile != 0)) * terms.width;
    for (int64_t e = lanes.first(thread) * kPack; e < terms.width; e += lanes.count() * kPack) write(to + e, sum(e));
  }
};

// Threads: tiles lanes.
template <typename Rule, typename W, int kPack>
struct MergeTiles {
  SortedTerms<W> terms;
  Rule rule;
  Lanes lanes;

  ADAFTR_FAST_HD void operator()(int64_t thread) const {
    using T = Compute<W>;
    const int64_t tile = lanes.unit(thread), first = tile * kTile, next = first + kTile;
    if (next >= terms.count) return;
    const int32_t row = terms.rows[next];
    if (terms.rows[next - 1] != row || row >= terms.num_rows) return;  // no row goes on in the next tile
    const bool is_whole = terms.rows[first] == row;
    if (is_whole && !terms.begins(first)) return;  // it began before
    const int64_t head = is_whole ? first : terms.head(row, first, next);
    int64_t last = tile + 1;
    while ((last + 1) * kTile < terms.count && terms.rows[(last + 1) * kTile] == row) ++last;
    rule.template apply<kPack>(row, head, lanes, lanes.first(thread), [&](int64_t e) {
      auto sum = read<T, kPack>(terms.sums + (tile * 2 + !is_whole) * terms.width + e);
      for (int64_t t = tile + 1; t <= last; ++t) {
        const auto more = read<T, kPack>(terms.sums + t * 2 * terms.width + e);
        ADAFTR_FAST_UNROLL
        for (int p = 0; p < kPack; ++p) sum.at[p] += more.at[p];
      }
      return sum;
    });
  }
};

// The rules: what becomes of a row, given its merged gradient by sum(e) for the pack at e. `lane` is the caller's among
// `lanes`, which all come. The formulas are those of adaftr_fast/ops/embedding/reference/optim.py.

// Stores the merged gradient where the row first stands among the sorted look-ups.
template <typename W>
struct Store {
  W* grad;  // [M, E], zeros before
  int64_t width;

  template <int kPack, typename Sum>
  ADAFTR_FAST_HD void apply(int64_t, int64_t head, const Lanes& lanes, int lane, const Sum& sum) const {
    for (int64_t e = lane * kPack; e < width; e += lanes.count() * kPack) write(grad + head * width + e, sum(e));
  }
};

template <typename W>
struct Table {
  using T = Compute<W>;
  W* weight;  // [R, E]
  T* state;
  int64_t width;
  T lr, weight_decay, epsilon, take1, take2;
};

template <typename W>
struct Sgd {
  Table<W> by;

  template <int kPack, typename Sum>
  ADAFTR_FAST_HD void apply(int64_t row, int64_t, const Lanes& lanes, int lane, const Sum& sum) const {
    for (int64_t e = lane * kPack; e < by.width; e += lanes.count() * kPack) {
      W* at = by.weight + row * by.width + e;
      auto w = read<Compute<W>, kPack>(at);
      const auto g = sum(e);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) w.at[p] -= by.lr * (g.at[p] + by.weight_decay * w.at[p]);
      write(at, w);
    }
  }
};

// state [R, E].
template <typename W>
struct Adagrad {
  Table<W> by;

  template <int kPack, typename Sum>
  ADAFTR_FAST_HD void apply(int64_t row, int64_t, const Lanes& lanes, int lane, const Sum& sum) const {
    using T = Compute<W>;
    for (int64_t e = lane * kPack; e < by.width; e += lanes.count() * kPack) {
      const int64_t at = row * by.width + e;
      auto w = read<T, kPack>(by.weight + at), total = read<T, kPack>(by.state + at);
      const auto term = sum(e);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) {
        const T g = term.at[p] + by.weight_decay * w.at[p];
        total.at[p] += g * g;
        w.at[p] -= by.lr * g / (sqrt(total.at[p]) + by.epsilon);
      }
      write(by.weight + at, w);
      write(by.state + at, total);
    }
  }
};

// state [R]. The mean of a row's squares is needed before any element is changed, so sums are formed twice: they come
// from the cache, and rows of any width need no memory.
template <typename W>
struct RowwiseAdagrad {
  Table<W> by;

  template <int kPack, typename Sum>
  ADAFTR_FAST_HD void apply(int64_t row, int64_t, const Lanes& lanes, int lane, const Sum& sum) const {
    using T = Compute<W>;
    W* weight = by.weight + row * by.width;
    T squares = 0;
    for (int64_t e = lane * kPack; e < by.width; e += lanes.count() * kPack) {
      const auto w = read<T, kPack>(weight + e), term = sum(e);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) {
        const T g = term.at[p] + by.weight_decay * w.at[p];
        squares += g * g;
      }
    }
    const T total = by.state[row] + lanes.sum(squares) / static_cast<T>(by.width);
    const T rate = by.lr / (sqrt(total) + by.epsilon);
    for (int64_t e = lane * kPack; e < by.width; e += lanes.count() * kPack) {
      auto w = read<T, kPack>(weight + e);
      const auto term = sum(e);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) w.at[p] -= rate * (term.at[p] + by.weight_decay * w.at[p]);
      write(weight + e, w);
    }
    lanes.wait();  // the other lanes have read the state
    if (lane == 0) by.state[row] = total;
  }
};

// state [R, 2, E].
template <typename W>
struct LazyAdam {
  Table<W> by;

  template <int kPack, typename Sum>
  ADAFTR_FAST_HD void apply(int64_t row, int64_t, const Lanes& lanes, int lane, const Sum& sum) const {
    using T = Compute<W>;
    for (int64_t e = lane * kPack; e < by.width; e += lanes.count() * kPack) {
      const Place<W> place(by.weight, by.state, row, by.width, e);
      auto x = place.template read<kPack>();
      const auto term = sum(e);
      ADAFTR_FAST_UNROLL
      for (int p = 0; p < kPack; ++p) {
        const T g = term.at[p] + by.weight_decay * x.w.at[p];
        x.m.at[p] += by.take1 * (g - x.m.at[p]);
        x.v.at[p] = (1 - by.take2) * x.v.at[p] + by.take2 * g * g;  // exact where v takes all of a small g * g
        x.w.at[p] -= by.lr * x.m.at[p] / (sqrt(x.v.at[p]) + by.epsilon);
      }
      place.write(x);
    }
  }
};

// The step that AdamRecord has begun, after the steps that the row missed.
template <typename W>
struct AdamStep {
  using T = Compute<W>;
  W* weight;
  AdamState<T> state;
  int64_t width;

  template <int kPack, typename Sum>
  ADAFTR_FAST_HD void apply(int64_t row, int64_t, const Lanes& lanes, int lane, const Sum& sum) const {
    const AdamView<T> adam(state, 1);
    const SeriesRow<T>& by = state.series[adam.now + 1 - adam.base];
    const int64_t from = adam.since(row);
    for (int64_t e = lane * kPack; e < width; e += lanes.count() * kPack) {
      const Place<W> place(weight, state.moments, row, width, e);
      auto x = place.template read<kPack>();
      if (adam.is_stale(from)) adam.catch_up(from, x);
      adam.step(by, x, sum(e));
      place.write(x);
    }
    lanes.wait();  // the other lanes have read `current`
    if (lane == 0) state.current[row] = static_cast<int32_t>(adam.now + 1);
  }
};

}  // namespace adaftr_fast::cuda
