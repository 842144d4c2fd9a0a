// torch.ops.adaftr_fast._infonce_from_cache: the loss's products or exponentials alone, for benchmarks (limits.h).
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <string>

#include "cpu/infonce/limits/limits.h"
#include "cpu/runtime/dispatch.h"

namespace adaftr_fast {
namespace {

constexpr KernelTables<LimitKernels> kTables = {&generic::kLimits,
#if defined(__x86_64__)
                                                &avx2::kLimits, &avx512::kLimits, &avx512_bf16::kLimits, &amx::kLimits
#endif
};

constexpr std::array<const char*, 4> kParts = {"scores", "rows", "columns", "exponentials"};  // in the order of Part

Part part_of(const std::string& name) {
  for (size_t i = 0; i < kParts.size(); ++i)
    if (name == kParts[i]) return static_cast<Part>(i);
  TORCH_CHECK_VALUE(false, "_infonce_from_cache: part must be scores, rows, columns or exponentials, got ", name);
}

// Returns how many multiplications or exponentials were done; 0 where the instruction set has no kernel for the type.
int64_t infonce_from_cache(const std::string& name, int64_t rows, int64_t columns, int64_t width, bool bfloat16) {
  const Part part = part_of(name);
  TORCH_CHECK_VALUE(rows > 0 && columns > 0 && width > 0 && width <= kMaxWidthFromCache,
                    "_infonce_from_cache: rows and columns must be positive and width in [1, ", kMaxWidthFromCache,
                    "], got ", rows, ", ", columns, " and ", width);
  const PartFromCache run = best_kernel(kTables, bfloat16 ? &LimitKernels::bf16 : &LimitKernels::f32);
  if (run == nullptr) return 0;
  const int64_t threads = thread_count();
  // Bits that are small numbers in float32 and in bfloat16.
  at::Tensor operands = at::full({threads, kFloatsFromCache}, 0x1.3c3cp-7f);
  float* const data = operands.mutable_data_ptr<float>();
  InfoNCEProblem<float> problem{};
  problem.rows = rows, problem.columns = columns, problem.width = width;
  problem.d_anchors = problem.d_candidates = data;  // both are needed
  std::atomic<int64_t> done{0};
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      done += run(part, problem, threads, data + thread * kFloatsFromCache);
  });
  return done;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(adaftr_fast, m) {
  m.def("_infonce_from_cache(str part, int rows, int columns, int width, bool bfloat16) -> int", infonce_from_cache);
}

}  // namespace adaftr_fast
