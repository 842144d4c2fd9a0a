// The log-loss of logits and its derivative. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/mlp/rows.inl"

template <class T>
void log_losses(const T* logits, const T* labels, int64_t count, T* losses, T* slopes) {
  const auto at = [](const T* x) { return Rows{const_cast<T*>(x), false}; };
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> z = read<T>(at(logits), i, count - i), y = read<T>(at(labels), i, count - i);
    const Vec<T> e = exp2_of<T>((z > 0 ? -z : z) * T(1.44269504088896340736));  // in [0, 1]
    const Vec<T> p = (z > 0 ? broadcast(T(1)) : e) / (e + T(1));
    write<T>(at(losses), i, count - i, (z > 0 ? z : Vec<T>{}) - z * y + log1p_of<T>(e));
    write<T>(at(slopes), i, count - i, p - y);
  }
}
