// torch.ops.adaftr_fast.squared_norm and scaled on CPU, and the gradient of the norm on every device. A step has a
// dozen dense weights, most of them small: an op of PyTorch for each costs more than its sum.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns wrongly about the vector<bool> of torch's Function::apply.
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#endif
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "cpu/norms/scaled.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/chunks.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::vector<Tensor>;
using Scales = at::ArrayRef<double>;

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
double weighted_sum(TensorList tensors, Scales scales) {
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
void scale_all(TensorList tensors, const std::vector<double>& factors, TensorList results) {
  over_chunks(chunks_of(tensors, kChunk), [&](const Chunk& c, int64_t) {
    const T* x = tensors[c.tensor].const_data_ptr<T>();
    T *y = results[c.tensor].mutable_data_ptr<T>(), factor = T(factors[c.tensor]);
    for (int64_t i = c.begin; i < c.end; ++i) y[i] = factor * x[i];
  });
}

// Contiguous, in float or double.
Tensors readable(TensorList tensors) {
  const bool wide = tensors[0].scalar_type() == at::kDouble;
  Tensors all;
  for (const Tensor& each : tensors) all.push_back(each.to(wide ? at::kDouble : at::kFloat).contiguous());
  return all;
}

void check_sizes(const char* op, TensorList tensors, Scales scales) {
  TORCH_CHECK_VALUE(tensors.size() == scales.size(), op, ": expected a scale for each of ", tensors.size(),
                    " tensors, got ", scales.size());
  for (const Tensor& each : tensors)
    TORCH_CHECK_VALUE(each.is_cpu() && each.scalar_type() == tensors[0].scalar_type(), op,
                      ": tensors must be on the CPU and share a dtype, got ", each.device(), " ", each.scalar_type(),
                      " beside ", tensors[0].scalar_type());
}

Tensor squared_norm(TensorList tensors, Scales scales) {
  TORCH_CHECK(!tensors.empty(), "squared_norm: tensors must hold at least one tensor, got none");
  check_sizes("squared_norm", tensors, scales);
  const Tensors all = readable(tensors);
  const bool wide = all[0].scalar_type() == at::kDouble;
  return at::full({}, wide ? weighted_sum<double>(all, scales) : weighted_sum<float>(all, scales),
                  tensors[0].options());
}

Tensors scaled(const Tensor& factor, TensorList tensors, Scales scales) {
  check_sizes("scaled", tensors, scales);
  TORCH_CHECK_VALUE(factor.dim() == 0, "scaled: factor must be 0-dim, got ", factor.sizes());
  if (tensors.empty()) return {};
  const Tensors all = readable(tensors);
  Tensors results;
  for (const Tensor& each : all) results.push_back(cached_empty(each.sizes(), each.options()));
  std::vector<double> factors;
  for (const double scale : scales) factors.push_back(scale * factor.item<double>());
  const bool wide = all[0].scalar_type() == at::kDouble;
  (wide ? scale_all<double> : scale_all<float>)(all, factors, results);
  for (size_t t = 0; t < results.size(); ++t) results[t] = results[t].to(tensors[t].scalar_type());
  return results;
}

struct SquaredNorm : torch::autograd::Function<SquaredNorm> {
  static Tensor forward(AutogradContext* ctx, TensorList tensors, Scales scales) {
    const at::AutoDispatchBelowADInplaceOrView below;
    using Op = Tensor(TensorList, Scales);
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::squared_norm", "").typed<Op>();
    ctx->save_for_backward(tensors.vec());
    ctx->saved_data["scales"] = scales.vec();
    return op.call(tensors, scales);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto of_all = ctx->saved_data["scales"].toDoubleVector();
    variable_list tensors;
    std::vector<double> scales;
    for (size_t t = 0; t < saved.size(); ++t)
      if (ctx->needs_input_grad(t)) tensors.push_back(saved[t]), scales.push_back(2 * of_all[t]);
    const Tensors products =
        at::GradMode::is_enabled() ? differentiable(grads[0], tensors, scales) : call_scaled(grads[0], tensors, scales);
    variable_list found(saved.size() + 1);  // the last is of the scales
    for (size_t t = 0, next = 0; t < saved.size(); ++t)
      if (ctx->needs_input_grad(t)) found[t] = products[next++];
    return found;
  }

  static Tensors differentiable(const Tensor& grad, const variable_list& tensors, Scales scales) {
    Tensors found;
    for (size_t t = 0; t < tensors.size(); ++t) found.push_back(tensors[t].mul(grad.mul(scales[t])));
    return found;
  }
};

Tensor differentiable_norm(TensorList tensors, Scales scales) { return SquaredNorm::apply(tensors, scales); }

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("squared_norm", squared_norm);
  m.impl("scaled", scaled);
}

TORCH_LIBRARY_IMPL(adaftr_fast, Autograd, m) { m.impl("squared_norm", differentiable_norm); }

}  // namespace adaftr_fast
