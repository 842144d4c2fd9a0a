// What no kernel of the loss can leave out, alone: as many products of tiles, and as many exponentials, as one loss
// with all gradients takes, on operands that stay in the nearest cache. benchmarks/infonce/bench_limits.py times them.
#pragma once

#include "cpu/infonce/kernels.h"

namespace adaftr_fast {

enum class Part { kScores, kRows, kColumns, kExponentials };  // S = A B^T, P B, P^T A', P of S

constexpr int64_t kMaxWidthFromCache = 512;
constexpr int64_t kFloatsFromCache = 64 << 10;  // of a thread's operands, at most

// The share of one of `threads` threads; `operands` holds kFloatsFromCache numbers. Returns how many multiplications,
// or exponentials, it did. Null where an instruction set adds none.
using PartFromCache = int64_t (*)(Part part, const InfoNCEProblem<float>& problem, int64_t threads, float* operands);

struct LimitKernels {
  PartFromCache f32, bf16;
};

namespace generic {
extern const LimitKernels kLimits;
}
namespace avx2 {
extern const LimitKernels kLimits;
}
namespace avx512 {
extern const LimitKernels kLimits;
}
namespace avx512_bf16 {
extern const LimitKernels kLimits;
}
namespace amx {
extern const LimitKernels kLimits;
}

}  // namespace adaftr_fast
