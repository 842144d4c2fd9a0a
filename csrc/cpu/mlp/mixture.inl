// Mixtures of experts, forward and backward. Included once per instruction set (see vectors.inl).
//
// The softmax and its gradient are taken of as many rows at a time as a vector has lanes, with one vector for each
// gate; what is summed over the width of an expert goes row by row.
#pragma once

#include "cpu/mlp/layers.inl"
#include "cpu/mlp/log_loss.inl"

// A vector of a row of S, which is T or the bits of bfloat16: n elements, or all where n is a constant.
template <class T, class S, class N>
inline Vec<T> load_row(const S* from, N n) {
  constexpr bool kWhole = !std::is_same_v<N, int64_t>;
  if constexpr (std::is_same_v<S, T>) {
    if constexpr (kWhole)
      return load(from);
    else
      return load_some<Vec<T>>(from, n);
  } else {
    if constexpr (kWhole)
      return widen(*reinterpret_cast<const HalfLanes*>(from));
    else
      return widen(load_some<HalfLanes>(from, n));
  }
}

template <class T, class S, class N>
inline void store_row(S* to, N n, Vec<T> x) {
  constexpr bool kWhole = !std::is_same_v<N, int64_t>;
  if constexpr (std::is_same_v<S, T>) {
    if constexpr (kWhole)
      store(to, x);
    else
      store_some(to, n, x);
  } else {
    const HalfLanes half = narrow(x);
    if constexpr (kWhole)
      *reinterpret_cast<HalfLanes*>(to) = half;
    else
      store_some(to, n, half);
  }
}

// E and G are the types that experts and gradients of mixtures are stored as: T or uint16_t.
template <class T, class E, class G>
struct Mixture {
  static constexpr int64_t n = kLanes<T>;
  static constexpr std::integral_constant<int64_t, n> kWhole{};
  static constexpr int kTogether = 4;  // vectors, or products with a gradient
  const MixtureProblem& q;
  const int64_t gates = q.tasks * q.experts;
  // Of a thread:
  T* flat;                // a block's logits, or their gradients, as in memory: [rows][T][k]
  T *weights, *d_logits;  // [T][k][kBlockRows]
  T* products;            // [T][k][n rows][n], whose sums over lanes are those of gradients and experts
  const G** gs;           // of a row, T
  G* zeros;               // [v], where there is no gradient

  Mixture(const MixtureProblem& problem, Arena& arena) : q(problem) {
    const bool backward = q.d_out != nullptr;
    arena.take(kBlockRows * gates + n, flat);  // the last vector may be written whole
    arena.take(gates * kBlockRows, weights);
    arena.take(backward ? gates * kBlockRows : 0, d_logits);
    arena.take(backward ? gates * n * n : 0, products);
    arena.take(backward ? q.tasks : 0, gs);
    arena.take(backward ? q.width : 0, zeros);
  }

  void rows_between(int64_t begin, int64_t end) const {
    if (q.d_out != nullptr)
      for (int64_t c = 0; c < q.width; ++c) zeros[c] = 0;
    for (int64_t row = begin; row < end; row += kBlockRows) {
      const int64_t rows = at_most(end - row, kBlockRows);
      read_weights(row, rows);
      if (q.d_out != nullptr)
        differentiate(row, rows);
      else
        for (int64_t r = 0; r < rows; ++r) mix(row + r, weights + r);
    }
  }

  // The softmax of every task's logits, of a block of rows.
  void read_weights(int64_t row, int64_t rows) const {
    const int64_t count = rows * gates;
    for (int64_t i = 0; i < count; i += n) store(flat + i, read<T>(q.logits, row * gates + i, count - i));
    transpose<T>(flat, gates, rows, gates, weights, kBlockRows);
    for (int64_t r = rows; r % n != 0; ++r)
      for (int64_t i = 0; i < gates; ++i) weights[i * kBlockRows + r] = 0;
    for (int64_t t = 0; t < q.tasks; ++t)
      for (int64_t r = 0; r < rows; r += n) softmax(weights + t * q.experts * kBlockRows + r);
  }

  void softmax(T* weight) const {
    T* const end = weight + q.experts * kBlockRows;
    Vec<T> greatest = load(weight), sum = {};
    for (T* w = weight; w < end; w += kBlockRows) greatest = maximum<T>(greatest, load(w));
    for (T* w = weight; w < end; w += kBlockRows) {
      const Vec<T> power = exp2_of<T>((load(w) - greatest) * T(1.44269504088896340736));
      sum += power;
      store(w, power);
    }
    for (T* w = weight; w < end; w += kBlockRows) store<T>(w, load(w) / sum);
  }

  const E* experts_of(int64_t row) const { return static_cast<const E*>(q.expert.data) + row * q.experts * q.width; }

  void mix(int64_t row, const T* weight) const {
    const E* expert = experts_of(row);
    for (int64_t t = 0; t < q.tasks; ++t, weight += q.experts * kBlockRows)
      combine(
          weight, kBlockRows, [&](int64_t i) { return expert + i * q.width; }, q.experts,
          static_cast<E*>(q.out[t].data) + row * q.width);
  }

  // d_expert_i = sum_t w_ti g_t;  d_logits_ti = w_ti (s_ti - sum_j w_tj s_tj) with s_ti = g_t . expert_i
  void differentiate(int64_t row, int64_t rows) const {
    const int64_t k = q.experts, count = rows * gates;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < q.tasks; ++t) {
        const auto* g = static_cast<const G*>(q.d_out[t].data);
        gs[t] = g == nullptr ? zeros : g + (row + r) * q.width;
        multiply_experts(gs[t], experts_of(row + r), products + (t * k * n + r % n) * n);
      }
      E* d_expert = static_cast<E*>(q.d_expert.data) + (row + r) * k * q.width;
      for (int64_t i = 0; i < k; ++i, d_expert += q.width)
        combine(weights + i * kBlockRows + r, k * kBlockRows, [&](int64_t t) { return gs[t]; }, q.tasks, d_expert);
      if (r % n == n - 1 || r == rows - 1) differentiate_softmax(r / n * n, r % n + 1);
    }
    transpose<T>(d_logits, kBlockRows, gates, rows, flat, gates);
    for (int64_t i = 0; i < count; i += n) write<T>(q.d_logits, row * gates + i, count - i, load(flat + i));
  }

  // Of `rows` rows of the block, from `first` on.
  void differentiate_softmax(int64_t first, int64_t rows) const {
    for (int64_t t = 0; t < q.tasks; ++t) {
      const int64_t gate = t * q.experts, end = gate + q.experts;
      Vec<T> mean = {};
      for (int64_t i = gate; i < end; ++i) {
        Vec<T> square[n] = {};
        for (int64_t r = 0; r < rows; ++r) square[r] = load(products + (i * n + r) * n);
        const Vec<T> sum = sums_of_rows<T>(square);
        mean += load(weights + i * kBlockRows + first) * sum;
        store(d_logits + i * kBlockRows + first, sum);
      }
      for (int64_t i = gate; i < end; ++i) {
        const int64_t at = i * kBlockRows + first;
        store<T>(d_logits + at, load(weights + at) * (load(d_logits + at) - mean));
      }
    }
  }

  // Writes the sum of `count` rows, each times its weight; weights are `step` apart.
  template <class Row, class S>
  void combine(const T* weight, int64_t step, Row row, int64_t count, S* to) const {
    int64_t c = 0;
    for (; c + kTogether * n <= q.width; c += kTogether * n)
      combine_vectors<kTogether>(weight, step, row, count, c, kWhole, to);
    for (; c + n <= q.width; c += n) combine_vectors<1>(weight, step, row, count, c, kWhole, to);
    if (c < q.width) combine_vectors<1>(weight, step, row, count, c, q.width - c, to);
  }

  template <int kVectors, class Row, class N, class S>
  static void combine_vectors(const T* weight, int64_t step, Row row, int64_t count, int64_t c, N left, S* to) {
    Vec<T> sum[kVectors] = {};
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] += weight[i * step] * load_row<T>(row(i) + c + v * n, left);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_row<T>(to + c + v * n, left, sum[v]);
  }

  // A gradient times each expert, as a vector whose lanes add up to the product; the vectors stand n * n apart.
  void multiply_experts(const G* g, const E* expert, T* to) const {
    int64_t i = 0;
    for (; i + kTogether <= q.experts; i += kTogether)
      multiply_some<kTogether>(g, expert + i * q.width, to + i * n * n);
    if (q.experts - i == 3) return multiply_some<3>(g, expert + i * q.width, to + i * n * n);
    for (; i < q.experts; ++i) multiply_some<1>(g, expert + i * q.width, to + i * n * n);
  }

  template <int kExperts>
  void multiply_some(const G* g, const E* expert, T* to) const {
    Vec<T> sum[kExperts] = {};
    const auto add = [&](int64_t c, auto left) {
      const Vec<T> x = load_row<T>(g + c, left);
#pragma GCC unroll 4
      for (int i = 0; i < kExperts; ++i) sum[i] += x * load_row<T>(expert + i * q.width + c, left);
    };
    int64_t c = 0;
    for (; c + n <= q.width; c += n) add(c, kWhole);
    if (c < q.width) add(c, q.width - c);
#pragma GCC unroll 4
    for (int i = 0; i < kExperts; ++i) store(to + i * n * n, sum[i]);
  }
};

// Calls run(E{}, G{}).
template <class T, class Run>
void by_stored_types(const MixtureProblem& problem, Run run) {
  if constexpr (sizeof(T) == 4) {
    const bool half_gradients = problem.d_out != nullptr && problem.d_out[0].half;
    if (problem.expert.half && half_gradients) return run(uint16_t{}, uint16_t{});
    if (problem.expert.half) return run(uint16_t{}, T{});
    if (half_gradients) return run(T{}, uint16_t{});
  }
  run(T{}, T{});
}

inline int64_t mixture_tasks(const MixtureProblem& problem, int64_t threads) {
  return at_most(threads, ceil_div(problem.rows, kBlockRows));
}

template <class T>
size_t mixture_workspace_bytes(const MixtureProblem& problem, int64_t threads) {
  Arena arena{nullptr};
  const Mixture<T, T, T> one(problem, arena);
  return arena.used * mixture_tasks(problem, threads);
}

template <class T>
void run_mixture(const MixtureProblem& problem, void* workspace, int64_t threads) {
  const int64_t tasks = mixture_tasks(problem, threads);
  const size_t own = mixture_workspace_bytes<T>(problem, 1);
  by_stored_types<T>(problem, [&]<class E, class G>(E, G) {
    parallel_for(tasks, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        Arena arena{static_cast<char*>(workspace) + task * own};
        const Mixture<T, E, G> mixture(problem, arena);
        mixture.rows_between(problem.rows * task / tasks, problem.rows * (task + 1) / tasks);
      }
    });
  });
}

template <class T, class F = T>
constexpr MlpKernel<T> mlp_kernel() {
  return {mlp_workspace_bytes<T, F>,  mlp_forward<T, F>, mlp_backward<T, F>,
          mixture_workspace_bytes<T>, run_mixture<T>,    log_losses<T>};
}
