// The gradients of the look-ups, for every device. adaftr_fast/ops/embedding/lookup.py has the same in Python, for
// when this library is missing; there it costs about a third of a step of 100,000 look-ups.
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>

#include <tuple>

#include "autograd/function.h"

namespace adaftr_fast {
namespace {

using torch::autograd::Variable;

at::Tensor lookup(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
                  at::TensorList state) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::fused_embedding", "").typed<Op>();
  return op.call(weight, ids, field_offsets, state);
}

at::Tensor sum_of_squares(const at::Tensor& x) {
  using Op = at::Tensor(at::TensorList, at::ArrayRef<double>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::squared_norm", "").typed<Op>();
  return op.call({x}, {1.0});
}

void save(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
          at::TensorList state) {
  ctx->save_for_backward(variable_list{ids, field_offsets});
  ctx->saved_data["inputs"] = static_cast<int64_t>(3 + state.size());
  ctx->saved_data["rows"] = weight.sym_size(0);
  ctx->saved_data["width"] = weight.sym_size(1);
}

// The gradient with a row per look-up, index [B * F], by PyTorch's own ops, which can be differentiated again.
at::Tensor uncoalesced_gradient(const at::Tensor& grad, const at::Tensor& index, const c10::SymInt& rows,
                                const c10::SymInt& width) {
  const c10::SymInt shape[] = {rows, width};
  return at::_sparse_coo_tensor_unsafe_symint(index.unsqueeze(0), grad.reshape_symint({-1, width}), shape,
                                              grad.options().layout(at::kSparse));
}

// The table's row of each id, [B * F].
at::Tensor table_rows(const at::Tensor& ids, const at::Tensor& field_offsets) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::embedding_rows", "").typed<Op>();
  return op.call(ids, field_offsets);
}

// Whether repeated rows are merged later; merges_later of adaftr_fast/ops/embedding/lookup.py says why.
bool merges_later(const at::Tensor& grad) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::merge_rows", "");
  if (grad.unsafeGetTensorImpl()->is_python_dispatch()) return true;  // traced by torch.compile
  return grad.is_cuda() && op.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

// The distinct rows and their gradients as a sparse tensor, with nothing to check or to merge: they are in range and
// sorted.
at::Tensor merged_gradient(const std::tuple<at::Tensor, at::Tensor>& merged, const c10::SymInt& rows,
                           const c10::SymInt& width) {
  const auto& [index, values] = merged;
  return at::_sparse_coo_tensor_unsafe_symint(index.unsqueeze(0), values, {rows, width},
                                              values.options().layout(at::kSparse),
                                              /*is_coalesced=*/true);
}

// The sparse gradient of weight from that of its look-ups, coalesced unless repeated rows are merged later.
at::Tensor sparse_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  using Op = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::fused_embedding_backward", "").typed<Op>();
  if (!grad.defined()) return {};
  const variable_list saved = ctx->get_saved_variables();
  const c10::SymInt rows = ctx->saved_data["rows"].toSymInt(), width = ctx->saved_data["width"].toSymInt();
  if (at::GradMode::is_enabled()) {
    const at::Tensor index = saved[0].add(saved[1].slice(0, 0, -1)).reshape({-1});
    return uncoalesced_gradient(grad, index, rows, width).coalesce();
  }
  if (merges_later(grad)) return uncoalesced_gradient(grad, table_rows(saved[0], saved[1]), rows, width);
  return merged_gradient(op.call(grad, saved[0], saved[1], width), rows, width);
}

// The same for look-ups with the sum of their squares, whose gradient is `of_squares`.
at::Tensor sparse_gradient_with_squares(AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& of_squares) {
  using Op = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt,
                                                const at::Tensor&, const at::Tensor&);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::embedding_and_squares_backward", "").typed<Op>();
  if (!of_squares.defined()) return sparse_gradient(ctx, grad);
  const variable_list saved = ctx->get_saved_variables();
  const at::Tensor& looked_up = saved[2];
  if (!grad.defined()) return sparse_gradient(ctx, looked_up.mul(of_squares.mul(2)));
  const bool half = grad.scalar_type() != at::kFloat && grad.scalar_type() != at::kDouble;
  if (at::GradMode::is_enabled() || merges_later(grad) || !grad.is_cpu() || half)
    return sparse_gradient(ctx, grad.add(looked_up.mul(of_squares.mul(2))));
  const c10::SymInt rows = ctx->saved_data["rows"].toSymInt(), width = ctx->saved_data["width"].toSymInt();
  return merged_gradient(op.call(grad, saved[0], saved[1], width, looked_up, of_squares), rows, width);
}

// The missed steps in `state` do not depend on what is looked up: the gradient is that of the stored rows.
struct Lookup : torch::autograd::Function<Lookup> {
  static Variable forward(AutogradContext* ctx, const Variable& weight, const Variable& ids,
                          const Variable& field_offsets, at::TensorList state) {
    const at::AutoDispatchBelowADInplaceOrView below;
    save(ctx, weight, ids, field_offsets, state);
    return lookup(weight, ids, field_offsets, state);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(ctx->saved_data["inputs"].toInt());
    gradients[0] = sparse_gradient(ctx, grads[0]);
    return gradients;
  }
};

struct LookupAndSquares : torch::autograd::Function<LookupAndSquares> {
  static variable_list forward(AutogradContext* ctx, const Variable& weight, const Variable& ids,
                               const Variable& field_offsets, at::TensorList state) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor looked_up = lookup(weight, ids, field_offsets, state);
    save(ctx, weight, ids, field_offsets, state);
    ctx->save_for_backward(variable_list{ids, field_offsets, looked_up});
    ctx->set_materialize_grads(false);
    return {looked_up, sum_of_squares(looked_up)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(ctx->saved_data["inputs"].toInt());
    gradients[0] = sparse_gradient_with_squares(ctx, grads[0], grads[1]);
    return gradients;
  }
};

at::Tensor differentiable_lookup(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
                                 at::TensorList state) {
  return Lookup::apply(weight, ids, field_offsets, state);
}

std::tuple<at::Tensor, at::Tensor> differentiable_squares(const at::Tensor& weight, const at::Tensor& ids,
                                                          const at::Tensor& field_offsets, at::TensorList state) {
  const variable_list both = LookupAndSquares::apply(weight, ids, field_offsets, state);
  return {both[0], both[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, Autograd, m) {
  m.impl("fused_embedding", differentiable_lookup);
  m.impl("embedding_and_squares", differentiable_squares);
}

}  // namespace adaftr_fast
