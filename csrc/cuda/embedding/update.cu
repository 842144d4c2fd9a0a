// The merge of duplicate rows, and the optimizers' steps, on CUDA tensors. Unlike on the CPU, `rows` come in any order
// and may repeat: the gradients of a row are added in their order, and their sum makes one step.
#include <torch/library.h>

#include "cuda/embedding/checks.cuh"
#include "cuda/embedding/update.cuh"

namespace adaftr_fast::cuda {
namespace {

void check_update(const char* op, const at::Tensor& weight, const at::Tensor& rows, const at::Tensor& grad) {
  check_weight(op, weight);
  TORCH_CHECK_VALUE(rows.dim() == 1 && rows.scalar_type() == at::kLong, op, ": rows must be int64 [M], got ",
                    rows.scalar_type(), " ", rows.sizes());
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == rows.size(0) && grad.size(1) == weight.size(1) &&
                        grad.scalar_type() == weight.scalar_type(),
                    op, ": grad must be ", weight.scalar_type(), " [", rows.size(0), ", ", weight.size(1), "], got ",
                    grad.scalar_type(), " ", grad.sizes());
  TORCH_CHECK_VALUE(rows.device() == weight.device() && grad.device() == weight.device(), op,
                    ": weight, rows and grad must be on one device, got ", weight.device(), ", ", rows.device(),
                    " and ", grad.device());
  raise_reported(weight.device());
}

// Merges the gradients of each row and applies a rule to every row of the batch, in two launches. `tensors` are those
// that the rule moves in packs.
template <typename W, typename Rule>
void merge(const SortedRows& sorted, const at::Tensor& grad, int64_t num_rows,
           std::initializer_list<at::Tensor> tensors, const Rule& rule) {
  const int64_t count = grad.size(0), width = grad.size(1), tiles = (count + kTile - 1) / kTile;
  if (count == 0) return;
  const at::Tensor sums = at::empty({2 * tiles, width}, grad.options().dtype(compute_type(grad.scalar_type())));
  const SortedTerms<W> terms{
      sorted.rows(), sorted.order(), grad.const_data_ptr<W>(), sums.mutable_data_ptr<Compute<W>>(), count,
      num_rows,      width};
  by_pack<W>(width, tensors, [&](auto pack) {
    const Lanes lanes = lanes_for(width / pack());
    launch(MergePieces<Rule, W, pack()>{terms, rule, lanes}, count << lanes.shift);
    if (tiles > 1) launch(MergeTiles<Rule, W, pack()>{terms, rule, lanes}, (tiles - 1) << lanes.shift);
  });
}

struct Scalars {
  double lr, weight_decay, epsilon, take1, take2;
};

template <template <typename> class Rule>
void update(const char* op, at::Tensor& weight, at::Tensor& state, int64_t state_size, const at::Tensor& rows,
            const at::Tensor& grad, const Scalars& by) {
  check_update(op, weight, rows, grad);
  TORCH_CHECK_VALUE(
      state_size == 0 || (state.is_contiguous() && state.numel() == state_size && state.device() == weight.device() &&
                          state.scalar_type() == compute_type(weight.scalar_type())),
      op, ": the optimizer state must be contiguous ", compute_type(weight.scalar_type()), " of ", state_size,
      " numbers on ", weight.device(), ", got ", state.scalar_type(), " ", state.sizes());
  const DeviceGuard guard(weight.device());
  const SortedRows sorted = sort_rows(op, rows.contiguous(), weight.size(0));
  by_table_type(op, weight.scalar_type(), [&](auto element) {
    using W = decltype(element);
    using T = Compute<W>;
    const at::Tensor dense = grad.contiguous();
    T* own = state_size == 0 ? nullptr : state.mutable_data_ptr<T>();
    const Table<W> table{weight.mutable_data_ptr<W>(),
                         own,
                         weight.size(1),
                         static_cast<T>(by.lr),
                         static_cast<T>(by.weight_decay),
                         static_cast<T>(by.epsilon),
                         static_cast<T>(by.take1),
                         static_cast<T>(by.take2)};
    merge<W>(sorted, dense, weight.size(0), {weight, dense, state}, Rule<W>{table});
  });
}

void sgd_(at::Tensor& weight, const at::Tensor& rows, const at::Tensor& grad, double lr, double weight_decay) {
  update<Sgd>("embedding_sgd_", weight, weight, 0, rows, grad, {lr, weight_decay, 0, 0, 0});
}

void adagrad_(at::Tensor& weight, at::Tensor& total, const at::Tensor& rows, const at::Tensor& grad, double lr,
              double weight_decay, double epsilon) {
  update<Adagrad>("embedding_adagrad_", weight, total, weight.numel(), rows, grad, {lr, weight_decay, epsilon, 0, 0});
}

void rowwise_adagrad_(at::Tensor& weight, at::Tensor& total, const at::Tensor& rows, const at::Tensor& grad, double lr,
                      double weight_decay, double epsilon) {
  update<RowwiseAdagrad>("embedding_rowwise_adagrad_", weight, total, weight.size(0), rows, grad,
                         {lr, weight_decay, epsilon, 0, 0});
}

void lazy_adam_(at::Tensor& weight, at::Tensor& moments, const at::Tensor& rows, const at::Tensor& grad,
                double step_size, double weight_decay, double epsilon, double beta1, double beta2) {
  update<LazyAdam>("embedding_lazy_adam_", weight, moments, 2 * weight.numel(), rows, grad,
                   {step_size, weight_decay, epsilon, 1 - beta1, 1 - beta2});
}

// Four launches and the sort, whatever the number of the step and however long rows lag.
void adam_(at::Tensor& weight, at::TensorList state, const at::Tensor& rows, const at::Tensor& grad, double lr) {
  check_update("embedding_adam_", weight, rows, grad);
  const DeviceGuard guard(weight.device());
  const SortedRows sorted = sort_rows("embedding_adam_", rows.contiguous(), weight.size(0));
  by_table_type("embedding_adam_", weight.scalar_type(), [&](auto element) {
    using W = decltype(element);
    const AdamState<Compute<W>> adam = adam_state<W>("embedding_adam_", weight, state);
    const at::Tensor dense = grad.contiguous();
    launch(AdamRecord<Compute<W>>{adam, lr}, 1);
    merge<W>(sorted, dense, weight.size(0), {weight, dense, state[0]},
             AdamStep<W>{weight.mutable_data_ptr<W>(), adam, weight.size(1)});
    launch(AdamExtend<Compute<W>>{adam, lr}, kPowers);  // the horizon, which is shorter, stands on the device
  });
}

void adam_flush_(at::Tensor& weight, at::TensorList state) {
  check_weight("embedding_adam_flush_", weight);
  raise_reported(weight.device());
  const DeviceGuard guard(weight.device());
  by_table_type("embedding_adam_flush_", weight.scalar_type(), [&](auto element) {
    using W = decltype(element);
    const AdamState<Compute<W>> adam = adam_state<W>("embedding_adam_flush_", weight, state);
    by_pack<W>(weight.size(1), {weight, state[0]}, [&](auto pack) {
      const Lanes lanes = lanes_for(weight.size(1) / pack());
      launch(AdamFlush<W, pack()>{weight.mutable_data_ptr<W>(), adam, weight.size(1), lanes}, weight.size(0)
                                                                                                  << lanes.shift);
    });
    launch(AdamRebase<Compute<W>>{adam}, 1);
  });
}

// The rows [M] in ascending order, and gradients [M, E]: the sum where a row first stands, zeros where it repeats.
std::tuple<at::Tensor, at::Tensor> merge_rows(const at::Tensor& rows, const at::Tensor& grad, int64_t num_rows) {
  TORCH_CHECK_VALUE(rows.dim() == 1 && rows.scalar_type() == at::kLong && grad.dim() == 2 &&
                        grad.size(0) == rows.size(0) && grad.device() == rows.device(),
                    "merge_rows: expected int64 rows [M] and grad [M, E], got ", rows.scalar_type(), " ", rows.sizes(),
                    " and ", grad.sizes());
  const DeviceGuard guard(grad.device());
  const SortedRows sorted = sort_rows("merge_rows", rows.contiguous(), num_rows);
  at::Tensor merged = at::zeros_like(grad, at::MemoryFormat::Contiguous);
  by_table_type("merge_rows", grad.scalar_type(), [&](auto element) {
    using W = decltype(element);
    const at::Tensor dense = grad.contiguous();
    merge<W>(sorted, dense, num_rows, {dense, merged}, Store<W>{merged.mutable_data_ptr<W>(), grad.size(1)});
  });
  return {sorted.memory[2].to(at::kLong), merged};
}

ADAFTR_FAST_DEVICE_OPS(m) {
  m.impl("embedding_sgd_", sgd_);
  m.impl("embedding_adagrad_", adagrad_);
  m.impl("embedding_rowwise_adagrad_", rowwise_adagrad_);
  m.impl("embedding_lazy_adam_", lazy_adam_);
  m.impl("embedding_adam_", adam_);
  m.impl("embedding_adam_flush_", adam_flush_);
  m.impl("merge_rows", merge_rows);
}

}  // namespace
}  // namespace adaftr_fast::cuda
