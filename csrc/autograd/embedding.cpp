// The gradients of the look-ups, for every device. adaftr_fast/ops/embedding/lookup.py has the same in Python, for
// when this library is missing; there it costs about a third of a step of 100,000 look-ups.
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/index_add.h>

#include <optional>
#include <tuple>
#include <utility>

#include "autograd/scaled.h"

namespace adaftr_fast {
namespace {

using torch::autograd::Variable;
using Merged = std::tuple<at::Tensor, at::Tensor>;  // the distinct rows [U] and their gradients [U, E]

at::Tensor lookup(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
                  at::TensorList state, bool sparse) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList, bool);
  static const auto op = find_op<Op>("adaftr_fast::fused_embedding");
  return op.call(weight, ids, field_offsets, state, sparse);
}

void save(AutogradContext* ctx, const at::Tensor& weight, bool sparse, variable_list tensors) {
  ctx->save_for_backward(std::move(tensors));
  ctx->saved_data["sparse"] = sparse;
  ctx->saved_data["rows"] = weight.sym_size(0);
  ctx->saved_data["width"] = weight.sym_size(1);
}

c10::SymInt rows_of(AutogradContext* ctx) { return ctx->saved_data["rows"].toSymInt(); }

c10::SymInt width_of(AutogradContext* ctx) { return ctx->saved_data["width"].toSymInt(); }

// A sparse gradient with the values [N, E] in the rows `index` [N]. Nothing is checked: the rows are in range and, if
// `coalesced`, distinct and sorted.
at::Tensor sparse_rows(AutogradContext* ctx, const at::Tensor& index, const at::Tensor& values,
                       std::optional<bool> coalesced = std::nullopt) {
  const c10::SymInt shape[] = {rows_of(ctx), width_of(ctx)};
  return at::_sparse_coo_tensor_unsafe_symint(index.unsqueeze(0), values, shape, values.options().layout(at::kSparse),
                                              coalesced);
}

// Whether repeated rows are merged later; merges_later of adaftr_fast/ops/embedding/lookup.py says why.
bool merges_later(const at::Tensor& grad) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("adaftr_fast::merge_rows", "");
  if (grad.unsafeGetTensorImpl()->is_python_dispatch()) return true;  // traced by torch.compile
  return grad.is_cuda() && op.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

// The gradient of weight from that of its look-ups. A sparse one is coalesced unless repeated rows are merged later.
at::Tensor table_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  using Rows = at::Tensor(const at::Tensor&, const at::Tensor&);
  using Sum = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymInt);
  using Merge = Merged(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt);
  static const auto table_rows = find_op<Rows>("adaftr_fast::embedding_rows");
  static const auto merge = find_op<Merge>("adaftr_fast::fused_embedding_backward");
  if (!grad.defined()) return {};
  const variable_list saved = ctx->get_saved_variables();
  const bool sparse = ctx->saved_data["sparse"].toBool();
  const bool again = at::GradMode::is_enabled();  // create_graph=True: PyTorch's own ops can be differentiated again
  if (sparse && !again && !merges_later(grad)) {
    const auto [rows, values] = merge.call(grad, saved[0], saved[1], width_of(ctx));
    return sparse_rows(ctx, rows, values, true);
  }
  const at::Tensor rows = table_rows.call(saved[0], saved[1]);
  const at::Tensor terms = grad.reshape_symint({-1, width_of(ctx)});  // a row per look-up, [B * F, E]
  if (sparse) return again ? sparse_rows(ctx, rows, terms).coalesce() : sparse_rows(ctx, rows, terms);
  if (again || is_transformed(grad))
    return at::index_add(terms.new_zeros_symint({rows_of(ctx), width_of(ctx)}), 0, rows, terms);
  static const auto sum = find_op<Sum>("adaftr_fast::sum_rows");
  return sum.call(rows, terms, rows_of(ctx));
}

// The same for look-ups with the sum of their squares, whose gradient is `of_squares`.
at::Tensor table_gradient_with_squares(AutogradContext* ctx, const at::Tensor& grad, const at::Tensor& of_squares) {
  using Op = Merged(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt, const at::Tensor&,
                    const at::Tensor&);
  static const auto merge = find_op<Op>("adaftr_fast::embedding_and_squares_backward");
  if (!of_squares.defined()) return table_gradient(ctx, grad);
  const variable_list saved = ctx->get_saved_variables();
  const at::Tensor& looked_up = saved[2];
  if (!grad.defined()) return table_gradient(ctx, looked_up.mul(of_squares.mul(2)));
  const bool half = grad.scalar_type() != at::kFloat && grad.scalar_type() != at::kDouble;
  if (at::GradMode::is_enabled() || merges_later(grad) || !grad.is_cpu() || half)
    return table_gradient(ctx, grad.add(looked_up.mul(of_squares.mul(2))));
  const auto [rows, values] = merge.call(grad, saved[0], saved[1], width_of(ctx), looked_up, of_squares);
  return sparse_rows(ctx, rows, values, true);
}

// The missed steps in `state` do not depend on what is looked up: the gradient is that of the stored rows.
struct Lookup : torch::autograd::Function<Lookup> {
  static Variable forward(AutogradContext* ctx, const Variable& weight, const Variable& ids,
                          const Variable& field_offsets, at::TensorList state, bool sparse) {
    const at::AutoDispatchBelowADInplaceOrView below;
    save(ctx, weight, sparse, {ids, field_offsets});
    ctx->saved_data["inputs"] = static_cast<int64_t>(4 + state.size());
    return lookup(weight, ids, field_offsets, state, sparse);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(ctx->saved_data["inputs"].toInt());
    gradients[0] = table_gradient(ctx, grads[0]);
    return gradients;
  }
};

struct LookupAndSquares : torch::autograd::Function<LookupAndSquares> {
  static variable_list forward(AutogradContext* ctx, const Variable& weight, const Variable& ids,
                               const Variable& field_offsets, at::TensorList state) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto squared_norm =
        find_op<at::Tensor(at::TensorList, at::ArrayRef<double>)>("adaftr_fast::squared_norm");
    const at::Tensor looked_up = lookup(weight, ids, field_offsets, state, true);
    save(ctx, weight, true, {ids, field_offsets, looked_up});
    ctx->saved_data["inputs"] = static_cast<int64_t>(3 + state.size());
    ctx->set_materialize_grads(false);
    return {looked_up, squared_norm.call({looked_up}, {1.0})};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list gradients(ctx->saved_data["inputs"].toInt());
    gradients[0] = table_gradient_with_squares(ctx, grads[0], grads[1]);
    return gradients;
  }
};

at::Tensor differentiable_lookup(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets,
                                 at::TensorList state, bool sparse) {
  return Lookup::apply(weight, ids, field_offsets, state, sparse);
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
