// The look-ups of bags of ids on CUDA tensors.
#include <torch/library.h>

#include "cuda/embedding/checks.cuh"

namespace adaftr_fast::cuda {
namespace {

void check_bags(const char* op, const at::Tensor& values, const at::Tensor& offsets,
                const std::optional<at::Tensor>& factors, int64_t fields) {
  TORCH_CHECK_VALUE(fields >= 1, op, ": fields must be >= 1, got ", fields);
  TORCH_CHECK_TYPE(values.scalar_type() == at::kInt || values.scalar_type() == at::kLong, op,
                   ": values must be int32 or int64, got ", values.scalar_type());
  TORCH_CHECK_VALUE(values.dim() == 1, op, ": values must be [N], got ", values.sizes());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) > 0 && (offsets.size(0) - 1) % fields == 0 &&
                        offsets.scalar_type() == at::kLong,
                    op, ": offsets must be int64 [B * ", fields, " + 1], got ", offsets.scalar_type(), " ",
                    offsets.sizes());
  TORCH_CHECK_VALUE(!factors || factors->sizes() == values.sizes(), op, ": per_sample_weights must be [",
                    values.size(0), "], got ", factors ? factors->sizes() : values.sizes());
  TORCH_CHECK_VALUE(values.device() == offsets.device() && (!factors || factors->device() == values.device()), op,
                    ": values, offsets and per_sample_weights must be on one device");
  TORCH_CHECK_VALUE(offsets.size(0) <= INT32_MAX && values.size(0) <= INT32_MAX, op, ": expected at most ", INT32_MAX,
                    " bags and ids on a GPU, got ", offsets.size(0) - 1, " and ", values.size(0));
  // Otherwise the kernels check that the offsets rise, each bag its own.
  TORCH_CHECK_VALUE(offsets.size(0) > 1 || values.size(0) == 0, op,
                    ": offsets must rise from 0 to the number of values, ", values.size(0), ", got no bag");
  raise_reported(values.device());
}

template <typename Id>
Bags<Id> bags_of(const at::Tensor& values, const at::Tensor& offsets) {
  return {values.const_data_ptr<Id>(), offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, values.size(0)};
}

// The factors in the type that the table computes in; an undefined tensor without.
at::Tensor factors_of(const std::optional<at::Tensor>& factors, at::ScalarType table) {
  return factors ? factors->to(compute_type(table)).contiguous() : at::Tensor();
}

template <typename T>
const T* pointer_of(const at::Tensor& factors) {
  return factors.defined() ? factors.const_data_ptr<T>() : nullptr;
}

at::Tensor embedding_bags(const at::Tensor& weight, const at::Tensor& values, const at::Tensor& offsets,
                          const std::optional<at::Tensor>& factors, const at::Tensor& field_offsets, bool mean,
                          at::TensorList state, bool /*sparse*/) {
  check_weight("embedding_bags", weight);
  check_fields("embedding_bags", field_offsets, values);
  const int64_t fields = field_offsets.size(0) - 1, width = weight.size(1);
  check_bags("embedding_bags", values, offsets, factors, fields);
  TORCH_CHECK_VALUE(weight.device() == values.device(), "embedding_bags: weight and values must be on one device, got ",
                    weight.device(), " and ", values.device());
  const DeviceGuard guard(weight.device());
  const int64_t bags = offsets.size(0) - 1;
  at::Tensor out = at::empty({bags / fields, fields * width}, weight.options());
  const at::Tensor ids = values.contiguous(), starts = offsets.contiguous();
  const at::Tensor own = factors_of(factors, weight.scalar_type());
  by_table_type("embedding_bags", weight.scalar_type(), [&](auto element) {
    using W = decltype(element);
    using T = Compute<W>;
    const auto pool = [&](auto pack, auto id, auto deferred, const AdamState<T>& adam) {
      using Id = decltype(id);
      const Lanes lanes = lanes_for(width / pack());
      launch(PoolBags<W, Id, pack(), deferred()>{{weight.const_data_ptr<W>(), adam, width},
                                                 bags_of<Id>(ids, starts),
                                                 pointer_of<T>(own),
                                                 fields_of(field_offsets, weight.size(0), report_of(weight.device())),
                                                 mean,
                                                 out.mutable_data_ptr<W>(),
                                                 lanes},
             bags << lanes.shift);
    };
    by_id_type(ids, [&](auto id) {
      if (state.empty()) {
        return by_pack<W>(width, {weight, out}, [&](auto pack) { pool(pack, id, std::false_type{}, {}); });
      }
      const AdamState<T> adam = adam_state<W>("embedding_bags", weight, state);
      by_pack<W>(width, {weight, out, state[0]}, [&](auto pack) { pool(pack, id, std::true_type{}, adam); });
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> embedding_bags_backward(const at::Tensor& grad, const at::Tensor& values,
                                                           const at::Tensor& offsets,
                                                           const std::optional<at::Tensor>& factors,
                                                           const at::Tensor& field_offsets, int64_t width, bool mean) {
  check_fields("embedding_bags_backward", field_offsets, values);
  check_bags("embedding_bags_backward", values, offsets, factors, field_offsets.size(0) - 1);
  const int64_t bags = offsets.size(0) - 1, count = values.size(0);
  const int64_t fields = field_offsets.size(0) - 1;
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == bags / fields && grad.size(1) % fields == 0 &&
                        grad.size(1) / fields == width && grad.device() == values.device(),
                    "embedding_bags_backward: grad must be [", bags / fields, ", ", fields, " * ", width, "] on ",
                    values.device(), ", got ", grad.sizes(), " on ", grad.device());
  const DeviceGuard guard(grad.device());
  const at::Tensor dense = grad.contiguous(), ids = values.contiguous(), starts = offsets.contiguous();
  const at::Tensor own = factors_of(factors, grad.scalar_type());
  // Offsets that do not rise leave ids in no bag: zeros for row 0, until the look-up's error is raised.
  at::Tensor rows = at::zeros({count}, offsets.options()), terms = at::zeros({count, width}, grad.options());
  by_table_type("embedding_bags_backward", grad.scalar_type(), [&](auto element) {
    using W = decltype(element);
    by_pack<W>(width, {dense, terms}, [&](auto pack) {
      const Lanes lanes = lanes_for(width / pack());
      by_id_type(ids, [&](auto id) {
        using Id = decltype(id);
        launch(BagTerms<W, Id, pack()>{bags_of<Id>(ids, starts), pointer_of<Compute<W>>(own),
                                       fields_of(field_offsets, INT64_MAX, {}),  // the look-up has reported what is bad
                                       mean, dense.const_data_ptr<W>(), rows.mutable_data_ptr<int64_t>(),
                                       terms.mutable_data_ptr<W>(), width, lanes},
               bags << lanes.shift);
      });
    });
  });
  return {rows, terms};
}

std::tuple<at::Tensor, at::Tensor> select_bags(const at::Tensor& values, const at::Tensor& offsets,
                                               const std::optional<at::Tensor>& factors, at::IntArrayRef chosen,
                                               int64_t fields) {
  check_bags("embedding_bags", values, offsets, factors, fields);
  TORCH_CHECK_VALUE(fields <= kMostFields, "select_bags: expected at most ", kMostFields, " fields on a GPU, got ",
                    fields);
  const DeviceGuard guard(values.device());
  const auto selects = static_cast<int64_t>(chosen.size());
  Selection selected;
  std::fill_n(selected.place, kMostFields, int16_t{-1});
  for (int64_t c = 0; c < selects; ++c) {
    TORCH_CHECK_VALUE(0 <= chosen[c] && chosen[c] < fields, "select_bags: chosen must be within 0 to ", fields - 1,
                      ", got ", chosen[c]);
    selected.place[chosen[c]] = static_cast<int16_t>(c);
  }
  const int64_t bags = offsets.size(0) - 1, kept = bags / fields * selects;
  const at::Tensor ids = values.contiguous(), starts = offsets.contiguous();
  const Divider by(static_cast<uint32_t>(fields));
  at::Tensor lengths = at::empty({kept}, offsets.options()), ends = at::zeros({kept + 1}, offsets.options());
  at::Tensor positions = at::zeros({values.size(0)}, offsets.options());
  by_id_type(ids, [&](auto id) {
    using Id = decltype(id);
    const Bags<Id> all = bags_of<Id>(ids, starts);
    launch(SelectedLengths<Id>{all, selected, by, selects, report_of(values.device()),
                               lengths.mutable_data_ptr<int64_t>()},
           bags);
    at::Tensor behind = ends.slice(0, 1);
    at::cumsum_out(behind, lengths, 0);
    launch(SelectedPositions<Id>{all, selected, by, selects, ends.const_data_ptr<int64_t>(),
                                 positions.mutable_data_ptr<int64_t>()},
           values.size(0));
  });
  return {positions, ends};
}

ADAFTR_FAST_DEVICE_OPS(m) {
  m.impl("embedding_bags", embedding_bags);
  m.impl("embedding_bags_backward", embedding_bags_backward);
  m.impl("select_bags", select_bags);
}

}  // namespace
}  // namespace adaftr_fast::cuda
