// Integer arithmetic on sizes, and the workspace of a kernel. Included once per instruction set (see vectors.inl).
#pragma once

inline int64_t at_most(int64_t x, int64_t bound) { return x < bound ? x : bound; }
inline int64_t at_least(int64_t x, int64_t bound) { return x > bound ? x : bound; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Allocates arrays within the workspace, each from a cache line of its own. With base = null it only adds up sizes.
struct Arena {
  char* base;
  size_t used = 0;
  template <class P>
  void take(int64_t count, P*& pointer) {
    pointer = reinterpret_cast<P*>(base + used);
    used += (count * sizeof(P) + 63) / 64 * 64;
  }
};
