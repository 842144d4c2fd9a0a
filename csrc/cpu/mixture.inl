// Mixtures of experts, forward and backward. Included once per instruction set, after mlp.inl.

// The softmax of a row's logits, task by task: weight [T, k].
template <class T>
void gate_weights(const MixtureProblem& q, int64_t row, T* weight) {
  const int64_t n = q.tasks * q.experts;
  for (int64_t i = 0; i < n; i += kLanes<T>) store(weight + i, read<T>(q.logits, row * n + i, n - i));
  for (int64_t t = 0; t < q.tasks; ++t) {
    T *w = weight + t * q.experts, greatest = w[0];
    for (int64_t i = 1; i < q.experts; ++i) greatest = w[i] > greatest ? w[i] : greatest;
    for (int64_t i = 0; i < q.experts; ++i) w[i] = (w[i] - greatest) * T(1.44269504088896340736);
  }
  for (int64_t i = 0; i < n; i += kLanes<T>) store(weight + i, exp2_of<T>(load(weight + i)));
  for (int64_t t = 0; t < q.tasks; ++t) {
    T *w = weight + t * q.experts, sum = 0;
    for (int64_t i = 0; i < q.experts; ++i) sum += w[i];
    for (int64_t i = 0; i < q.experts; ++i) w[i] /= sum;
  }
}

template <class T>
void mix_row(const MixtureProblem& q, int64_t row, const T* weight) {
  for (int64_t c = 0; c < q.width; c += kLanes<T>)
    for (int64_t t = 0; t < q.tasks; ++t) {
      Vec<T> sum = {};
      for (int64_t i = 0; i < q.experts; ++i)
        sum += weight[t * q.experts + i] * read<T>(q.expert, (row * q.experts + i) * q.width + c, q.width - c);
      write<T>(q.out[t], row * q.width + c, q.width - c, sum);
    }
}

// d_expert_i = sum_t w_ti g_t;  d_logits_ti = w_ti (s_ti - sum_j w_tj s_tj) with s_ti = g_t . expert_i
template <class T>
void expert_gradients(const MixtureProblem& q, int64_t row, const T* weight) {
  for (int64_t i = 0; i < q.experts; ++i)
    for (int64_t c = 0; c < q.width; c += kLanes<T>) {
      Vec<T> sum = {};
      for (int64_t t = 0; t < q.tasks; ++t)
        if (q.d_out[t].data != nullptr)
          sum += weight[t * q.experts + i] * read<T>(q.d_out[t], row * q.width + c, q.width - c);
      write<T>(q.d_expert, (row * q.experts + i) * q.width + c, q.width - c, sum);
    }
}

template <class T>
void logit_gradients(const MixtureProblem& q, int64_t row, const T* weight, T* s) {
  const int64_t n = q.tasks * q.experts;
  for (int64_t t = 0; t < q.tasks; ++t) {
    const T* w = weight + t * q.experts;
    T *s_t = s + t * q.experts, mean = 0;
    for (int64_t i = 0; i < q.experts; ++i) {
      Vec<T> sum = {};
      for (int64_t c = 0; c < q.width && q.d_out[t].data != nullptr; c += kLanes<T>)
        sum += read<T>(q.d_out[t], row * q.width + c, q.width - c) *
               read<T>(q.expert, (row * q.experts + i) * q.width + c, q.width - c);
      s_t[i] = horizontal_sum<T>(sum);
      mean += w[i] * s_t[i];
    }
    for (int64_t i = 0; i < q.experts; ++i) s_t[i] = w[i] * (s_t[i] - mean);
  }
  for (int64_t i = 0; i < n; i += kLanes<T>) write<T>(q.d_logits, row * n + i, n - i, load(s + i));
}

template <class T>
struct Mixture {
  const MixtureProblem& q;
  int64_t tasks, row_elements;  // of the weights of a row, in whole vectors
  T* scratch;                   // per task, a row's weights and their gradients

  Mixture(const MixtureProblem& problem, int64_t threads, void* workspace)
      : q(problem), scratch(static_cast<T*>(workspace)) {
    tasks = at_most(threads, ceil_div(q.rows, kBlockRows));
    row_elements = ceil_div(q.tasks * q.experts, kLanes<T>) * kLanes<T>;
  }

  void rows_of(int64_t task) const {
    T *weight = scratch + task * 2 * row_elements, *s = weight + row_elements;
    for (int64_t row = q.rows * task / tasks; row < q.rows * (task + 1) / tasks; ++row) {
      gate_weights(q, row, weight);
      if (q.d_out == nullptr) {
        mix_row(q, row, weight);
      } else {
        expert_gradients(q, row, weight);
        logit_gradients(q, row, weight, s);
      }
    }
  }
};

template <class T>
size_t mixture_workspace_bytes(const MixtureProblem& problem, int64_t threads) {
  const Mixture<T> mixture(problem, threads, nullptr);
  return mixture.tasks * 2 * mixture.row_elements * sizeof(T);
}

template <class T>
void run_mixture(const MixtureProblem& problem, void* workspace, Parallel parallel) {
  Mixture<T> mixture(problem, parallel.threads, workspace);
  parallel.run(
      mixture.tasks, [](void* mixture, int64_t task) { static_cast<const Mixture<T>*>(mixture)->rows_of(task); },
      &mixture);
}

template <class T, class F = T>
MlpKernels<T> mlp_kernels() {
  return {mlp_workspace_bytes<T, F>, mlp_forward<T, F>, mlp_backward<T, F>, mixture_workspace_bytes<T>, run_mixture<T>};
}
