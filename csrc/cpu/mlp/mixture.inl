// Mixtures of experts, forward and backward. Included once per instruction set (see vectors.inl).
//
// The softmax is taken of a block of rows at a time, whose logits lie one after another and fill whole vectors; in the
// backward a row's experts and gradients are widened once, for all products among them.
#pragma once

#include "cpu/mlp/layers.inl"

template <class T>
struct Mixture {
  const MixtureProblem& q;
  int64_t tasks, gates, padded;  // T * k; v in whole vectors
  Arena arena;
  // Per thread: the weights of a block [rows][T][k] and the gradients of their logits; a row's experts [k][padded] and
  // gradients [T][padded].
  T *weights, *d_logits, *experts, *d_outs;

  Mixture(const MixtureProblem& problem, int64_t threads, void* base) : q(problem), arena{static_cast<char*>(base)} {
    tasks = at_most(threads, ceil_div(q.rows, kBlockRows));
    gates = q.tasks * q.experts;
    padded = ceil_div(q.width, kLanes<T>) * kLanes<T>;
    const bool backward = q.d_out != nullptr;
    arena.take(tasks * gates_size(), weights);
    arena.take(backward ? tasks * gates_size() : 0, d_logits);
    arena.take(backward ? tasks * q.experts * padded : 0, experts);
    arena.take(backward ? tasks * q.tasks * padded : 0, d_outs);
  }

  int64_t gates_size() const { return kBlockRows * gates + kLanes<T>; }  // the last vector may be written whole

  void rows_of(int64_t task) const {
    T *weight = weights + task * gates_size(), *d_logit = d_logits + task * gates_size();
    const int64_t end = q.rows * (task + 1) / tasks;
    for (int64_t row = q.rows * task / tasks; row < end; row += kBlockRows) {
      const int64_t rows = at_most(end - row, kBlockRows);
      read_weights(row, rows, weight);
      for (int64_t r = 0; r < rows; ++r) {
        if (q.d_out == nullptr)
          mix(row + r, weight + r * gates);
        else
          differentiate(task, row + r, weight + r * gates, d_logit + r * gates);
      }
      if (q.d_out == nullptr) continue;
      for (int64_t i = 0; i < rows * gates; i += kLanes<T>)
        write<T>(q.d_logits, row * gates + i, rows * gates - i, load(d_logit + i));
    }
  }

  // The softmax of every task's logits, of a block of rows.
  void read_weights(int64_t row, int64_t rows, T* weight) const {
    const int64_t n = rows * gates, k = q.experts;
    for (int64_t i = 0; i < n; i += kLanes<T>) store(weight + i, read<T>(q.logits, row * gates + i, n - i));
    for (T* w = weight; w < weight + n; w += k) {
      T greatest = w[0];
      for (int64_t i = 1; i < k; ++i) greatest = w[i] > greatest ? w[i] : greatest;
      for (int64_t i = 0; i < k; ++i) w[i] = (w[i] - greatest) * T(1.44269504088896340736);
    }
    for (int64_t i = 0; i < n; i += kLanes<T>) store(weight + i, exp2_of<T>(load(weight + i)));
    for (T* w = weight; w < weight + n; w += k) {
      T sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += w[i];
      for (int64_t i = 0; i < k; ++i) w[i] /= sum;
    }
  }

  void mix(int64_t row, const T* weight) const {
    const Rows expert = q.expert;
    for (int64_t t = 0; t < q.tasks; ++t, weight += q.experts) {
      const Rows out = q.out[t];
      for (int64_t c = 0; c < q.width; c += kLanes<T>) {
        Vec<T> sum = {};
        for (int64_t i = 0; i < q.experts; ++i)
          sum += weight[i] * read<T>(expert, (row * q.experts + i) * q.width + c, q.width - c);
        write<T>(out, row * q.width + c, q.width - c, sum);
      }
    }
  }

  // d_expert_i = sum_t w_ti g_t;  d_logits_ti = w_ti (s_ti - sum_j w_tj s_tj) with s_ti = g_t . expert_i
  void differentiate(int64_t task, int64_t row, const T* weight, T* d_logit) const {
    T *expert = experts + task * q.experts * padded, *g = d_outs + task * q.tasks * padded;
    for (int64_t i = 0; i < q.experts; ++i) widen_row(q.expert, row * q.experts + i, expert + i * padded);
    for (int64_t t = 0; t < q.tasks; ++t) widen_row(q.d_out[t], row, g + t * padded);
    for (int64_t i = 0; i < q.experts; ++i)
      for (int64_t c = 0; c < q.width; c += kLanes<T>) {
        Vec<T> sum = {};
        for (int64_t t = 0; t < q.tasks; ++t) sum += weight[t * q.experts + i] * load(g + t * padded + c);
        write<T>(q.d_expert, (row * q.experts + i) * q.width + c, q.width - c, sum);
      }
    for (int64_t t = 0; t < q.tasks; ++t, weight += q.experts, d_logit += q.experts) {
      T mean = 0;
      for (int64_t i = 0; i < q.experts; ++i) {
        d_logit[i] = dot(g + t * padded, expert + i * padded);
        mean += weight[i] * d_logit[i];
      }
      for (int64_t i = 0; i < q.experts; ++i) d_logit[i] = weight[i] * (d_logit[i] - mean);
    }
  }

  // A row of v numbers; zeros where there is no matrix, and up to a whole vector.
  void widen_row(Rows from, int64_t row, T* to) const {
    for (int64_t c = 0; c < q.width; c += kLanes<T>)
      store(to + c, from.data == nullptr ? Vec<T>{} : read<T>(from, row * q.width + c, q.width - c));
  }

  T dot(const T* x, const T* y) const {
    Vec<T> sum = {};
    for (int64_t c = 0; c < padded; c += kLanes<T>) sum += load(x + c) * load(y + c);
    return horizontal_sum<T>(sum);
  }
};

template <class T>
size_t mixture_workspace_bytes(const MixtureProblem& problem, int64_t threads) {
  return Mixture<T>(problem, threads, nullptr).arena.used;
}

template <class T>
void run_mixture(const MixtureProblem& problem, void* workspace, int64_t threads) {
  const Mixture<T> mixture(problem, threads, workspace);
  parallel_for(mixture.tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) mixture.rows_of(task);
  });
}

template <class T, class F = T>
constexpr MlpKernel<T> mlp_kernel() {
  return {mlp_workspace_bytes<T, F>, mlp_forward<T, F>, mlp_backward<T, F>, mixture_workspace_bytes<T>, run_mixture<T>};
}
