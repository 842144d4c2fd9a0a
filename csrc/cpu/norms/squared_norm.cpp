// torch.ops.adaftr_fast.squared_norm and scaled on CPU. A step has a dozen dense weights, most of them small: an op of
// PyTorch for each costs more than its sum.
#include <algorithm>
#include <vector>

#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/chunks.h"

namespace adaftr_fast {
namespace {

using Scales = std::vector<double>;

constexpr int64_t kChunk = 4096;  // elements of a task; their sum is in the tensor's type, that of chunks in double

template <class T>
double sum_of_squares(const T* x, int64_t count) {
  constexpr int kLanes = 16;  // independent sums, which the compiler keeps in vectors
  T sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane] * x[i + lane];
  double sum = 0;
  for (; i < count; ++i) sum += double(x[i]) * x[i];
  for (const T each : sums) sum += each;
  return sum;
}

template <class T>
double weighted_sum(const Tensors& tensors, const Scales& scales) {
  const auto chunks = chunks_of(tensors, kChunk);
  std::vector<double> sums(chunks.size());
  over_chunks(chunks, [&](const Chunk& c, int64_t i) {
    sums[i] = sum_of_squares(tensors[c.tensor].const_data_ptr<T>() + c.begin, c.end - c.begin);
  });
  double sum = 0;
  for (size_t i = 0; i < chunks.size(); ++i) sum += scales[chunks[i].tensor] * sums[i];
  return sum;
}

template <class T>
void scale_all(const Tensors& tensors, const std::vector<double>& factors, const Tensors& results) {
  over_chunks(chunks_of(tensors, kChunk), [&](const Chunk& c, int64_t) {
    const T* x = tensors[c.tensor].const_data_ptr<T>();
    T *y = mutable_data_of<T>(results[c.tensor]), factor = T(factors[c.tensor]);
    for (int64_t i = c.begin; i < c.end; ++i) y[i] = factor * x[i];
  });
}

// Contiguous, in float or double.
Tensors readable(const Tensors& tensors) {
  const bool wide = tensors[0].scalar_type() == kDouble;
  Tensors all;
  for (const Tensor& each : tensors) all.push_back(as_contiguous(each, wide ? kDouble : kFloat));
  return all;
}

void check_sizes(const char* op, const Tensors& tensors, const Scales& scales) {
  ADAFTR_CHECK_VALUE(tensors.size() == scales.size(), op, ": expected a scale for each of ", tensors.size(),
                     " tensors, got ", scales.size());
  for (const Tensor& each : tensors)
    ADAFTR_CHECK_VALUE(each.is_cpu() && each.scalar_type() == tensors[0].scalar_type(), op,
                       ": tensors must be on the CPU and share a dtype, got ",
                       each.is_cpu() ? "cpu " : "another device ", each.scalar_type(), " beside ",
                       tensors[0].scalar_type());
}

Tensor squared_norm(const Tensors& tensors, const Scales& scales) {
  ADAFTR_CHECK(!tensors.empty(), "squared_norm: tensors must hold at least one tensor, got none");
  check_sizes("squared_norm", tensors, scales);
  const Tensors all = readable(tensors);
  const bool wide = all[0].scalar_type() == kDouble;
  return scalar(wide ? weighted_sum<double>(all, scales) : weighted_sum<float>(all, scales), tensors[0].scalar_type());
}

Tensors scaled(const Tensor& factor, const Tensors& tensors, const Scales& scales) {
  check_sizes("scaled", tensors, scales);
  ADAFTR_CHECK_VALUE(factor.dim() == 0, "scaled: factor must be 0-dim, got ", shape(factor));
  if (tensors.empty()) return {};
  const Tensors all = readable(tensors);
  Tensors results;
  for (const Tensor& each : all) results.push_back(cached_empty(each.sizes(), each.scalar_type()));
  const double common = value_of(factor);
  std::vector<double> factors;
  for (const double scale : scales) factors.push_back(scale * common);
  const bool wide = all[0].scalar_type() == kDouble;
  (wide ? scale_all<double> : scale_all<float>)(all, factors, results);
  for (size_t t = 0; t < results.size(); ++t) results[t] = as_type(results[t], tensors[t].scalar_type());
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("squared_norm", TORCH_BOX(&squared_norm));
  m.impl("scaled", TORCH_BOX(&scaled));
}

}  // namespace adaftr_fast
