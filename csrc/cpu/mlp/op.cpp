// torch.ops.adaftr_fast.mlp, mixture and log_loss on CPU: checks, dispatch by instruction set, the launch.

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/mlp/kernels.h"
#include "cpu/runtime/caching_allocator.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

using Ints = std::vector<int64_t>;
using Gradients = std::vector<OptionalTensor>;

constexpr KernelTables<MlpKernels> kTables = {&generic::kMlp,
#if defined(__x86_64__)
                                              &avx2::kMlp, &avx512::kMlp, &avx512_bf16::kMlp
#elif defined(__aarch64__)
                                              &neon::kMlp, &neon_bf16::kMlp
#endif
};

// half: of results in bfloat16.
template <class T>
MlpKernel<T> kernel_for(bool half) {
  if constexpr (std::is_same_v<T, double>) {
    return best_kernel(kTables, &MlpKernels::f64);
  } else {
    MlpKernel<float> kernel{};
    if (half) kernel = best_kernel(kTables, &MlpKernels::bf16);
    return kernel ? kernel : best_kernel(kTables, &MlpKernels::f32);
  }
}

Tensor workspace_of(size_t bytes) { return cached_empty({static_cast<int64_t>(bytes)}, kByte); }

Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.scalar_type() == kBFloat16}; }

// Contiguous, and of type T or bfloat16 where that is float; a tensor the launch keeps alive.
Tensor stored(const char* op, const char* name, const Tensor& x, ScalarType dtype) {
  ADAFTR_CHECK_TYPE(x.scalar_type() == dtype || (dtype == kFloat && x.scalar_type() == kBFloat16), op, ": ", name,
                    " must be ", dtype, dtype == kFloat ? " or BFloat16" : "", ", got ", x.scalar_type());
  return as_contiguous(x);
}

// The tensors of one call, and the kernel's view of them.
template <class T>
struct Stacks {
  static constexpr ScalarType kType = kTypeOf<T>;
  Tensors keep;
  std::vector<MlpInput> inputs;
  std::vector<MlpStack> stacks;
  std::vector<MlpLayer<T>> layers;
  int64_t rows;

  Rows held(const char* name, const Tensor& x) { return rows_of(keep.emplace_back(stored("mlp", name, x, kType))); }

  Stacks(const Tensors& x, const Ints& reads, const Tensors& weights, const Tensors& biases, const Ints& depths,
         const Ints& rectified) {
    keep.reserve(x.size() + 4 * weights.size());
    check_sizes(x, reads, weights, biases, depths, rectified);
    rows = x[0].size(0);
    for (const Tensor& each : x) inputs.push_back({each.size(1), held("inputs", each), {nullptr, false}});
    int64_t l = 0;
    for (size_t s = 0; s < reads.size(); ++s) {
      stacks.push_back({reads[s], l, depths[s]});
      int64_t width = x[reads[s]].size(1);
      for (int64_t d = 0; d < depths[s]; ++d, ++l) {
        const Tensor &w = weights[l], &b = biases[l];
        ADAFTR_CHECK_VALUE(w.dim() == 2 && w.size(1) == width && w.size(0) > 0 && width > 0, "mlp: weights[", l,
                           "] must be [out, ", width, "], got ", shape(w));
        ADAFTR_CHECK_VALUE(b.dim() == 1 && b.size(0) == w.size(0), "mlp: biases[", l, "] must be [", w.size(0),
                           "], got ", shape(b));
        ADAFTR_CHECK_TYPE(w.scalar_type() == kType && b.scalar_type() == kType, "mlp: weights[", l, "] and biases[", l,
                          "] must be ", kType, ", got ", w.scalar_type(), " and ", b.scalar_type());
        MlpLayer<T> layer{};
        layer.in = width, layer.out = width = w.size(0), layer.rectified = d < rectified[s];
        layer.weight = static_cast<const T*>(keep.emplace_back(as_contiguous(w)).const_data_ptr());
        layer.bias = static_cast<const T*>(keep.emplace_back(as_contiguous(b)).const_data_ptr());
        layers.push_back(layer);
      }
    }
  }

  static void check_sizes(const Tensors& x, const Ints& reads, const Tensors& weights, const Tensors& biases,
                          const Ints& depths, const Ints& rectified) {
    ADAFTR_CHECK_VALUE(!x.empty() && !reads.empty(), "mlp: expected one input and one stack at least, got ", x.size(),
                       " and ", reads.size());
    ADAFTR_CHECK_VALUE(depths.size() == reads.size() && rectified.size() == reads.size(),
                       "mlp: reads, depths and rectified must have an entry a stack, got ", reads.size(), ", ",
                       depths.size(), " and ", rectified.size());
    int64_t layers = 0;
    const auto most = static_cast<int64_t>(weights.size());
    for (size_t s = 0; s < reads.size(); ++s) {
      ADAFTR_CHECK_VALUE(reads[s] >= 0 && reads[s] < static_cast<int64_t>(x.size()), "mlp: reads[", s,
                         "] must number one of ", x.size(), " inputs, got ", reads[s]);
      ADAFTR_CHECK_VALUE(depths[s] > 0 && rectified[s] >= 0 && rectified[s] <= depths[s], "mlp: depths[", s,
                         "] must be >= 1 and rectified[", s, "] between 0 and it, got ", depths[s], " and ",
                         rectified[s]);
      layers += std::min(depths[s], most + 1);  // whose sum does not overflow
    }
    ADAFTR_CHECK_VALUE(layers == most && weights.size() == biases.size(),
                       "mlp: weights and biases must be as many as the sum of depths, got ", weights.size(), " and ",
                       biases.size());
    for (const Tensor& each : x)
      ADAFTR_CHECK_VALUE(each.dim() == 2 && each.size(0) == x[0].size(0),
                         "mlp: inputs must be [B, width], of one B, got ", shape(each), " and ", shape(x[0]));
  }

  MlpProblem<T> problem() {
    return {rows,          int64_t(inputs.size()), int64_t(stacks.size()), int64_t(layers.size()),
            inputs.data(), stacks.data(),          layers.data()};
  }

  void run(bool backward) {
    if (rows == 0) return;
    const MlpProblem<T> q = problem();
    const auto kernel = kernel_for<T>(layers[0].output.half);
    const int64_t threads = thread_count();
    const Tensor workspace = workspace_of(kernel.workspace_bytes(q, backward, threads));
    (backward ? kernel.backward : kernel.forward)(q, workspace.mutable_data_ptr(), threads);
  }
};

template <class T>
Tensors forward_of(const Tensors& x, const Ints& reads, const Tensors& weights, const Tensors& biases,
                   const Ints& depths, const Ints& rectified, bool reduced) {
  Stacks<T> stacks(x, reads, weights, biases, depths, rectified);
  const ScalarType type = reduced ? kBFloat16 : Stacks<T>::kType;
  Tensors outputs;
  for (MlpLayer<T>& layer : stacks.layers) {
    outputs.push_back(cached_empty({stacks.rows, layer.out}, type));
    layer.output = rows_of(outputs.back());
  }
  stacks.run(false);
  return outputs;
}

Tensors mlp(const Tensors& inputs, const Ints& reads, const Tensors& weights, const Tensors& biases, const Ints& depths,
            const Ints& rectified, bool reduced) {
  const bool wide = !inputs.empty() && inputs[0].scalar_type() == kDouble;
  ADAFTR_CHECK_VALUE(!(wide && reduced),
                     "mlp: reduced outputs are bfloat16, of float32 or bfloat16 inputs, got Double");
  return (wide ? forward_of<double> : forward_of<float>)(inputs, reads, weights, biases, depths, rectified, reduced);
}

// d_inputs (empty where not wanted), d_weights, d_biases.
template <class T>
Tensors backward_of(const Gradients& gradients, const Tensors& x, const Tensors& outputs, const Ints& reads,
                    const Tensors& weights, const Tensors& biases, const Ints& depths, const Ints& rectified,
                    const Ints& wanted) {
  Stacks<T> stacks(x, reads, weights, biases, depths, rectified);
  ADAFTR_CHECK_VALUE(
      gradients.size() == weights.size() && outputs.size() == weights.size() && wanted.size() == x.size(),
      "mlp_backward: expected a gradient and an output a layer and a wanted an input, got ", gradients.size(), ", ",
      outputs.size(), " and ", wanted.size());
  Tensors results;
  for (size_t i = 0; i < x.size(); ++i) {
    results.push_back(wanted[i] ? cached_empty(x[i].sizes(), x[i].scalar_type()) : empty({0}, x[i].scalar_type()));
    if (wanted[i]) stacks.inputs[i].d_value = rows_of(results.back());
  }
  const auto gradient_of = [&](const Tensor& parameter) {
    results.push_back(cached_empty(parameter.sizes(), parameter.scalar_type()));
    if (stacks.rows == 0) zero(results.back());
    return static_cast<T*>(results.back().mutable_data_ptr());
  };
  for (size_t l = 0; l < weights.size(); ++l) stacks.layers[l].d_weight = gradient_of(weights[l]);
  for (size_t l = 0; l < weights.size(); ++l) {
    MlpLayer<T>& layer = stacks.layers[l];
    layer.d_bias = gradient_of(biases[l]);
    ADAFTR_CHECK_VALUE(outputs[l].dim() == 2 && outputs[l].size(0) == stacks.rows && outputs[l].size(1) == layer.out,
                       "mlp_backward: outputs[", l, "] must be [", stacks.rows, ", ", layer.out, "], got ",
                       shape(outputs[l]));
    layer.output = stacks.held("outputs", outputs[l]);
    const OptionalTensor& gradient = gradients[l];
    layer.d_output = {nullptr, false};
    if (!gradient.has_value()) continue;
    ADAFTR_CHECK_VALUE(same_sizes(*gradient, outputs[l]), "mlp_backward: gradients[", l, "] must be ",
                       shape(outputs[l]), ", got ", shape(*gradient));
    layer.d_output = stacks.held("gradients", *gradient);
  }
  stacks.run(true);
  return results;
}

Tensors mlp_backward(const Gradients& gradients, const Tensors& inputs, const Tensors& outputs, const Ints& reads,
                     const Tensors& weights, const Tensors& biases, const Ints& depths, const Ints& rectified,
                     const Ints& wanted) {
  const bool wide = !inputs.empty() && inputs[0].scalar_type() == kDouble;
  return (wide ? backward_of<double> : backward_of<float>)(gradients, inputs, outputs, reads, weights, biases, depths,
                                                           rectified, wanted);
}

void check_mixture(const Tensor& experts, const Tensor& logits) {
  ADAFTR_CHECK_VALUE(experts.dim() == 3 && experts.size(1) > 0, "mixture: experts must be [B, k, v] with k >= 1, got ",
                     shape(experts));
  ADAFTR_CHECK_VALUE(
      logits.dim() == 3 && logits.size(0) == experts.size(0) && logits.size(2) == experts.size(1) && logits.size(1) > 0,
      "mixture: logits must be [", experts.size(0), ", T, ", experts.size(1), "] with T >= 1, got ", shape(logits));
}

void run_mixture(MixtureProblem& q, bool wide) {
  if (q.rows == 0) return;
  const int64_t threads = thread_count();
  const auto go = [&](const auto& kernel) {
    const Tensor workspace = workspace_of(kernel.mixture_workspace_bytes(q, threads));
    kernel.mixture(q, workspace.mutable_data_ptr(), threads);
  };
  if (wide)
    go(kernel_for<double>(false));
  else
    go(kernel_for<float>(q.expert.half));
}

MixtureProblem mixture_problem(const Tensor& experts, const Tensor& logits) {
  return {experts.size(0), logits.size(1), experts.size(1), experts.size(2),  rows_of(experts),
          rows_of(logits), nullptr,        nullptr,         {nullptr, false}, {nullptr, false}};
}

Tensors mixture(const Tensor& experts, const Tensor& logits) {
  check_mixture(experts, logits);
  const bool wide = experts.scalar_type() == kDouble;
  const auto dtype = wide ? kDouble : kFloat;
  const Tensor x = stored("mixture", "experts", experts, dtype), gates = stored("mixture", "logits", logits, dtype);
  Tensors outputs;
  std::vector<Rows> out;
  for (int64_t t = 0; t < logits.size(1); ++t) {
    outputs.push_back(cached_empty({x.size(0), x.size(2)}, x.scalar_type()));
    out.push_back(rows_of(outputs.back()));
  }
  MixtureProblem q = mixture_problem(x, gates);
  q.out = out.data();
  run_mixture(q, wide);
  return outputs;
}

std::tuple<Tensor, Tensor> mixture_backward(const Gradients& gradients, const Tensor& experts, const Tensor& logits) {
  check_mixture(experts, logits);
  ADAFTR_CHECK_VALUE(static_cast<int64_t>(gradients.size()) == logits.size(1), "mixture_backward: expected ",
                     logits.size(1), " gradients, got ", gradients.size());
  const bool wide = experts.scalar_type() == kDouble;
  const auto dtype = wide ? kDouble : kFloat;
  const Tensor x = stored("mixture", "experts", experts, dtype), gates = stored("mixture", "logits", logits, dtype);
  Tensors keep;
  bool half = true;  // all of them; else they are converted to dtype, so that the kernel knows one type
  for (const OptionalTensor& gradient : gradients) {
    if (!gradient.has_value()) continue;
    ADAFTR_CHECK_VALUE(gradient->dim() == 2 && gradient->size(0) == x.size(0) && gradient->size(1) == x.size(2),
                       "mixture_backward: gradients must be [", x.size(0), ", ", x.size(2), "], got ",
                       shape(*gradient));
    keep.push_back(stored("mixture_backward", "gradients", *gradient, dtype));
    half &= keep.back().scalar_type() == kBFloat16;
  }
  half &= !wide;
  std::vector<Rows> d_out(gradients.size(), {nullptr, half});
  for (size_t t = 0, given = 0; t < gradients.size(); ++t) {
    if (!gradients[t].has_value()) continue;
    Tensor& gradient = keep[given++];
    if (!half) gradient = as_type(gradient, dtype);
    d_out[t] = rows_of(gradient);
  }
  const Tensor d_experts = cached_empty(x.sizes(), x.scalar_type()),
               d_logits = cached_empty(gates.sizes(), gates.scalar_type());
  MixtureProblem q = mixture_problem(x, gates);
  q.d_out = d_out.data(), q.d_expert = rows_of(d_experts), q.d_logits = rows_of(d_logits);
  run_mixture(q, wide);
  return {d_experts, d_logits};
}

template <class T>
void run_log_loss(const Tensor& z, const Tensor& y, const OptionalTensor& weight, double divisor, const Tensor& means,
                  const Tensor& slopes) {
  constexpr int64_t kRows = 512;  // of a task, whose sums do not depend on the number of threads
  const int64_t rows = z.size(0), columns = z.size(1), tasks = (rows + kRows - 1) / kRows;
  const auto kernel = kernel_for<T>(false).log_loss;
  const Tensor losses = cached_empty(z.sizes(), z.scalar_type());
  std::vector<double> sums(tasks * columns);
  const T* weights = data_of<T>(weight);
  parallel_for(tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task * kRows, end = std::min(begin + kRows, rows), at = begin * columns;
      T *loss = mutable_data_of<T>(losses) + at, *slope = mutable_data_of<T>(slopes) + at;
      kernel(data_of<T>(z) + at, data_of<T>(y) + at, (end - begin) * columns, loss, slope);
      double* sum = sums.data() + task * columns;
      for (int64_t r = begin; r < end; ++r) {
        const double factor = weights == nullptr ? 1 : weights[r];
        for (int64_t c = 0; c < columns; ++c) {
          sum[c] += factor * *loss++;
          *slope = T(*slope * (factor / divisor));
          ++slope;
        }
      }
    }
  });
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += sums[task * columns + c];
    mutable_data_of<T>(means)[c] = T(sum / divisor);
  }
}

std::tuple<Tensor, Tensor> log_loss(const Tensor& logits, const Tensor& labels, const OptionalTensor& weight,
                                    double divisor) {
  const ScalarType type = logits.scalar_type();
  ADAFTR_CHECK_TYPE(type == kFloat || type == kDouble, "log_loss: logits must be Float or Double, got ", type);
  ADAFTR_CHECK_VALUE(logits.dim() == 2 && same_sizes(logits, labels),
                     "log_loss: logits and labels must be [B, T] both, got ", shape(logits), " and ", shape(labels));
  ADAFTR_CHECK_VALUE(!weight.has_value() || (weight->dim() == 1 && weight->size(0) == logits.size(0)),
                     "log_loss: weight must be [", logits.size(0), "], got ",
                     weight.has_value() ? shape(*weight) : shape(logits));
  const Tensor z = as_contiguous(logits), y = as_contiguous(labels, type);
  const OptionalTensor weights = weight.has_value() ? OptionalTensor(as_contiguous(*weight, type)) : std::nullopt;
  const Tensor means = empty({z.size(1)}, type), slopes = cached_empty(z.sizes(), type);
  (type == kDouble ? run_log_loss<double> : run_log_loss<float>)(z, y, weights, divisor, means, slopes);
  return {means, slopes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("mlp", TORCH_BOX(&mlp));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward));
  m.impl("mixture", TORCH_BOX(&mixture));
  m.impl("mixture_backward", TORCH_BOX(&mixture_backward));
  m.impl("log_loss", TORCH_BOX(&log_loss));
}

}  // namespace adaftr_fast
