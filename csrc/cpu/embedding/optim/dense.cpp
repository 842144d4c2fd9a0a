// The op adaftr_fast::dense_adam_: a step of Adam on many tensors at once. A model has a few dozen dense weights, most
// of them small: PyTorch's fused Adam starts its threads for each, and counts the steps of each by an op.

#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/chunks.h"

namespace adaftr_fast {
namespace {

constexpr int64_t kChunk = 4096;  // elements of a task

// Whether `each` has the shape and the dtype of `weight`, and is contiguous.
bool fits(const Tensor& each, const Tensor& weight) {
  return each.is_cpu() && each.is_contiguous() && each.scalar_type() == weight.scalar_type() &&
         same_sizes(each, weight);
}

void check_dense_adam(const Tensors& weights, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                      const Tensors& steps) {
  const size_t count = weights.size();
  if (count != 0) {
    const ScalarType type = weights[0].scalar_type();
    ADAFTR_CHECK_TYPE(type == kFloat || type == kDouble, "dense_adam_: weights must be float32 or float64, got ", type);
  }
  ADAFTR_CHECK_VALUE(
      grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count && steps.size() == count,
      "dense_adam_: expected ", count, " tensors in each list, as in weights, got ", grads.size(), ", ",
      exp_avgs.size(), ", ", exp_avg_sqs.size(), " and ", steps.size());
  for (size_t i = 0; i < count; ++i) {
    const Tensor& weight = weights[i];
    ADAFTR_CHECK_VALUE(weight.scalar_type() == weights[0].scalar_type() && fits(weight, weight) &&
                           fits(grads[i], weight) && fits(exp_avgs[i], weight) && fits(exp_avg_sqs[i], weight),
                       "dense_adam_: weight, grad and moments number ", i, " must be contiguous ",
                       weights[0].scalar_type(), " ", shape(weight), " on the CPU");
    const ScalarType type = steps[i].scalar_type();
    ADAFTR_CHECK_VALUE(steps[i].is_cpu() && steps[i].dim() == 0 && (type == kFloat || type == kDouble),
                       "dense_adam_: steps must be 0-dim float32 or float64 on the CPU, got ", type, " ",
                       shape(steps[i]));
  }
}

// Counts in the type that torch gives steps, which follows the default dtype. Returns the steps before.
double count_step(const Tensor& step) {
  if (step.scalar_type() == kFloat) return (*mutable_data_of<float>(step))++;
  return (*mutable_data_of<double>(step))++;
}

void dense_adam_(const Tensors& weights, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                 const Tensors& steps, double lr, double beta1, double beta2, double epsilon) {
  check_dense_adam(weights, grads, exp_avgs, exp_avg_sqs, steps);
  if (weights.empty()) return;
  std::vector<AdamClock> clocks;
  for (const Tensor& step : steps) clocks.push_back({count_step(step), beta1, beta2, epsilon, 0, 0, 0, 0});
  const auto run = [&](auto w) {
    using W = decltype(w);
    const auto step = typed_kernels<W>().adam.dense;
    over_chunks(chunks_of(weights, kChunk), [&](const Chunk& c, int64_t) {
      step(clocks[c.tensor], lr, mutable_data_of<W>(weights[c.tensor]) + c.begin,
           mutable_data_of<W>(exp_avgs[c.tensor]) + c.begin, mutable_data_of<W>(exp_avg_sqs[c.tensor]) + c.begin,
           data_of<W>(grads[c.tensor]) + c.begin, c.end - c.begin);
    });
  };
  weights[0].scalar_type() == kFloat ? run(float{}) : run(double{});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) { m.impl("dense_adam_", TORCH_BOX(&dense_adam_)); }

}  // namespace adaftr_fast
