// The kernels of the optimizer steps. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/embedding/groups.inl"
#include "cpu/embedding/lookup/lookup.inl"

// Rows of table and state are fetched this many steps before they are needed.
constexpr int64_t kUpdateAhead = 32;

// Calls step(u, row) for rows [begin, end) while the rows ahead are fetched.
template <typename W, typename T, typename Step>
inline void for_each_row(const W* weight, const T* state, int64_t state_width, const RowGradient<W>& grad,
                         int64_t width, int64_t begin, int64_t end, Step step) {
  for (int64_t u = begin; u < end; ++u) {
    const int64_t ahead = grad.rows[u + kUpdateAhead < end ? u + kUpdateAhead : end - 1];
    prefetch(weight + ahead * width, width * sizeof(W));
    prefetch(state + ahead * state_width, state_width * sizeof(T));
    step(u, grad.rows[u]);
  }
}

template <typename W, int64_t kWidth>
struct Updates {
  using T = Compute<W>;

  static void sgd(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                  int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    for_each_row(weight, state, 0, grad, width, begin, end, [&](int64_t u, int64_t row) {
      for_each_group<kWidth>(width, [&](int64_t e, auto n) {
        W* to = weight + row * width + e;
        const Group<T> w = load_group(to, n), g = load_group(grad.values + u * width + e, n);
        store_group(to, w - lr * (g + decay * w), n);
      });
    });
  }

  static void adagrad(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                      int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    const T epsilon = static_cast<T>(by.epsilon);
    for_each_row(weight, state, width, grad, width, begin, end, [&](int64_t u, int64_t row) {
      for_each_group<kWidth>(width, [&](int64_t e, auto n) {
        W* to = weight + row * width + e;
        T* sum = state + row * width + e;
        const Group<T> w = load_group(to, n), g = load_group(grad.values + u * width + e, n) + decay * w;
        const Group<T> total = load_group(sum, n) + g * g;
        store_group(sum, total, n);
        store_group(to, w - lr * g / (square_root(total) + epsilon), n);
      });
    });
  }

  static void rowwise_adagrad(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                              int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    const T epsilon = static_cast<T>(by.epsilon);
    for_each_row(weight, state, 1, grad, width, begin, end, [&](int64_t u, int64_t row) {
      Group<T> squares = {};
      for_each_group<kWidth>(width, [&](int64_t e, auto n) {
        const Group<T> g = load_group(grad.values + u * width + e, n) + decay * load_group(weight + row * width + e, n);
        squares += g * g;
      });
      T total = 0;
      for (int64_t i = 0; i < kGroup; ++i) total += squares[i];
      state[row] += total / static_cast<T>(width);
      const T rate = lr / (square_root(state[row]) + epsilon);
      for_each_group<kWidth>(width, [&](int64_t e, auto n) {
        W* to = weight + row * width + e;
        const Group<T> w = load_group(to, n);
        store_group(to, w - rate * (load_group(grad.values + u * width + e, n) + decay * w), n);
      });
    });
  }

  static void lazy_adam(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                        int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    const T epsilon = static_cast<T>(by.epsilon);
    const T take1 = static_cast<T>(1 - by.beta1), take2 = static_cast<T>(1 - by.beta2);
    for_each_row(weight, state, 2 * width, grad, width, begin, end, [&](int64_t u, int64_t row) {
      for_each_group<kWidth>(width, [&](int64_t e, auto n) {
        W* to = weight + row * width + e;
        T* first = state + row * 2 * width + e;
        T* second = first + width;
        const Group<T> w = load_group(to, n), g = load_group(grad.values + u * width + e, n) + decay * w;
        Group<T> m = load_group(first, n), v = load_group(second, n);
        m += take1 * (g - m);
        v = (T(1) - take2) * v + take2 * g * g;  // v + take2 (g * g - v) would lose a small g * g
        store_group(first, m, n);
        store_group(second, v, n);
        store_group(to, w - lr * m / (square_root(v) + epsilon), n);
      });
    });
  }
};

// One function per kernel, in which common widths are constants.
#define ADAFTR_BY_WIDTH(kernel)                                                                                 \
  template <typename W>                                                                                         \
  void kernel(W* weight, Compute<W>* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin, \
              int64_t end) {                                                                                    \
    switch (grad.width) {                                                                                       \
      case 8:                                                                                                   \
        return Updates<W, 8>::kernel(weight, state, grad, by, begin, end);                                      \
      case 16:                                                                                                  \
        return Updates<W, 16>::kernel(weight, state, grad, by, begin, end);                                     \
      default:                                                                                                  \
        return Updates<W, 0>::kernel(weight, state, grad, by, begin, end);                                      \
    }                                                                                                           \
  }
ADAFTR_BY_WIDTH(sgd)
ADAFTR_BY_WIDTH(adagrad)
ADAFTR_BY_WIDTH(rowwise_adagrad)
ADAFTR_BY_WIDTH(lazy_adam)
#undef ADAFTR_BY_WIDTH

template <typename W>
constexpr UpdateKernels<W> kUpdates = {sgd<W>, adagrad<W>, rowwise_adagrad<W>, lazy_adam<W>};
