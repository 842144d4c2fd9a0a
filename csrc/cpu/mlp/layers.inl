// Stacks of dense layers, forward and backward. Included once per instruction set (see vectors.inl).
//
// A thread takes a block of rows through all layers of all stacks while it is in cache. In the backward it also adds up
// its own share of the weights' gradients, block by block; the shares are then summed in the order of the threads, so
// that the same number of threads gives the same bits.
//
// Between products the loops run over columns, a vector at a time, and then over rows, so that what does not change
// from row to row stays out of the inner loop; the other order took up to a fifth longer.
#pragma once

#include "cpu/mlp/rows.inl"
#include "cpu/simd/arena.inl"
#include "cpu/simd/factors.inl"
#include "cpu/simd/gemm.inl"
#include "cpu/simd/transpose.inl"

constexpr int64_t kBlockRows = 64;  // with their activations within L2, while panels of the weights pass through L1

template <class T, class F>
struct Mlp {
  static constexpr int kColumns = kPanel<F> * kDepth<F>;      // of a panel of factors along
  static constexpr int kBlockDepth = kBlockRows / kDepth<F>;  // of a panel of factors down
  // Of a panel of packed weights, half of an L1 cache of 32 KB: it stays there while the rows of a block pass.
  static constexpr int64_t kSliceDepth = (1 << 14) / (kPanel<F> * sizeof(F));
  const MlpProblem<T>& q;
  int64_t tasks, blocks;
  int64_t buffer_elements, share;  // of one of a thread's buffers; of a thread's share of all d_packed
  Arena arena;
  T *sums, *shares;
  F* factors;

  // A thread's buffers.
  enum FactorBuffer { kInput, kHidden, kGradient, kFirstGradients, kGradientDown, kFactorBuffers };

  Mlp(const MlpProblem<T>& problem, bool backward, int64_t threads, char* base) : q(problem), arena{base} {
    blocks = ceil_div(q.rows, kBlockRows);
    tasks = at_most(threads, blocks);
    int64_t widest = 1;
    for (int64_t i = 0; i < q.inputs; ++i) widest = at_least(widest, q.input[i].width);
    share = 0;
    for (int64_t l = 0; l < q.layers; ++l) {
      widest = at_least(widest, q.layer[l].out);
      share += d_weight_elements(q.layer[l]) + panels_of<T>(q.layer[l].out) * kPanel<T>;
    }
    if (backward)
      widest = at_least(widest, place_rows());
    else
      for (int64_t l = 0; l < q.layers; ++l) place_alone(q.layer[l], q.layer[l].out, q.layer[l].in);
    buffer_elements = ceil_div(widest, kColumns) * kColumns * kBlockRows;
    arena.take(tasks * buffer_elements, sums);
    arena.take(tasks * kFactorBuffers * buffer_elements / kDepth<F>, factors);
    arena.take(backward ? tasks * share : 0, shares);
    int64_t used = 0;
    for (int64_t l = 0; l < q.layers; ++l) {
      q.layer[l].d_packed = shares + used;
      used += d_weight_elements(q.layer[l]) + panels_of<T>(q.layer[l].out) * kPanel<T>;
    }
  }

  // Packed weights of one layer: `depth` numbers down.
  void place_alone(MlpLayer<T>& layer, int64_t width, int64_t depth) {
    F* packed;
    layer.packed_depth = packed_depth(depth);
    arena.take(panels_of<T>(width) * layer.packed_depth * kPanel<F>, packed);
    layer.packed = packed;
    layer.columns = layer.packed_depth * kDepth<F>;
    layer.first_column = 0;
  }

  // Packed weights of the backward. The first layers that read one input stand below one another, so that the input's
  // gradient is one product with the gradients of all their sums, side by side. Returns the greatest number of those.
  int64_t place_rows() {
    int64_t widest = 0;
    for (int64_t i = 0; i < q.inputs; ++i) {
      int64_t columns = 0;
      MlpLayer<T>* before = nullptr;
      for (int64_t s = 0; s < q.stacks; ++s) {
        if (q.stack[s].input != i) continue;
        MlpLayer<T>& layer = q.layer[q.stack[s].first_layer];
        layer.first_column = ceil_div(columns, kColumns) * kColumns;
        if (before != nullptr) before->columns = layer.first_column - before->first_column;
        layer.columns = packed_depth(layer.out) * kDepth<F>;
        columns = layer.first_column + layer.columns;
        before = &layer;
      }
      F* packed;
      arena.take(panels_of<T>(q.input[i].width) * packed_depth(columns) * kPanel<F>, packed);
      for (int64_t s = 0; s < q.stacks; ++s) {
        if (q.stack[s].input != i) continue;
        MlpLayer<T>& layer = q.layer[q.stack[s].first_layer];
        layer.packed = packed + layer.first_column / kDepth<F> * kPanel<F>;
        layer.packed_depth = packed_depth(columns);
        for (int64_t d = 1; d < q.stack[s].depth; ++d) place_alone((&layer)[d], (&layer)[d].in, (&layer)[d].out);
      }
      widest = at_least(widest, columns);
    }
    return widest;
  }

  static int64_t depth_of(int64_t count) { return ceil_div(count, kDepth<F>); }
  // Of packed weights: what is beyond the depth is written a vector at a time, and not read.
  static int64_t packed_depth(int64_t count) { return ceil_div(count, kLanes<T>) * (kLanes<T> / kDepth<F>); }
  static int64_t d_weight_elements(const MlpLayer<T>& layer) { return panels_of<T>(layer.in) * layer.out * kPanel<T>; }
  T* d_weight_of(const MlpLayer<T>& layer, int64_t task) { return layer.d_packed + task * share; }
  T* d_bias_of(const MlpLayer<T>& layer, int64_t task) { return d_weight_of(layer, task) + d_weight_elements(layer); }
  T* product_of(int64_t task) { return sums + task * buffer_elements; }
  F* buffer(int64_t task, FactorBuffer which) {
    return factors + (task * kFactorBuffers + which) * buffer_elements / kDepth<F>;
  }

  // Where a block's column k begins; the rows of a panel of numbers, or of factors along, stand kPanel apart.
  static T* column(T* block, int64_t k) { return block + k / kPanel<T> * kBlockRows * kPanel<T> + k % kPanel<T>; }
  static F* column_along(F* block, int64_t k) {
    return block + k / kColumns * kBlockRows * kPanel<F> + k % kColumns / kDepth<F>;
  }
  static F* column_down(F* block, int64_t k) { return block + k / kPanel<F> * kBlockDepth * kPanel<F> + k % kPanel<F>; }

  // body(task) on each task's thread.
  template <class Body>
  void in_parallel(Body body) {
    parallel_for(tasks, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) body(task);
    });
  }

  void forward() {
    in_parallel([this](int64_t task) { pack(task, &Mlp::pack_transposed); });
    in_parallel([this](int64_t task) {
      over_blocks(task, [&](int64_t row, int64_t rows) { forward_block(task, row, rows); });
    });
  }

  void backward() {
    in_parallel([this](int64_t task) { pack(task, &Mlp::pack_rows); });
    in_parallel([this](int64_t task) {
      over_blocks(task, [&](int64_t row, int64_t rows) { backward_block(task, row, rows); });
    });
    in_parallel([this](int64_t task) { sum_shares(task); });
  }

  template <class Body>
  void over_blocks(int64_t task, Body body) {
    for (int64_t b = blocks * task / tasks; b < blocks * (task + 1) / tasks; ++b)
      body(b * kBlockRows, at_most(q.rows - b * kBlockRows, kBlockRows));
  }

  // The task's share of all panels of all weights.
  void pack(int64_t task, void (Mlp::*one)(const MlpLayer<T>&, int64_t panel)) {
    int64_t number = 0;
    for (int64_t l = 0; l < q.layers; ++l) {
      const MlpLayer<T>& layer = q.layer[l];
      const int64_t panels = panels_of<T>(one == &Mlp::pack_rows ? layer.in : layer.out);
      for (int64_t p = 0; p < panels; ++p)
        if (number++ % tasks == task) (this->*one)(layer, p);
    }
  }

  // packed: [out panels][packed_depth][kPanel], W^T
  void pack_transposed(const MlpLayer<T>& layer, int64_t p) {
    constexpr int64_t kSide = kLanes<F>, kVector = kLanes<T> / kDepth<F>;  // factors of a square, and of a vector
    F* to = static_cast<F*>(layer.packed) + p * layer.packed_depth * kPanel<F>;
    for (int64_t k = 0; k < layer.packed_depth; k += kSide) {
      alignas(64) F rows[kPanel<F> * kSide];
      const int64_t count = at_most(layer.packed_depth - k, kSide);
      for (int64_t j = 0; j < kPanel<F>; ++j)
        for (int64_t i = 0; i < count; i += kVector) {
          const int64_t from = (k + i) * kDepth<F>;
          store_along(rows + j * kSide + i, weights(layer, p * kPanel<F> + j, from), layer.in - from);
        }
      transpose<F>(rows, kSide, kPanel<F>, count, to + k * kPanel<F>, kPanel<F>);
    }
  }

  // packed: [in panels][packed_depth][kPanel], W, and zeros up to `columns`
  void pack_rows(const MlpLayer<T>& layer, int64_t p) {
    F* to = static_cast<F*>(layer.packed) + p * layer.packed_depth * kPanel<F>;
    for (int64_t o = 0; o < layer.columns; o += kDepth<F>, to += kPanel<F>)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        Vec<T> rows[kDepth<F>];
        for (int i = 0; i < kDepth<F>; ++i) rows[i] = weights(layer, o + i, p * kPanel<F> + v * kLanes<T>);
        store_down(to + v * kLanes<T>, rows);
      }
  }

  // Of row o from column k on; zeros beyond the matrix.
  static Vec<T> weights(const MlpLayer<T>& layer, int64_t o, int64_t k) {
    const Rows weight{const_cast<T*>(layer.weight), false};
    return o < layer.out && k < layer.in ? read<T>(weight, o * layer.in + k, layer.in - k) : Vec<T>{};
  }

  // A block of rows of a matrix as factors along,
  static void read_along(Rows from, int64_t row, int64_t rows, int64_t width, F* block) {
    for (int64_t k = 0; k < width; k += kLanes<T>) {
      F* to = column_along(block, k);
      for (int64_t r = 0; r < rows; ++r)
        store_along(to + r * kPanel<F>, read<T>(from, (row + r) * width + k, width - k), width - k);
    }
  }

  // or down.
  static void read_down(Rows from, int64_t row, int64_t rows, int64_t width, F* block) {
    for (int64_t k = 0; k < width; k += kLanes<T>) {
      F* to = column_down(block, k);
      for (int64_t r = 0; r < rows; r += kDepth<F>, to += kPanel<F>) {
        Vec<T> x[kDepth<F>] = {};
#pragma GCC unroll 2
        for (int i = 0; i < kDepth<F>; ++i)
          if (r + i < rows) x[i] = read<T>(from, (row + r + i) * width + k, width - k);
        store_down(to, x);
      }
    }
  }

  // The panel that begins at column k.
  static void write_panel(const T* panel, int64_t k, int64_t row, int64_t rows, int64_t width, Rows to) {
    for (const int64_t end = at_most(k + kPanel<T>, width); k < end; k += kLanes<T>, panel += kLanes<T>)
      for (int64_t r = 0; r < rows; ++r) write<T>(to, (row + r) * width + k, width - k, load(panel + r * kPanel<T>));
  }

  // c = a B for a block: a along, [rows][depth numbers]; b: [panels of c][packed_depth(depth)][kPanel]. The panels of c
  // stand c_stride apart; done(panel, k) is told when that from column k on is complete, and still in L1.
  template <class Done>
  static void multiply_block(int64_t rows, int64_t depth, int64_t width, const F* a, const void* b, T* c,
                             int64_t c_stride, Done done) {
    const int64_t factors = depth_of(depth);
    for (int64_t p = 0; p < panels_of<T>(width); ++p, c += c_stride) {
      const F* panel = static_cast<const F*>(b) + p * packed_depth(depth) * kPanel<F>;
      for (int64_t k = 0; k < factors; k += kSliceDepth)
        for (int64_t i = 0; i < tiles_of(rows); ++i) {
          const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
          tile_for<F, 0>(r1 - r0, width - p * kPanel<T>)({at_most(factors - k, kSliceDepth),
                                                          a + k * kBlockRows + r0 * kPanel<F>, kBlockRows * kPanel<F>,
                                                          panel + k * kPanel<F>, c + r0 * kPanel<T>, k > 0});
        }
      done(c, p * kPanel<T>);
    }
  }

  void forward_block(int64_t task, int64_t row, int64_t rows) {
    F* hidden[2] = {buffer(task, kHidden), buffer(task, kGradient)};
    for (int64_t i = 0; i < q.inputs; ++i) {
      read_along(q.input[i].value, row, rows, q.input[i].width, buffer(task, kInput));
      for (int64_t s = 0; s < q.stacks; ++s) {
        if (q.stack[s].input != i) continue;
        for (int64_t d = 0; d < q.stack[s].depth; ++d) {
          const MlpLayer<T>& layer = q.layer[q.stack[s].first_layer + d];
          multiply_block(rows, layer.in, layer.out, d == 0 ? buffer(task, kInput) : hidden[(d - 1) % 2], layer.packed,
                         product_of(task), 0,
                         [&](const T* y, int64_t k) { activate(layer, row, rows, y, k, hidden[d % 2]); });
        }
      }
    }
  }

  // Bias and relu of the panel that begins at column k; to the layer's output, and as factors for the layer above. A
  // NaN stays.
  static void activate(const MlpLayer<T>& layer, int64_t row, int64_t rows, const T* y, int64_t k, F* along) {
    const Rows bias{const_cast<T*>(layer.bias), false}, output = layer.output;
    const int64_t out = layer.out, end = at_most(k + kPanel<T>, out);
    const bool rectified = layer.rectified;
    for (; k < end; k += kLanes<T>, y += kLanes<T>) {
      const Vec<T> b = read<T>(bias, k, out - k);
      F* to = column_along(along, k);
      for (int64_t r = 0; r < rows; ++r) {
        const Vec<T> sum = load(y + r * kPanel<T>) + b, result = rectified ? (sum < 0 ? Vec<T>{} : sum) : sum;
        store_along(to + r * kPanel<F>, result, out - k);
        write<T>(output, (row + r) * out + k, out - k, result);
      }
    }
  }

  void backward_block(int64_t task, int64_t row, int64_t rows) {
    const bool first_block = row == blocks * task / tasks * kBlockRows;
    for (int64_t i = 0; i < q.inputs; ++i) {
      const MlpInput& input = q.input[i];
      read_down(input.value, row, rows, input.width, buffer(task, kInput));
      int64_t columns = 0;
      const void* packed = nullptr;
      bool any = false;
      for (int64_t s = 0; s < q.stacks; ++s) {
        if (q.stack[s].input != i) continue;
        const MlpLayer<T>& first = q.layer[q.stack[s].first_layer];
        any |= backward_stack(task, q.stack[s], row, rows, first_block);
        columns = first.first_column + first.columns;
        if (packed == nullptr) packed = first.packed;
      }
      if (input.d_value.data == nullptr) continue;
      const auto take = [&](const T* x, int64_t k) { write_panel(x, k, row, rows, input.width, input.d_value); };
      T* panel = product_of(task);
      if (any) {
        multiply_block(rows, columns, input.width, buffer(task, kFirstGradients), packed, panel, 0, take);
      } else {
        for (int64_t r = 0; r < rows * kPanel<T>; ++r) panel[r] = 0;
        for (int64_t k = 0; k < input.width; k += kPanel<T>) take(panel, k);
      }
    }
  }

  // Leaves the gradient of its first layer's sums beside those of the other stacks that read the input. Returns whether
  // any gradient reached it; without, that is 0.
  bool backward_stack(int64_t task, const MlpStack& stack, int64_t row, int64_t rows, bool first_block) {
    const MlpLayer<T>& first = q.layer[stack.first_layer];
    F* first_dy = column_along(buffer(task, kFirstGradients), first.first_column);
    T* dx = product_of(task);
    bool reached = false;  // by a gradient from above
    for (int64_t d = stack.depth - 1; d >= 0; --d) {
      const MlpLayer<T>& layer = q.layer[stack.first_layer + d];
      if (!reached && layer.d_output.data == nullptr) {
        if (first_block) clear_weight_gradient(task, layer);
        continue;
      }
      F *dy = d == 0 ? first_dy : buffer(task, kGradient), *down = kDepth<F> == 1 ? dy : buffer(task, kGradientDown);
      take_gradient(layer, row, rows, reached ? dx : nullptr, dy, down);
      reached = true;
      if (d > 0) read_down(q.layer[stack.first_layer + d - 1].output, row, rows, layer.in, buffer(task, kHidden));
      add_weight_gradient(task, layer, rows, buffer(task, d > 0 ? kHidden : kInput), down, !first_block);
      if (d > 0)
        multiply_block(rows, layer.out, layer.in, dy, layer.packed, dx, kBlockRows * kPanel<T>,
                       [](const T*, int64_t) {});
    }
    for (int64_t k = reached ? ceil_div(first.out, kLanes<T>) * kLanes<T> : 0; k < first.columns; k += kLanes<T>)
      for (int64_t r = 0; r < rows; ++r) store_along(column_along(first_dy, k) + r * kPanel<F>, Vec<T>{}, kLanes<T>);
    return reached;
  }

  // The gradient of the layer's sums, as factors along and down: what came from above, if anything, and what the
  // layer's output is given, where the relu was not zero.
  static void take_gradient(const MlpLayer<T>& layer, int64_t row, int64_t rows, T* above, F* along, F* down) {
    const Rows output = layer.output, d_output = layer.d_output;
    const int64_t out = layer.out;
    const bool rectified = layer.rectified;
    for (int64_t k = 0; k < out; k += kLanes<T>) {
      const T* from = above == nullptr ? nullptr : column(above, k);
      F *to = column_along(along, k), *to_down = column_down(down, k);
      for (int64_t r = 0; r < rows; r += kDepth<F>, to_down += kPanel<F>) {
        Vec<T> g[kDepth<F>] = {};
#pragma GCC unroll 2
        for (int i = 0; i < kDepth<F>; ++i) {
          if (r + i >= rows) break;
          const int64_t at = (row + r + i) * out + k;
          if (from != nullptr) g[i] = load(from + (r + i) * kPanel<T>);
          if (d_output.data != nullptr) g[i] += read<T>(d_output, at, out - k);
          if (rectified) g[i] = read<T>(output, at, out - k) <= 0 ? Vec<T>{} : g[i];
          if constexpr (kDepth<F> > 1) store_along(to + (r + i) * kPanel<F>, g[i], out - k);
        }
        store_down(to_down, g);
      }
    }
  }

  void clear_weight_gradient(int64_t task, const MlpLayer<T>& layer) {
    const int64_t biases = panels_of<T>(layer.out) * kPanel<T>;
    for (int64_t i = 0; i < d_weight_elements(layer) + biases; ++i) d_weight_of(layer, task)[i] = 0;
  }

  void add_weight_gradient(int64_t task, const MlpLayer<T>& layer, int64_t rows, const F* x, const F* dy,
                           bool accumulate) {
    T *d_weight = d_weight_of(layer, task), *d_bias = d_bias_of(layer, task);
    for (int64_t p = 0; p < panels_of<T>(layer.in); ++p)
      for (int64_t o = 0; o < panels_of<T>(layer.out); ++o) {
        const int64_t outs = at_most(layer.out - o * kPanel<T>, kPanel<T>);
        for (int64_t i = 0; i < tiles_of(outs); ++i) {
          const int64_t o0 = tile_begin(outs, i), o1 = tile_begin(outs, i + 1);
          tile_for<F, kPanel<F>>(o1 - o0, layer.in - p * kPanel<T>)(
              {depth_of(rows), dy + o * kBlockDepth * kPanel<F> + o0, 0, x + p * kBlockDepth * kPanel<F>,
               d_weight + (p * layer.out + o * kPanel<T> + o0) * kPanel<T>, accumulate});
        }
      }
    for (int64_t o = 0; o < layer.out; o += kLanes<T>)
      store(d_bias + o, (accumulate ? load(d_bias + o) : Vec<T>{}) +
                            sum_of_rows(dy + o / kPanel<F> * kBlockDepth * kPanel<F> + o % kPanel<F>, depth_of(rows)));
  }

  // Of a vector's columns in a panel; four sums, for shorter chains of additions and of rounding errors.
  static Vec<T> sum_of_rows(const F* column, int64_t depth) {
    Vec<T> sum[4] = {};
    for (int64_t r = 0; r < depth; ++r) multiply_add(sum[r % 4], kOne<F>, load(column + r * kPanel<F>));
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // The task's share of the rows of every weight.
  void sum_shares(int64_t task) {
    for (int64_t l = 0; l < q.layers; ++l) {
      const MlpLayer<T>& layer = q.layer[l];
      for (int64_t o = layer.out * task / tasks; o < layer.out * (task + 1) / tasks; ++o) {
        for (int64_t k = 0; k < layer.in; k += kLanes<T>) {
          const int64_t place = (k / kPanel<T> * layer.out + o) * kPanel<T> + k % kPanel<T>;
          Vec<T> sum = load(d_weight_of(layer, 0) + place);
          for (int64_t t = 1; t < tasks; ++t) sum += load(d_weight_of(layer, t) + place);
          write<T>(Rows{layer.d_weight, false}, o * layer.in + k, layer.in - k, sum);
        }
        T sum = d_bias_of(layer, 0)[o];
        for (int64_t t = 1; t < tasks; ++t) sum += d_bias_of(layer, t)[o];
        layer.d_bias[o] = sum;
      }
    }
  }
};

template <class T, class F>
size_t mlp_workspace_bytes(const MlpProblem<T>& problem, bool backward, int64_t threads) {
  return Mlp<T, F>(problem, backward, threads, nullptr).arena.used;
}
template <class T, class F>
void mlp_forward(const MlpProblem<T>& problem, void* workspace, int64_t threads) {
  Mlp<T, F>(problem, false, threads, static_cast<char*>(workspace)).forward();
}
template <class T, class F>
void mlp_backward(const MlpProblem<T>& problem, void* workspace, int64_t threads) {
  Mlp<T, F>(problem, true, threads, static_cast<char*>(workspace)).backward();
}
