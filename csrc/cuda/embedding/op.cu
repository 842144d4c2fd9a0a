// The embedding's ops on CUDA tensors: checks, memory and launches of the kernels in kernels.cuh.
//
// B batch, F fields, E width, R rows of all fields, U distinct rows of a batch. Bags and the deferred Adam are not
// here: on CUDA tensors they run on their references.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "cuda/embedding/kernels.cuh"

namespace adaftr_fast::cuda {
namespace {

template <typename Body>
void launch(const Body& body, int64_t threads) {
  constexpr int64_t kBlock = 256, kMostBlocks = int64_t{1} << 20;  // each() strides over what is beyond
  if (threads == 0) return;
  const int64_t blocks = std::min((threads + kBlock - 1) / kBlock, kMostBlocks);
  each<<<static_cast<unsigned>(blocks), kBlock, 0, c10::cuda::getCurrentCUDAStream()>>>(body, threads);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Kernels move packs of 16 bytes where both tensors are aligned to 16; else they move element by element.
bool packs(const at::Tensor& a, const at::Tensor& b, int64_t width) {
  const auto both = reinterpret_cast<uintptr_t>(a.const_data_ptr()) | reinterpret_cast<uintptr_t>(b.const_data_ptr());
  return width * a.element_size() % 16 == 0 && both % 16 == 0;
}

void check_ids(const char* op, const at::Tensor& ids, const at::Tensor& field_offsets) {
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kInt || ids.scalar_type() == at::kLong, op,
                   ": ids must be int32 or int64, got ", ids.scalar_type());
  TORCH_CHECK_VALUE(ids.dim() == 2 && ids.size(1) == field_offsets.size(0) - 1, op, ": ids must be [B, ",
                    field_offsets.size(0) - 1, "] (one column per field), got ", ids.sizes());
  TORCH_CHECK(field_offsets.device() == ids.device(), op, ": ids and field_offsets must be on one device, got ",
              ids.device(), " and ", field_offsets.device());
}

template <typename T, typename Id>
void lookup_into(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets, at::Tensor& out,
                 at::Tensor& bad) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t width = weight.size(1);
  const auto run = [&](auto body, int64_t threads) {
    body.weight = static_cast<const T*>(weight.const_data_ptr());
    body.ids = ids.const_data_ptr<Id>();
    body.field_offsets = field_offsets.const_data_ptr<int64_t>();
    body.out = static_cast<T*>(out.mutable_data_ptr());
    body.fields = ids.size(1);
    body.width = width;
    body.bad = reinterpret_cast<unsigned long long*>(bad.mutable_data_ptr<int64_t>());
    launch(body, threads);
  };
  if (packs(weight, out, width)) return run(Lookup<T, Id, kPack, false>{}, ids.numel() * width / kPack);
  run(Lookup<T, Id, 1, false>{}, ids.numel() * width);
}

// A look-up only copies, so the size of an element is all that matters.
template <typename Run>
void by_size(size_t bytes, Run run) {
  if (bytes == 2) return run(uint16_t{});
  if (bytes == 4) return run(float{});
  run(double{});
}

void raise_bad_id(const at::Tensor& ids, const at::Tensor& field_offsets, int64_t position) {
  const int64_t f = position % ids.size(1);
  TORCH_CHECK_INDEX(false, "fused_embedding: ids[", position / ids.size(1), ", ", f,
                    "] = ", ids.flatten()[position].item<int64_t>(), " is out of range for field ", f,
                    ", whose ids are 0 to ", (field_offsets[f + 1] - field_offsets[f]).item<int64_t>() - 1);
}

at::Tensor fused_embedding(const at::Tensor& weight, const at::Tensor& ids, const at::Tensor& field_offsets) {
  check_ids("fused_embedding", ids, field_offsets);
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(), "fused_embedding: weight must be contiguous [R, E]");
  const c10::cuda::CUDAGuard guard(weight.device());
  at::Tensor out = at::empty({ids.size(0), ids.size(1) * weight.size(1)}, weight.options());
  const at::Tensor dense = ids.contiguous();
  at::Tensor bad = at::full({1}, -1, dense.options().dtype(at::kLong));  // as unsigned, the largest number
  by_size(weight.element_size(), [&](auto element) {
    using T = decltype(element);
    if (dense.scalar_type() == at::kInt) return lookup_into<T, int32_t>(weight, dense, field_offsets, out, bad);
    lookup_into<T, int64_t>(weight, dense, field_offsets, out, bad);
  });
  const auto position = bad.item<int64_t>();  // waits for the look-up, so that a bad id is named where it was given
  if (position >= 0) raise_bad_id(dense, field_offsets, position);
  return out;
}

template <typename T>
void merge_into(const at::Tensor& grad, const at::Tensor& order, const at::Tensor& begin, at::Tensor& sums) {
  constexpr int kPack = 16 / sizeof(T);
  const T* from = grad.const_data_ptr<T>();
  const int64_t *look_ups = order.const_data_ptr<int64_t>(), *first = begin.const_data_ptr<int64_t>();
  T* to = sums.mutable_data_ptr<T>();
  const int64_t width = sums.size(1);
  if (packs(grad, sums, width)) return launch(Merge<T, kPack>{from, look_ups, first, to, width}, sums.numel() / kPack);
  launch(Merge<T, 1>{from, look_ups, first, to, width}, sums.numel());
}

std::tuple<at::Tensor, at::Tensor> fused_embedding_backward(const at::Tensor& grad, const at::Tensor& ids,
                                                            const at::Tensor& field_offsets, int64_t width) {
  check_ids("fused_embedding_backward", ids, field_offsets);
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == ids.size(0) && grad.size(1) == ids.size(1) * width,
                    "fused_embedding_backward: grad must be [", ids.size(0), ", ", ids.size(1) * width, "], got ",
                    grad.sizes());
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::ScalarType stored = grad.scalar_type(), type = stored == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor keys = (ids + field_offsets.slice(0, 0, ids.size(1))).flatten();
  // A stable sort keeps the order of the batch within a row, so that sums are the same in every run.
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const auto [rows, inverse, counts] = at::unique_consecutive(sorted, /*return_inverse=*/false, /*return_counts=*/true);
  const at::Tensor begin = at::cat({at::zeros({1}, counts.options()), counts.cumsum(0)});
  const at::Tensor dense = grad.to(type).contiguous();
  at::Tensor sums = at::empty({rows.size(0), width}, dense.options());
  type == at::kDouble ? merge_into<double>(dense, order, begin, sums) : merge_into<float>(dense, order, begin, sums);
  return {rows, sums.to(stored)};
}

struct Scalars {
  double lr, weight_decay, epsilon, take1, take2;
};

void check_update(const char* op, const at::Tensor& weight, const at::Tensor& rows, const at::Tensor& grad) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), op, ": weight must be contiguous [R, E]");
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == at::kLong, op, ": rows must be int64 [U]");
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == rows.size(0) && grad.size(1) == weight.size(1), op, ": grad must be [",
              rows.size(0), ", ", weight.size(1), "], got ", grad.sizes());
  if (rows.numel() == 0) return;
  const at::Tensor rise = rows.diff().gt(0).all() & rows[0].ge(0) & rows[-1].lt(weight.size(0));
  TORCH_CHECK(rise.item<bool>(), op, ": rows must rise strictly within 0 to ", weight.size(0) - 1);
}

template <template <typename> class Body, typename T>
void launch_update(at::Tensor& weight, at::Tensor& state, const at::Tensor& rows, const at::Tensor& grad,
                   const Scalars& by, int64_t threads) {
  launch(Body<T>{Update<T>{weight.mutable_data_ptr<T>(), state.mutable_data_ptr<T>(), rows.const_data_ptr<int64_t>(),
                           grad.const_data_ptr<T>(), weight.size(1), static_cast<T>(by.lr),
                           static_cast<T>(by.weight_decay), static_cast<T>(by.epsilon), static_cast<T>(by.take1),
                           static_cast<T>(by.take2)}},
         threads);
}

// Half-precision rows are computed on in float32: they are gathered, updated and written back.
template <template <typename> class Body>
void run_update(const char* op, at::Tensor& weight, at::Tensor& state, const at::Tensor& rows, const at::Tensor& grad,
                const Scalars& by, int64_t threads_a_row) {
  check_update(op, weight, rows, grad);
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::Tensor index = rows.contiguous();
  const int64_t threads = rows.size(0) * threads_a_row;
  if (weight.scalar_type() == at::kDouble) {
    return launch_update<Body, double>(weight, state, index, grad.contiguous(), by, threads);
  }
  if (weight.scalar_type() == at::kFloat) {
    return launch_update<Body, float>(weight, state, index, grad.contiguous(), by, threads);
  }
  at::Tensor wide = weight.index_select(0, index).to(at::kFloat), own = state;
  const bool stateless = state.is_same(weight);
  own = stateless ? wide : state.index_select(0, index);
  const at::Tensor every = at::arange(index.size(0), index.options());
  launch_update<Body, float>(wide, own, every, grad.to(at::kFloat).contiguous(), by, threads);
  weight.index_copy_(0, index, wide.to(weight.scalar_type()));
  if (!stateless) state.index_copy_(0, index, own);
}

void sgd_(at::Tensor& weight, const at::Tensor& rows, const at::Tensor& grad, double lr, double weight_decay) {
  run_update<Sgd>("embedding_sgd_", weight, weight, rows, grad, {lr, weight_decay, 0, 0, 0}, weight.size(1));
}

void adagrad_(at::Tensor& weight, at::Tensor& total, const at::Tensor& rows, const at::Tensor& grad, double lr,
              double weight_decay, double epsilon) {
  run_update<Adagrad>("embedding_adagrad_", weight, total, rows, grad, {lr, weight_decay, epsilon, 0, 0},
                      weight.size(1));
}

void rowwise_adagrad_(at::Tensor& weight, at::Tensor& total, const at::Tensor& rows, const at::Tensor& grad, double lr,
                      double weight_decay, double epsilon) {
  run_update<RowwiseAdagrad>("embedding_rowwise_adagrad_", weight, total, rows, grad, {lr, weight_decay, epsilon, 0, 0},
                             1);
}

void lazy_adam_(at::Tensor& weight, at::Tensor& moments, const at::Tensor& rows, const at::Tensor& grad,
                double step_size, double weight_decay, double epsilon, double beta1, double beta2) {
  run_update<LazyAdam>("embedding_lazy_adam_", weight, moments, rows, grad,
                       {step_size, weight_decay, epsilon, 1 - beta1, 1 - beta2}, weight.size(1));
}

}  // namespace

TORCH_LIBRARY_IMPL(adaftr_fast, CUDA, m) {
  m.impl("fused_embedding", fused_embedding);
  m.impl("fused_embedding_backward", fused_embedding_backward);
  m.impl("embedding_sgd_", sgd_);
  m.impl("embedding_adagrad_", adagrad_);
  m.impl("embedding_rowwise_adagrad_", rowwise_adagrad_);
  m.impl("embedding_lazy_adam_", lazy_adam_);
}

}  // namespace adaftr_fast::cuda
