// Adaptive InfoNCE and the sigmoid loss on CPU: what the kernels for each instruction set take. Torch-free.
//
// Shapes: B rows, N columns, d hidden width. T is float or double, also the accumulation type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/runtime/parallel.h"

namespace adaftr_fast {

constexpr int64_t kIgnore = -100;

template <class T>
struct InfoNCEProblem {
  int64_t rows, columns, width;
  const T* anchors;             // [B, d]
  const T* candidates;          // [N, d]
  const T* tau;                 // [B], > 0
  const int64_t* positive;      // [B] or null for diagonal, diagonal + 1, ...; kIgnore leaves the row out
  const int64_t* row_group;     // [B] or null
  const int64_t* column_group;  // [N], null exactly when row_group is
  T ignore_above;               // no negatives: candidates above the positive's score by more; infinity for none
  T margin;                     // subtracted from the positive's score in the softmax
  const T* positive_weight;     // [B] what the gradients subtract from the positive's probability, or null for 1
  const T* scale;               // [B] of the row's loss in the op's loss
  T* loss;                      // [B]
  T* lse;                       // [B]
  T* positive_logit;            // [B]
  bool* top1;                   // [B] or null, as entropy
  T* entropy;                   // [B] or null
  T* d_anchors;                 // [B, d] or null
  T* d_candidates;              // [N, d] or null
  T* d_tau;                     // [B] or null
  int64_t diagonal = 0;         // without `positive`, the positive of the first row
  int64_t sweeps = 1;           // how many threads sweep rows of their own at the same time, and share a cache

  // Rows [begin, end), against the same candidates.
  InfoNCEProblem rows_of(int64_t begin, int64_t end) const {
    InfoNCEProblem part = *this;
    part.rows = end - begin;
    part.diagonal += begin;
    const auto advance = [](int64_t by, auto*&... pointers) {
      ((pointers = pointers == nullptr ? nullptr : pointers + by), ...);
    };
    advance(begin * width, part.anchors, part.d_anchors);
    advance(begin, part.tau, part.positive, part.row_group, part.positive_weight, part.scale, part.loss, part.lse,
            part.positive_logit, part.top1, part.entropy, part.d_tau);
    return part;
  }
};

// Of InfoNCEProblem it takes the operands, positive (kIgnore: the row has negatives alone), loss, d_anchors and
// d_candidates. The other pointers are null.
template <class T>
struct SigmoidProblem : InfoNCEProblem<T> {
  T logit_scale;     // > 0
  T bias;            // logits are logit_scale a_r . b_j + bias
  T* d_logit_scale;  // [B], of each row's loss
  T* d_bias;         // [B]

  SigmoidProblem rows_of(int64_t begin, int64_t end) const {
    SigmoidProblem part = *this;
    static_cast<InfoNCEProblem<T>&>(part) = InfoNCEProblem<T>::rows_of(begin, end);
    part.d_logit_scale += begin, part.d_bias += begin;
    return part;
  }
};

// Both directions, where B = N and row r and column r are each other's positive. loss is the mean of the two, and tau
// and d_tau are those of the rows. positive, ignore_above, margin, lse, positive_logit, top1 and entropy are not used.
template <class T>
struct SymmetricProblem : InfoNCEProblem<T> {
  const T* tau_column;  // [B]
  T* d_tau_column;      // [B] or null
  double weight_unit;   // a power of 2 that brings the largest |scale| / (2 tau) near 1
};

template <class Problem>
struct SweepKernel {
  size_t (*workspace_bytes)(const Problem&, int64_t threads);
  // workspace: 64-byte aligned, uninitialised.
  void (*run)(const Problem&, void* workspace, int64_t threads);

  explicit operator bool() const { return run != nullptr; }
};

constexpr int64_t kMaxBlock = 64;  // rows of a block, at most

// The kernels of all losses with arithmetic in T; an instruction set has all of them or none.
template <class T>
struct LossKernels {
  SweepKernel<InfoNCEProblem<T>> infonce;
  SweepKernel<SigmoidProblem<T>> sigmoid;
  SweepKernel<SymmetricProblem<T>> symmetric;
  // Within blocks of consecutive rows. Of InfoNCEProblem it takes no option of candidates.
  void (*blocks)(const InfoNCEProblem<T>&, int64_t block);

  explicit operator bool() const { return blocks != nullptr; }
};

// The kernels of one instruction set; null where it adds none.
struct InfoNCEKernels {
  LossKernels<float> f32{};
  LossKernels<double> f64{};
  SweepKernel<InfoNCEProblem<float>> bf16{};    // operands rounded to bfloat16
  SweepKernel<InfoNCEProblem<float>> bf16x2{};  // operands as the sum of two bfloat16
};

namespace generic {
extern const InfoNCEKernels kInfoNCE;
}
namespace avx2 {
extern const InfoNCEKernels kInfoNCE;
}
namespace avx512 {
extern const InfoNCEKernels kInfoNCE;
}
namespace avx512_bf16 {
extern const InfoNCEKernels kInfoNCE;
}
namespace amx {
extern const InfoNCEKernels kInfoNCE;
}
namespace neon {
extern const InfoNCEKernels kInfoNCE;
}
namespace neon_bf16 {
extern const InfoNCEKernels kInfoNCE;
}

}  // namespace adaftr_fast
