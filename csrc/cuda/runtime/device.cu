// Reports of bad input, and the sort.
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/runtime/device.cuh"

#if defined(ADAFTR_FAST_SERIAL)
#include <algorithm>
#else
#include <ATen/cuda/cub.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

namespace adaftr_fast::cuda {
namespace {

#if defined(ADAFTR_FAST_SERIAL)
Report new_report() { return {new int32_t(0), new Finding{}}; }

bool is_capturing() { return false; }

void withdraw(const Report& report) { *report.claimed = 0; }

void sort_pairs(const int32_t* keys, int32_t* sorted, const int32_t* values, int32_t* order, int64_t count, int) {
  if (skips_kernels) return;
  std::copy_n(values, count, order);
  std::stable_sort(order, order + count, [&](int32_t a, int32_t b) { return keys[a] < keys[b]; });
  std::transform(order, order + count, sorted, [&](int32_t at) { return keys[at]; });
}
#else
// The first use of a device may lie in the capture of a graph, which this work is no part of.
Report new_report() {
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  Report report;
  C10_CUDA_CHECK(cudaHostAlloc(&report.finding, sizeof(Finding), cudaHostAllocPortable | cudaHostAllocMapped));
  *report.finding = {};
  C10_CUDA_CHECK(cudaMalloc(&report.claimed, sizeof(int32_t)));
  C10_CUDA_CHECK(cudaMemset(report.claimed, 0, sizeof(int32_t)));
  C10_CUDA_CHECK(cudaStreamSynchronize(cudaStreamLegacy));  // once: other streams do not wait for the memset
  return report;
}

bool is_capturing() { return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None; }

void withdraw(const Report& report) {
  C10_CUDA_CHECK(cudaMemsetAsync(report.claimed, 0, sizeof(int32_t), c10::cuda::getCurrentCUDAStream()));
}

void sort_pairs(const int32_t* keys, int32_t* sorted, const int32_t* values, int32_t* order, int64_t count, int bits) {
  at::cuda::cub::radix_sort_pairs(keys, sorted, values, order, count, /*descending=*/false, 0, bits);
}
#endif

std::mutex mutex;
std::vector<std::unique_ptr<Report>> reports;  // by device

Report* find_report(const at::Device& device) {
  const auto at = static_cast<size_t>(device.has_index() ? device.index() : 0);
  if (reports.size() <= at) reports.resize(at + 1);
  return reports[at].get();
}

// Threads: M. Lists the rows as keys, those out of range as num_rows, and their places.
struct Keys {
  const int64_t* rows;
  int32_t *keys, *places;
  int64_t num_rows;

  ADAFTR_FAST_HD void operator()(int64_t i) const {
    const int64_t row = rows[i];
    keys[i] = static_cast<int32_t>(static_cast<uint64_t>(row) < static_cast<uint64_t>(num_rows) ? row : num_rows);
    places[i] = static_cast<int32_t>(i);
  }
};

}  // namespace

Report report_of(const at::Device& device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (Report* found = find_report(device)) return *found;
  const DeviceGuard guard(device);
  auto& slot = reports[static_cast<size_t>(device.has_index() ? device.index() : 0)];
  slot = std::make_unique<Report>(new_report());
  return *slot;
}

void raise_reported(const at::Device& device) {
  Finding found;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    Report* report = find_report(device);
    if (report == nullptr) return;
    const std::atomic_ref<Fault> fault(report->finding->fault);
    if (fault.load(std::memory_order_acquire) == Fault::none) return;
    const DeviceGuard guard(device);
    if (is_capturing()) return;  // a graph would withdraw it in every replay; the next op raises it
    found = *report->finding;
    fault.store(Fault::none, std::memory_order_release);
    withdraw(*report);
  }
  constexpr const char* kLater = " (in a call before this one: kernels report bad input when they have run)";
  TORCH_CHECK(found.fault != Fault::schedule, "embedding_adam_: the schedule is full at ", found.last, " steps",
              kLater);
  TORCH_CHECK(found.fault != Fault::clock, "embedding_adam_: the clock must be within the ", found.last,
              " steps of the schedule", kLater);
  TORCH_CHECK(found.fault != Fault::current, "embedding: state tensor 1 must hold steps from ", found.last,
              " on, where the schedule begins, got ", found.value, " for row ", found.at, kLater);
  TORCH_CHECK_VALUE(found.fault != Fault::fields, "embedding: field_offsets must rise within 0 to ", found.last,
                    " rows of the table, got row ", found.value, " for an id of field ", found.field, kLater);
  TORCH_CHECK_VALUE(found.fault != Fault::offsets, "embedding_bags: offsets must rise from 0 to the number of values, ",
                    found.last, ", got ", found.value, " at position ", found.at, kLater);
  TORCH_CHECK_INDEX(false, "embedding: ids of row ", found.at, ": ", found.value, " is out of range for field ",
                    found.field, " of its table, whose ids are 0 to ", found.last, kLater);
}

SortedRows sort_rows(const char* op, const at::Tensor& rows, int64_t num_rows) {
  constexpr int64_t kMost = INT32_MAX;
  const int64_t count = rows.size(0);
  TORCH_CHECK(num_rows < kMost && count < kMost, op, ": expected fewer than ", kMost,
              " rows and look-ups on a GPU, got ", num_rows, " and ", count);
  const at::Tensor keys = at::empty({4, count}, rows.options().dtype(at::kInt));
  auto* at = keys.mutable_data_ptr<int32_t>();
  if (count == 0) return {keys};
  launch(Keys{rows.const_data_ptr<int64_t>(), at, at + count, num_rows}, count);
  int bits = 1;
  while (num_rows >> bits != 0) ++bits;
  sort_pairs(at, at + 2 * count, at + count, at + 3 * count, count, bits);
  return {keys};
}

ADAFTR_FAST_DEVICE_OPS(m) {
  m.impl("raise_reported", [](const at::Tensor& device) { raise_reported(device.device()); });
}

}  // namespace adaftr_fast::cuda
