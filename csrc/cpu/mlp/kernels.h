// Stacks of dense layers, mixtures of experts and log-losses on CPU: what the kernels for each instruction set take.
// Torch-free.
//
// Shapes: B rows, in and out widths of a layer, T tasks, k experts, v width of an expert. T is float or double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/runtime/parallel.h"

namespace adaftr_fast {

// A row-major matrix of T or, where `half`, of bfloat16.
struct Rows {
  void* data;
  bool half;
};

struct MlpInput {
  int64_t width;
  Rows value;    // [B, width]
  Rows d_value;  // [B, width]; data is null where it is not wanted
};

// y = relu(x W^T + b), or without the relu.
template <class T>
struct MlpLayer {
  int64_t in, out;
  bool rectified;
  const T* weight;  // [out, in]
  const T* bias;    // [out]
  Rows output;      // [B, out]
  Rows d_output;    // [B, out]; data is null where there is none
  T* d_weight;      // [out, in]
  T* d_bias;        // [out]
  // Set by the kernel:
  void* packed;          // weight, as factors in panels
  int64_t packed_depth;  // factors from one panel of `packed` to the next
  int64_t columns;       // numbers of a panel of `packed` that are this layer's, down
  int64_t first_column;  // where they begin, below other first layers that read the same input
  T* d_packed;           // per thread, d_weight in panels [in panels][out][panel] and d_bias [out panels][panel]
};

// Layers in sequence, the first of which reads an input.
struct MlpStack {
  int64_t input, first_layer, depth;
};

template <class T>
struct MlpProblem {
  int64_t rows, inputs, stacks, layers;
  const MlpInput* input;
  const MlpStack* stack;
  MlpLayer<T>* layer;
};

// out_t = sum_i softmax(logits_t)_i experts_i
struct MixtureProblem {
  int64_t rows, tasks, experts, width;
  Rows expert;              // [B, k, v]
  Rows logits;              // [B, T, k]
  const Rows* out;          // T of [B, v]; with d_out null written, else not looked at
  const Rows* d_out;        // T of [B, v], of one type; data is null where there is none
  Rows d_expert, d_logits;  // as expert and logits
};

template <class T>
struct MlpKernel {
  size_t (*workspace_bytes)(const MlpProblem<T>&, bool backward, int64_t threads);
  // workspace: 64-byte aligned, uninitialised.
  void (*forward)(const MlpProblem<T>&, void* workspace, int64_t threads);
  void (*backward)(const MlpProblem<T>&, void* workspace, int64_t threads);
  size_t (*mixture_workspace_bytes)(const MixtureProblem&, int64_t threads);
  void (*mixture)(const MixtureProblem&, void* workspace, int64_t threads);
  // log(1 + exp(z)) - y z and sigmoid(z) - y, of `count` logits z and labels y.
  void (*log_loss)(const T* logits, const T* labels, int64_t count, T* losses, T* slopes);

  explicit operator bool() const { return forward != nullptr; }
};

// The kernels of one instruction set; null where it adds none.
struct MlpKernels {
  MlpKernel<float> f32{};
  MlpKernel<double> f64{};
  MlpKernel<float> bf16{};  // products of bfloat16 factors
};

namespace generic {
extern const MlpKernels kMlp;
}
namespace avx2 {
extern const MlpKernels kMlp;
}
namespace avx512 {
extern const MlpKernels kMlp;
}
namespace avx512_bf16 {
extern const MlpKernels kMlp;
}
namespace neon {
extern const MlpKernels kMlp;
}
namespace neon_bf16 {
extern const MlpKernels kMlp;
}

}  // namespace adaftr_fast
