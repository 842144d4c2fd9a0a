// Bodies of the optimizer steps, compiled once for each instruction set.

namespace adaftr_fast {
namespace {

// Rows of table and state are fetched this many steps before they are needed.
constexpr int64_t kUpdateAhead = 12;

inline void prefetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 1);
}

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
      W* __restrict w = weight + row * width;
      const W* __restrict g = grad.values + u * width;
      for (int64_t e = 0; e < width; ++e) {
        const T old = load(w + e);
        store(w + e, old - lr * (load(g + e) + decay * old));
      }
    });
  }

  static void adagrad(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                      int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    const T epsilon = static_cast<T>(by.epsilon);
    for_each_row(weight, state, width, grad, width, begin, end, [&](int64_t u, int64_t row) {
      W* __restrict w = weight + row * width;
      T* __restrict sum = state + row * width;
      const W* __restrict values = grad.values + u * width;
      for (int64_t e = 0; e < width; ++e) {
        const T old = load(w + e), g = load(values + e) + decay * old;
        sum[e] += g * g;
        store(w + e, old - lr * g / (std::sqrt(sum[e]) + epsilon));
      }
    });
  }

  static void rowwise_adagrad(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                              int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    const T epsilon = static_cast<T>(by.epsilon);
    for_each_row(weight, state, 1, grad, width, begin, end, [&](int64_t u, int64_t row) {
      W* __restrict w = weight + row * width;
      const W* __restrict values = grad.values + u * width;
      T lanes[8] = {};  // independent partial sums, always the same, so the order of addition is fixed
      for (int64_t e = 0; e < width; ++e) {
        const T g = load(values + e) + decay * load(w + e);
        lanes[e % 8] += g * g;
      }
      const T squares =
          ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
      state[row] += squares / static_cast<T>(width);
      const T rate = lr / (std::sqrt(state[row]) + epsilon);
      for (int64_t e = 0; e < width; ++e) {
        const T old = load(w + e);
        store(w + e, old - rate * (load(values + e) + decay * old));
      }
    });
  }

  static void lazy_adam(W* weight, T* state, const RowGradient<W>& grad, const UpdateScalars& by, int64_t begin,
                        int64_t end) {
    const int64_t width = kWidth ? kWidth : grad.width;
    const T lr = static_cast<T>(by.step_size), decay = static_cast<T>(by.weight_decay);
    const T epsilon = static_cast<T>(by.epsilon);
    const T take1 = static_cast<T>(1 - by.beta1), take2 = static_cast<T>(1 - by.beta2);
    for_each_row(weight, state, 2 * width, grad, width, begin, end, [&](int64_t u, int64_t row) {
      W* __restrict w = weight + row * width;
      T* __restrict first = state + row * 2 * width;
      T* __restrict second = first + width;
      const W* __restrict values = grad.values + u * width;
      for (int64_t e = 0; e < width; ++e) {
        const T old = load(w + e), g = load(values + e) + decay * old;
        first[e] += take1 * (g - first[e]);
        second[e] += take2 * (g * g - second[e]);
        store(w + e, old - lr * first[e] / (std::sqrt(second[e]) + epsilon));
      }
    });
  }
};

// One entry a kernel: the width becomes a constant where it is a common one.
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

}  // namespace
}  // namespace adaftr_fast
