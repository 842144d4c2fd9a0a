// The gradients of mlp and mixture, and their autocast. Without this library, PyTorch differentiates the references.
#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softmax.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "autograd/function.h"

namespace adaftr_fast {
namespace {

using at::IntArrayRef;
using at::Tensor;
using at::TensorList;
using Tensors = std::vector<Tensor>;
using Gradients = c10::List<std::optional<Tensor>>;
using Ints = std::vector<int64_t>;

const auto& mlp_op() {
  using Op = Tensors(TensorList, IntArrayRef, TensorList, TensorList, IntArrayRef, IntArrayRef, bool);
  static const auto op = find_op<Op>("adaftr_fast::mlp");
  return op;
}

Gradients optional_of(const variable_list& gradients) {
  Gradients list;
  for (const Tensor& each : gradients) list.push_back(each.defined() ? std::optional<Tensor>(each) : std::nullopt);
  return list;
}

bool any_defined(const variable_list& gradients) {
  for (const Tensor& each : gradients)
    if (each.defined()) return true;
  return false;
}

// One input may be another, or be computed from it; the outer graph adds the gradient that flows between them.
variable_list aliases_of(const variable_list& inputs) {
  variable_list aliases;
  for (const Tensor& each : inputs) aliases.push_back(each.view_as(each));
  return aliases;
}

// create_graph=True: the gradients of `outputs`, made by PyTorch's own ops, which can be differentiated again.
variable_list differentiable(const variable_list& outputs, const variable_list& inputs,
                             const variable_list& gradients) {
  variable_list roots, given, sought;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
    roots.push_back(outputs[i]);
    given.push_back(gradients[i]);
  }
  for (const Tensor& each : inputs)
    if (each.requires_grad()) sought.push_back(each);
  variable_list found;
  if (!roots.empty() && !sought.empty())
    found = torch::autograd::grad(roots, sought, given, /*retain_graph=*/true, /*create_graph=*/true,
                                  /*allow_unused=*/true);
  variable_list all(inputs.size());
  size_t next = 0;
  for (size_t i = 0; i < inputs.size() && !found.empty(); ++i)
    if (inputs[i].requires_grad()) all[i] = found[next++];
  return all;
}

Tensors plain_mlp(TensorList inputs, IntArrayRef reads, TensorList weights, TensorList biases, IntArrayRef depths,
                  IntArrayRef rectified, const Tensors& like) {
  Tensors outputs;
  for (size_t s = 0; s < reads.size(); ++s) {
    Tensor x = inputs[reads[s]];
    for (int64_t d = 0; d < depths[s]; ++d) {
      const size_t l = outputs.size();
      x = at::linear(x.to(weights[l].scalar_type()), weights[l], biases[l]);
      if (d < rectified[s]) x = at::relu(x);
      outputs.push_back(x.to(like[l].scalar_type()));
    }
  }
  return outputs;
}

struct MlpFunction : torch::autograd::Function<MlpFunction> {
  static variable_list forward(AutogradContext* ctx, TensorList inputs, IntArrayRef reads, TensorList weights,
                               TensorList biases, IntArrayRef depths, IntArrayRef rectified, bool reduced) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensors outputs = mlp_op().call(inputs, reads, weights, biases, depths, rectified, reduced);
    variable_list kept(inputs.begin(), inputs.end());
    kept.insert(kept.end(), weights.begin(), weights.end());
    kept.insert(kept.end(), biases.begin(), biases.end());
    kept.insert(kept.end(), outputs.begin(), outputs.end());
    ctx->save_for_backward(std::move(kept));
    ctx->set_materialize_grads(false);
    ctx->saved_data["reads"] = reads.vec();
    ctx->saved_data["depths"] = depths.vec();
    ctx->saved_data["rectified"] = rectified.vec();
    ctx->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list kept = ctx->get_saved_variables();
    const size_t layers = gradients.size(), n = ctx->saved_data["inputs"].toInt();
    const TensorList all(kept), inputs = all.slice(0, n), weights = all.slice(n, layers),
                                biases = all.slice(n + layers, layers), outputs = all.slice(n + 2 * layers, layers);
    const Ints reads = ctx->saved_data["reads"].toIntVector(), depths = ctx->saved_data["depths"].toIntVector(),
               rectified = ctx->saved_data["rectified"].toIntVector();
    variable_list found(n + 2 * layers);
    if (any_defined(gradients)) {
      if (at::GradMode::is_enabled()) {
        const variable_list given = aliases_of(all.slice(0, n + 2 * layers).vec());
        const TensorList parts(given);
        const Tensors plain = plain_mlp(parts.slice(0, n), reads, parts.slice(n, layers), parts.slice(n + layers),
                                        depths, rectified, outputs.vec());
        found = differentiable(plain, given, gradients);
      } else {
        Ints wanted(n);
        for (size_t i = 0; i < n; ++i) wanted[i] = ctx->needs_input_grad(i);
        using Op = Tensors(const Gradients&, TensorList, TensorList, IntArrayRef, TensorList, TensorList, IntArrayRef,
                           IntArrayRef, IntArrayRef);
        static const auto op = find_op<Op>("adaftr_fast::mlp_backward");
        found = op.call(optional_of(gradients), inputs, outputs, reads, weights, biases, depths, rectified, wanted);
        for (size_t i = 0; i < n; ++i)
          if (!wanted[i]) found[i] = Tensor();
      }
    }
    variable_list each(found.begin(), found.begin() + n);
    each.emplace_back();  // reads
    for (size_t i = n; i < found.size(); ++i) each.push_back(found[i]);
    each.resize(each.size() + 3);  // depths, rectified, reduced
    return each;
  }
};

struct MixtureFunction : torch::autograd::Function<MixtureFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& experts, const Tensor& logits) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({experts, logits});
    ctx->set_materialize_grads(false);
    static const auto op = find_op<Tensors(const Tensor&, const Tensor&)>("adaftr_fast::mixture");
    return op.call(experts, logits);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list kept = ctx->get_saved_variables();
    if (!any_defined(gradients)) return {Tensor(), Tensor()};
    if (at::GradMode::is_enabled()) {
      const variable_list given = aliases_of(kept);
      const Tensor weights = given[1].to(at::promote_types(given[0].scalar_type(), at::kFloat)).softmax(2);
      return differentiable(at::matmul(weights.to(given[0].scalar_type()), given[0]).unbind(1), given, gradients);
    }
    using Op = std::tuple<Tensor, Tensor>(const Gradients&, const Tensor&, const Tensor&);
    static const auto op = find_op<Op>("adaftr_fast::mixture_backward");
    auto [d_experts, d_logits] = op.call(optional_of(gradients), kept[0], kept[1]);
    return {d_experts, d_logits};
  }
};

Tensors differentiable_mlp(TensorList inputs, IntArrayRef reads, TensorList weights, TensorList biases,
                           IntArrayRef depths, IntArrayRef rectified, bool reduced) {
  return MlpFunction::apply(inputs, reads, weights, biases, depths, rectified, reduced);
}

Tensors differentiable_mixture(const Tensor& experts, const Tensor& logits) {
  return MixtureFunction::apply(experts, logits);
}

// Under autocast to bfloat16 the outputs are bfloat16; the weights keep their dtype and are rounded in products alone.
Tensors autocast_mlp(TensorList inputs, IntArrayRef reads, TensorList weights, TensorList biases, IntArrayRef depths,
                     IntArrayRef rectified, bool reduced) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  reduced |= !inputs.empty() && inputs[0].scalar_type() != at::kDouble &&
             at::autocast::get_autocast_dtype(at::kCPU) == at::kBFloat16;
  return mlp_op().call(inputs, reads, weights, biases, depths, rectified, reduced);
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, Autograd, m) {
  m.impl("mlp", differentiable_mlp);
  m.impl("mixture", differentiable_mixture);
}

TORCH_LIBRARY_IMPL(adaftr_fast, AutocastCPU, m) { m.impl("mlp", autocast_mlp); }

}  // namespace adaftr_fast
