// The optimizer steps on the rows of a batch, on the CPU: checks and launches.

#include "cpu/embedding/checks.h"
#include "cpu/embedding/kernels.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {
namespace {

void check_update(const char* op, const Tensor& weight, const Tensor& state, int64_t state_width, const Tensor& rows,
                  const Tensor& grad) {
  check_weight(op, weight);
  ADAFTR_CHECK(rows.dim() == 1 && rows.scalar_type() == kLong && rows.is_contiguous(), op,
               ": rows must be contiguous int64 [U], got ", rows.scalar_type(), " ", shape(rows));
  const int64_t count = rows.size(0);
  ADAFTR_CHECK(grad.dim() == 2 && grad.size(0) == count && grad.size(1) == weight.size(1) && grad.is_contiguous() &&
                   grad.scalar_type() == weight.scalar_type(),
               op, ": grad must be contiguous ", weight.scalar_type(), " [", count, ", ", weight.size(1), "], got ",
               grad.scalar_type(), " ", shape(grad));
  ADAFTR_CHECK(state_width == 0 || (state.is_contiguous() && state.numel() == weight.size(0) * state_width &&
                                    state.scalar_type() == compute_type(weight.scalar_type())),
               op, ": the optimizer state must be contiguous ", compute_type(weight.scalar_type()), " of ",
               weight.size(0) * state_width, " numbers, got ", state.scalar_type(), " ", shape(state));
  const int64_t* row = data_of<int64_t>(rows);
  // Rows that rise strictly are distinct, so no two threads write one row; the first and the last bound the others.
  ADAFTR_CHECK(rows_rise(row, count) && (count == 0 || (row[0] >= 0 && row[count - 1] < weight.size(0))), op,
               ": rows must rise strictly within 0 to ", weight.size(0) - 1);
}

template <typename Choose>
void run_update(const char* op, Tensor& weight, const Tensor& state, int64_t state_width, const Tensor& rows,
                const Tensor& grad, const UpdateScalars& by, Choose choose) {
  check_update(op, weight, state, state_width, rows, grad);
  by_table_type(op, weight.scalar_type(), [&](auto w) {
    using W = decltype(w);
    const RowGradient<W> gradient{data_of<int64_t>(rows), data_of<W>(grad), weight.size(1)};
    W* to = mutable_data_of<W>(weight);
    auto* state_to = state_width == 0 ? nullptr : mutable_data_of<Compute<W>>(state);
    const auto step = choose(typed_kernels<W>().update);
    parallel_for(rows.size(0), kRowsPerTask,
                 [&](int64_t begin, int64_t end) { step(to, state_to, gradient, by, begin, end); });
  });
}

void sgd_(Tensor& weight, const Tensor& rows, const Tensor& grad, double lr, double weight_decay) {
  run_update("embedding_sgd_", weight, weight, 0, rows, grad, {lr, weight_decay, 0, 0, 0},
             [](const auto& update) { return update.sgd; });
}

void adagrad_(Tensor& weight, Tensor& sum, const Tensor& rows, const Tensor& grad, double lr, double weight_decay,
              double epsilon) {
  run_update("embedding_adagrad_", weight, sum, weight.size(1), rows, grad, {lr, weight_decay, epsilon, 0, 0},
             [](const auto& update) { return update.adagrad; });
}

void rowwise_adagrad_(Tensor& weight, Tensor& sum, const Tensor& rows, const Tensor& grad, double lr,
                      double weight_decay, double epsilon) {
  run_update("embedding_rowwise_adagrad_", weight, sum, 1, rows, grad, {lr, weight_decay, epsilon, 0, 0},
             [](const auto& update) { return update.rowwise_adagrad; });
}

void lazy_adam_(Tensor& weight, Tensor& moments, const Tensor& rows, const Tensor& grad, double step_size,
                double weight_decay, double epsilon, double beta1, double beta2) {
  run_update("embedding_lazy_adam_", weight, moments, 2 * weight.size(1), rows, grad,
             {step_size, weight_decay, epsilon, beta1, beta2}, [](const auto& update) { return update.lazy_adam; });
}

void adam_(Tensor& weight, const Tensors& state, const Tensor& rows, const Tensor& grad, double lr) {
  check_update("embedding_adam_", weight, weight, 0, rows, grad);
  by_table_type("embedding_adam_", weight.scalar_type(), [&](auto w) {
    using W = decltype(w);
    by_adam_table<W>("embedding_adam_", weight, state, [&](const AdamTable<W>& table) {
      const int64_t capacity = state[2].numel() / 8;
      ADAFTR_CHECK(table.clock->step + 1 - table.clock->base < static_cast<double>(capacity),
                   "embedding_adam_: the schedule is full at ", capacity, " steps");
      const auto& kernels = typed_kernels<W>().adam;
      const auto* row = data_of<int64_t>(rows);
      const W* from = data_of<W>(grad);
      parallel_for(rows.size(0), kRowsPerTask,
                   [&](int64_t begin, int64_t end) { kernels.step(table, row, from, lr, begin, end); });
      kernels.advance(table, reinterpret_cast<AdamClock*>(mutable_data_of<double>(state[5])), lr);
    });
  });
}

void adam_flush_(Tensor& weight, const Tensors& state) {
  check_weight("embedding_adam_flush_", weight);
  by_table_type("embedding_adam_flush_", weight.scalar_type(), [&](auto w) {
    using W = decltype(w);
    by_adam_table<W>("embedding_adam_flush_", weight, state, [&](const AdamTable<W>& table) {
      parallel_for(weight.size(0), kRowsPerTask,
                   [&](int64_t begin, int64_t end) { typed_kernels<W>().adam.flush(table, begin, end); });
      if (*table.strays) return;
      auto* clock = reinterpret_cast<AdamClock*>(mutable_data_of<double>(state[5]));
      clock->base = clock->step;
      table.schedule[0] = {};
      table.series[0] = {};
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("embedding_sgd_", TORCH_BOX(&sgd_));
  m.impl("embedding_adagrad_", TORCH_BOX(&adagrad_));
  m.impl("embedding_rowwise_adagrad_", TORCH_BOX(&rowwise_adagrad_));
  m.impl("embedding_lazy_adam_", TORCH_BOX(&lazy_adam_));
  m.impl("embedding_adam_", TORCH_BOX(&adam_));
  m.impl("embedding_adam_flush_", TORCH_BOX(&adam_flush_));
}

}  // namespace adaftr_fast
