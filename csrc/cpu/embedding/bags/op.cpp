// The ops adaftr_fast::embedding_bags and embedding_bags_backward on the CPU: checks, memory and launches.

#include <optional>
#include <tuple>

#include "cpu/embedding/backward/merge_in_shares.h"
#include "cpu/embedding/bags/bags.h"
#include "cpu/runtime/parallel.h"

namespace adaftr_fast {
namespace {

void check_bags(const char* op, const Tensor& values, const Tensor& offsets, const Tensor& field_offsets) {
  ADAFTR_CHECK_TYPE(values.scalar_type() == kInt || values.scalar_type() == kLong, op,
                    ": values must be int32 or int64, got ", values.scalar_type());
  ADAFTR_CHECK_VALUE(values.dim() == 1, op, ": values must be [N], got ", shape(values));
  check_fields(op, field_offsets);
  const int64_t fields = field_offsets.size(0) - 1;
  ADAFTR_CHECK_VALUE(offsets.dim() == 1 && offsets.scalar_type() == kLong && offsets.size(0) % fields == 1 % fields &&
                         offsets.size(0) > 0,
                     op, ": offsets must be int64 [B * ", fields, " + 1], got ", offsets.scalar_type(), " ",
                     shape(offsets));
  const Tensor dense = as_contiguous(offsets);
  const int64_t* offset = data_of<int64_t>(dense);
  const int64_t count = offsets.size(0);
  bool rising = offset[0] == 0 && offset[count - 1] == values.size(0);
  for (int64_t i = 1; i < count; ++i) rising &= offset[i - 1] <= offset[i];
  ADAFTR_CHECK_VALUE(rising, op, ": offsets must rise from 0 to the number of values, ", values.size(0));
}

template <typename Id, typename T>
Bags<Id, T> bags_of(const Tensor& values, const Tensor& offsets, const OptionalTensor& per_sample_weights,
                    const Tensor& field_offsets, bool mean) {
  const int64_t fields = field_offsets.size(0) - 1;
  return {data_of<Id>(values),
          data_of<int64_t>(offsets),
          data_of<T>(per_sample_weights),
          data_of<int64_t>(field_offsets),
          (offsets.size(0) - 1) / fields,
          fields,
          mean};
}

template <typename Id, typename T>
void raise_bad_value(const char* op, const Bags<Id, T>& bags, int64_t position) {
  const int64_t* end = bags.offsets + bags.batch * bags.fields + 1;
  const int64_t bag = std::upper_bound(bags.offsets, end, position) - bags.offsets - 1, f = bag % bags.fields;
  ADAFTR_CHECK_INDEX(false, op, ": values[", position, "] = ", bags.values[position], " (row ", bag / bags.fields,
                     ") is out of range for field ", f, ", whose ids are 0 to ",
                     bags.field_offsets[f + 1] - bags.field_offsets[f] - 1);
}

void check_per_sample_weights(const char* op, const OptionalTensor& per_sample_weights, const Tensor& values,
                              ScalarType type) {
  if (!per_sample_weights.has_value()) return;
  ADAFTR_CHECK_VALUE(same_sizes(*per_sample_weights, values) && per_sample_weights->scalar_type() == type, op,
                     ": per_sample_weights must be ", type, " [", values.size(0), "], got ",
                     per_sample_weights->scalar_type(), " ", shape(*per_sample_weights));
}

Tensor embedding_bags(const Tensor& weight, const Tensor& values, const Tensor& offsets,
                      const OptionalTensor& per_sample_weights, const Tensor& field_offsets, bool mean,
                      const Tensors& state, bool /*sparse*/) {
  constexpr const char* kOp = "embedding_bags";
  check_weight(kOp, weight);
  check_bags(kOp, values, offsets, field_offsets);
  check_field_offsets(kOp, field_offsets, weight.size(0));
  check_per_sample_weights(kOp, per_sample_weights, values, compute_type(weight.scalar_type()));
  const Tensor ids = as_contiguous(values), dense_offsets = as_contiguous(offsets);
  const OptionalTensor weights = as_contiguous(per_sample_weights);
  const int64_t fields = field_offsets.size(0) - 1, batch = (offsets.size(0) - 1) / fields, width = weight.size(1);
  Tensor out = cached_empty({batch, fields * width}, weight.scalar_type());
  by_table_type(kOp, weight.scalar_type(), [&](auto w) {
    using W = decltype(w);
    const auto pool = [&](const AdamTable<W>* table) {
      by_id_type(values, [&](auto id) {
        using Id = decltype(id);
        const auto input = bags_of<Id, Compute<W>>(ids, dense_offsets, weights, field_offsets, mean);
        std::atomic<int64_t> bad{-1};
        // Bags differ in size: small tasks, so that no thread is left with the large ones.
        parallel_for(batch, std::max<int64_t>(1, kRowsPerTask * batch / std::max<int64_t>(1, values.size(0))),
                     [&](int64_t begin, int64_t end) {
                       keep_smallest(bad, index_kernels<W, Id>().bags.pool(input, data_of<W>(weight), table, width,
                                                                           mutable_data_of<W>(out), begin, end));
                     });
        if (bad >= 0) raise_bad_value(kOp, input, bad);
      });
    };
    if (state.empty()) return pool(nullptr);
    by_adam_table<W>(kOp, weight, state, [&](const AdamTable<W>& table) { pool(&table); });
  });
  return out;
}

template <typename W, typename Id>
std::tuple<Tensor, Tensor> run_merge(const Bags<Id, Compute<W>>& input, const Tensor& grad, int64_t count,
                                     int64_t width) {
  return merge_in_shares<Compute<W>>(
      {input.field_offsets, input.fields, input.batch, count, width}, grad.scalar_type(),
      [&](const RowSet& set, int64_t begin, int64_t end) {
        return index_kernels<W, Id>().bags.mark(input, set, begin, end);
      },
      [&](int64_t position) { raise_bad_value("embedding_bags_backward", input, position); },
      [&](const RowSet& set, const int64_t* base, Compute<W>* sums, int64_t part, int64_t parts) {
        index_kernels<W, Id>().bags.merge(input, set, base, data_of<W>(grad), width, sums, part, parts);
      });
}

std::tuple<Tensor, Tensor> embedding_bags_backward(const Tensor& grad, const Tensor& values, const Tensor& offsets,
                                                   const OptionalTensor& per_sample_weights,
                                                   const Tensor& field_offsets, int64_t width, bool mean) {
  constexpr const char* kOp = "embedding_bags_backward";
  check_bags(kOp, values, offsets, field_offsets);
  check_field_offsets(kOp, field_offsets, data_of<int64_t>(field_offsets)[field_offsets.size(0) - 1]);
  check_per_sample_weights(kOp, per_sample_weights, values, compute_type(grad.scalar_type()));
  const int64_t fields = field_offsets.size(0) - 1;
  check_gradient(kOp, grad, (offsets.size(0) - 1) / fields, fields, width);
  const Tensor dense = as_contiguous(grad), ids = as_contiguous(values), dense_offsets = as_contiguous(offsets);
  const OptionalTensor weights = as_contiguous(per_sample_weights);
  return by_table_type(kOp, grad.scalar_type(), [&](auto w) {
    using W = decltype(w);
    return by_id_type(values, [&](auto id) {
      using Id = decltype(id);
      return run_merge<W, Id>(bags_of<Id, Compute<W>>(ids, dense_offsets, weights, field_offsets, mean), dense,
                              ids.size(0), width);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaftr_fast, CPU, m) {
  m.impl("embedding_bags", TORCH_BOX(&embedding_bags));
  m.impl("embedding_bags_backward", TORCH_BOX(&embedding_bags_backward));
}

}  // namespace adaftr_fast
