// adaftr_fast/ops/infonce/autograd.py has the formula in Python, for torch.compile, torch.func and builds without this
// library; calls from C++ cost a fifth of it, which counts at 1,024 rows.
#include "autograd/loss.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>

#include <string>
#include <utility>

#include "autograd/scaled.h"

namespace adaftr_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What computes the gradients of the rare cases. It is never freed: graphs may outlive the interpreter.
py::object& in_python() {
  static py::object* const function = new py::object();
  return *function;
}

struct Parts {
  const variable_list& losses;
  const std::vector<OptionalTensor>& constants;
  const variable_list& factors;
  const std::string& call;
};

OptionalTensor optional_of(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

// On a GPU one launch multiplies and converts.
Tensor product(const Tensor& x, const Tensor& factor, at::ScalarType type) {
  if (x.scalar_type() == type || is_transformed(factor)) return x.mul(factor).to(type);
  Tensor result = at::empty_like(x, x.options().dtype(type));
  return at::mul_out(result, x, factor);
}

struct LossFunction : torch::autograd::Function<LossFunction> {
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, const Parts& parts) {
    ctx->set_materialize_grads(false);
    variable_list saved = inputs.vec();
    for (const OptionalTensor& each : parts.constants) saved.push_back(each.value_or(Tensor()));
    saved.insert(saved.end(), parts.factors.begin(), parts.factors.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
    ctx->saved_data["call"] = parts.call;
    return parts.losses;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const size_t count = ctx->saved_data["inputs"].toInt();
    variable_list found(count + 1);  // the last is of the parts
    const Tensor &g_loss = upstream.front(), g_row_loss = upstream.size() > 1 ? upstream[1] : Tensor();
    if (!g_loss.defined() && !g_row_loss.defined()) return found;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor* factors = &saved[saved.size() - count];
    bool rare = at::GradMode::is_enabled() || g_row_loss.defined();
    variable_list given;
    for (size_t i = 0; i < count; ++i) {
      if (!ctx->needs_input_grad(i)) continue;
      rare |= factors[i].sizes() != saved[i].sizes() || factors[i].device() != saved[i].device();
      given.push_back(factors[i]);
    }
    if (rare) {
      call_python(ctx, g_loss, g_row_loss, saved, found);
      return found;
    }
    const bool on_cpu = g_loss.is_cpu();
    if (on_cpu) given = call_scaled(g_loss, given, std::vector<double>(given.size(), 1));
    for (size_t i = 0, next = 0; i < count; ++i) {
      if (!ctx->needs_input_grad(i)) continue;
      const Tensor& x = given[next++];
      const auto type = saved[i].scalar_type();
      found[i] = on_cpu ? x.to(type) : product(x, g_loss, type);
    }
    return found;
  }

  static void call_python(AutogradContext* ctx, const Tensor& g_loss, const Tensor& g_row_loss,
                          const variable_list& saved, variable_list& found) {
    std::vector<bool> needs;
    for (size_t i = 0; i + 1 < found.size(); ++i) needs.push_back(ctx->needs_input_grad(i));
    std::vector<OptionalTensor> all;
    for (const Tensor& each : saved) all.push_back(optional_of(each));
    const py::gil_scoped_acquire gil;
    const py::str call(ctx->saved_data["call"].toStringRef());
    const auto gradients =
        in_python()(call, needs, optional_of(g_loss), optional_of(g_row_loss), all).cast<std::vector<OptionalTensor>>();
    for (size_t i = 0; i < gradients.size(); ++i) found[i] = gradients[i].value_or(Tensor());
  }
};

}  // namespace

void set_rare_gradients(py::object function) { in_python() = std::move(function); }

std::vector<Tensor> differentiable_loss(const std::vector<Tensor>& losses, const std::vector<Tensor>& inputs,
                                        const std::vector<OptionalTensor>& constants,
                                        const std::vector<Tensor>& factors, const std::string& call) {
  return LossFunction::apply(at::TensorList(inputs), Parts{losses, constants, factors, call});
}

}  // namespace adaftr_fast
