// What a kernel finds wrong with its input. The host does not wait to hear of it: the finding is written to host
// memory, and the next op on the device, or `raise_reported`, raises it.
#pragma once

#include "cuda/runtime/kernel.cuh"

namespace adaftr_fast::cuda {

enum class Fault : int32_t { none, id, fields, offsets, schedule, clock, current };

struct Finding {
  Fault fault;
  int32_t field;
  int64_t at;     // row of the batch or of the table, or position in the offsets
  int64_t value;  // what came
  int64_t last;   // what bounds it
};

struct Report {
  int32_t* claimed;  // on the device: whether a thread writes the finding; the others keep silent, all of them if null
  Finding* finding;  // pinned memory of the host

  ADAFTR_FAST_HD void operator()(const Finding& found) const {
    if (claimed == nullptr) return;
#if defined(__CUDA_ARCH__)
    if (atomicExch(claimed, 1) != 0) return;
    Finding* to = finding;
    to->field = found.field;
    to->at = found.at;
    to->value = found.value;
    to->last = found.last;
    __threadfence_system();
    *reinterpret_cast<volatile Fault*>(&to->fault) = found.fault;
#else
    if (*claimed != 0) return;
    *claimed = 1;
    *finding = found;
#endif
  }
};

}  // namespace adaftr_fast::cuda
