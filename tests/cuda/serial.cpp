// The CUDA files as plain C++: every kernel runs in a loop on the CPU, behind the ops of torch.ops.adaftr_fast_serial.
#define ADAFTR_FAST_SERIAL
#include "cuda/embedding/bags.cu"
#include "cuda/embedding/lookup.cu"
#include "cuda/embedding/update.cu"
#include "cuda/runtime/device.cu"

TORCH_LIBRARY_FRAGMENT(adaftr_fast_serial, m) {
  m.def("launches() -> int", [] { return adaftr_fast::cuda::launches; });
  m.def("set_lane_shift(int shift) -> ()",
        [](int64_t shift) { adaftr_fast::cuda::lane_shift = static_cast<int>(shift); });
  m.def("set_skips_kernels(bool skips) -> ()", [](bool skips) { adaftr_fast::cuda::skips_kernels = skips; });
}
