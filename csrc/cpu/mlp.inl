// Stacks of dense layers, forward and backward. Included once per instruction set (see simd.inl).
//
// A thread takes a block of rows through all layers of all stacks while it is in cache. In the backward it also adds up
// its own share of the weights' gradients, block by block; the shares are then summed in the order of the threads, so
// that the same number of threads gives the same bits.

#include "cpu/arena.inl"
#include "cpu/rows.inl"

constexpr int64_t kBlockRows = 64;  // with their activations within L2, while panels of the weights pass through L1

template <class T>
int64_t panels_of(int64_t width) {
  return ceil_div(width, kPanel<T>);
}

template <class T>
struct Mlp {
  const MlpProblem<T>& q;
  int64_t tasks, blocks;
  int64_t buffer_elements, share;  // of one of a thread's buffers; of a thread's share of all d_packed
  Arena arena;
  T *buffers, *shares;

  static constexpr int kBuffers = 5;  // input, its gradient, a layer's input, dy, dx

  Mlp(const MlpProblem<T>& problem, bool backward, int64_t threads, char* base) : q(problem), arena{base} {
    blocks = ceil_div(q.rows, kBlockRows);
    tasks = at_most(threads, blocks);
    int64_t widest = 1;
    for (int64_t i = 0; i < q.inputs; ++i) widest = at_least(widest, q.input[i].width);
    share = 0;
    for (int64_t l = 0; l < q.layers; ++l) {
      MlpLayer<T>& layer = q.layer[l];
      widest = at_least(widest, layer.out);
      arena.take(
          backward ? panels_of<T>(layer.in) * layer.out * kPanel<T> : panels_of<T>(layer.out) * layer.in * kPanel<T>,
          layer.packed);
      share += d_weight_elements(layer) + panels_of<T>(layer.out) * kPanel<T>;
    }
    buffer_elements = panels_of<T>(widest) * kBlockRows * kPanel<T>;
    arena.take(tasks * kBuffers * buffer_elements, buffers);
    arena.take(backward ? tasks * share : 0, shares);
    int64_t used = 0;
    for (int64_t l = 0; l < q.layers; ++l) {
      q.layer[l].d_packed = shares + used;
      used += d_weight_elements(q.layer[l]) + panels_of<T>(q.layer[l].out) * kPanel<T>;
    }
  }

  static int64_t d_weight_elements(const MlpLayer<T>& layer) { return panels_of<T>(layer.in) * layer.out * kPanel<T>; }
  T* d_weight_of(const MlpLayer<T>& layer, int64_t task) { return layer.d_packed + task * share; }
  T* d_bias_of(const MlpLayer<T>& layer, int64_t task) { return d_weight_of(layer, task) + d_weight_elements(layer); }
  T* buffer(int64_t task, int number) { return buffers + (task * kBuffers + number) * buffer_elements; }

  // body(mlp, task, number of tasks) on each task's thread.
  template <class Body>
  void in_parallel(Parallel parallel, Body body) {
    struct Context {
      Mlp* mlp;
      Body* body;
    } context{this, &body};
    parallel.run(
        tasks,
        [](void* opaque, int64_t task) {
          const Context& c = *static_cast<Context*>(opaque);
          (*c.body)(*c.mlp, task);
        },
        &context);
  }

  void forward(Parallel parallel) {
    in_parallel(parallel, [](Mlp& m, int64_t task) { m.pack(task, &Mlp::pack_transposed); });
    in_parallel(parallel, [](Mlp& m, int64_t task) {
      m.over_blocks(task, [&](int64_t row, int64_t rows) { m.forward_block(task, row, rows); });
    });
  }

  void backward(Parallel parallel) {
    in_parallel(parallel, [](Mlp& m, int64_t task) { m.pack(task, &Mlp::pack_rows); });
    in_parallel(parallel, [](Mlp& m, int64_t task) {
      for (int64_t i = 0; i < m.share; ++i) m.shares[task * m.share + i] = 0;
      m.over_blocks(task, [&](int64_t row, int64_t rows) { m.backward_block(task, row, rows); });
    });
    in_parallel(parallel, [](Mlp& m, int64_t task) { m.sum_shares(task); });
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

  // packed: [out panels][in][kPanel], W^T
  void pack_transposed(const MlpLayer<T>& layer, int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(layer.out - j0, kPanel<T>);
    T* to = layer.packed + p * layer.in * kPanel<T>;
    for (int64_t k = 0; k < layer.in; ++k, to += kPanel<T>) {
      const T* from = layer.weight + j0 * layer.in + k;
      for (int64_t j = 0; j < count; ++j) to[j] = from[j * layer.in];
      for (int64_t j = count; j < kPanel<T>; ++j) to[j] = 0;
    }
  }

  // packed: [in panels][out][kPanel], W
  void pack_rows(const MlpLayer<T>& layer, int64_t p) {
    const int64_t k0 = p * kPanel<T>, count = at_most(layer.in - k0, kPanel<T>);
    T* to = layer.packed + p * layer.out * kPanel<T>;
    for (int64_t j = 0; j < layer.out; ++j, to += kPanel<T>) {
      const T* from = layer.weight + j * layer.in + k0;
      for (int64_t k = 0; k < count; ++k) to[k] = from[k];
      for (int64_t k = count; k < kPanel<T>; ++k) to[k] = 0;
    }
  }

  // visit(place in the block's panels, place in the matrix, elements left in the row), a vector at a time.
  template <class Visit>
  static void over_vectors(int64_t row, int64_t rows, int64_t width, Visit visit) {
    for (int64_t p = 0; p < panels_of<T>(width); ++p)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = p * kPanel<T>; k < at_most(width, (p + 1) * kPanel<T>); k += kLanes<T>)
          visit((p * kBlockRows + r) * kPanel<T> + k - p * kPanel<T>, (row + r) * width + k, width - k);
  }

  // A block of rows of a matrix into panels [panels][kBlockRows][kPanel].
  static void read_block(const Rows& from, int64_t row, int64_t rows, int64_t width, T* to) {
    over_vectors(row, rows, width,
                 [&](int64_t i, int64_t at, int64_t left) { store(to + i, read<T>(from, at, left)); });
  }

  static void write_block(const T* from, int64_t row, int64_t rows, int64_t width, const Rows& to) {
    over_vectors(row, rows, width,
                 [&](int64_t i, int64_t at, int64_t left) { write<T>(to, at, left, load(from + i)); });
  }

  // c (+)= a B for a block: a and c in panels; b: [panels of c][depth][kPanel].
  static void multiply_block(int64_t rows, int64_t depth, int64_t width, const T* a, const T* b, T* c,
                             bool accumulate) {
    for (int64_t p = 0; p < panels_of<T>(width); ++p)
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        tile_for<T, 0>(r1 - r0, width - p * kPanel<T>)({depth, a + r0 * kPanel<T>, kBlockRows * kPanel<T>,
                                                        b + p * depth * kPanel<T>,
                                                        c + (p * kBlockRows + r0) * kPanel<T>, accumulate});
      }
  }

  void forward_block(int64_t task, int64_t row, int64_t rows) {
    for (int64_t i = 0; i < q.inputs; ++i) {
      read_block(q.input[i].value, row, rows, q.input[i].width, buffer(task, 0));
      for (int64_t s = 0; s < q.stacks; ++s) {
        if (q.stack[s].input != i) continue;
        const T* x = buffer(task, 0);
        for (int64_t d = 0; d < q.stack[s].depth; ++d) {
          const MlpLayer<T>& layer = q.layer[q.stack[s].first_layer + d];
          T* y = buffer(task, 1 + d % 2);
          multiply_block(rows, layer.in, layer.out, x, layer.packed, y, false);
          activate(layer, row, rows, y);
          x = y;
        }
      }
    }
  }

  // Bias and relu, in the block and out to the layer's output. A NaN stays.
  static void activate(const MlpLayer<T>& layer, int64_t row, int64_t rows, T* y) {
    const Rows bias{const_cast<T*>(layer.bias), false};
    over_vectors(row, rows, layer.out, [&](int64_t i, int64_t at, int64_t left) {
      const Vec<T> sum = load(y + i) + read<T>(bias, layer.out - left, left);
      const Vec<T> result = layer.rectified ? (sum < 0 ? Vec<T>{} : sum) : sum;
      store(y + i, result);
      write<T>(layer.output, at, left, result);
    });
  }

  void backward_block(int64_t task, int64_t row, int64_t rows) {
    for (int64_t i = 0; i < q.inputs; ++i) {
      const MlpInput& input = q.input[i];
      read_block(input.value, row, rows, input.width, buffer(task, 0));
      bool any = false;
      for (int64_t s = 0; s < q.stacks; ++s)
        if (q.stack[s].input == i) any |= backward_stack(task, q.stack[s], row, rows, any);
      if (input.d_value.data == nullptr) continue;
      if (!any) zero(buffer(task, 1), rows, input.width);
      write_block(buffer(task, 1), row, rows, input.width, input.d_value);
    }
  }

  static void zero(T* block, int64_t rows, int64_t width) {
    over_vectors(0, rows, width, [&](int64_t i, int64_t, int64_t) { store(block + i, Vec<T>{}); });
  }

  // Returns whether it left a gradient of the input (adding to what is there where `accumulate`).
  bool backward_stack(int64_t task, const MlpStack& stack, int64_t row, int64_t rows, bool accumulate) {
    T *dy = buffer(task, 3), *dx = buffer(task, 4);
    bool reached = false;  // by a gradient from above
    for (int64_t d = stack.depth - 1; d >= 0; --d) {
      const MlpLayer<T>& layer = q.layer[stack.first_layer + d];
      if (!reached && layer.d_output.data == nullptr) continue;
      take_gradient(layer, row, rows, dy, reached);
      reached = true;
      const T* x = buffer(task, 0);
      if (d > 0) {
        read_block(q.layer[stack.first_layer + d - 1].output, row, rows, layer.in, buffer(task, 2));
        x = buffer(task, 2);
      }
      add_weight_gradient(task, layer, rows, x, dy);
      if (d > 0) {
        multiply_block(rows, layer.out, layer.in, dy, layer.packed, dx, false);
        T* other = dy;
        dy = dx, dx = other;
      } else if (q.input[stack.input].d_value.data != nullptr) {
        multiply_block(rows, layer.out, layer.in, dy, layer.packed, buffer(task, 1), accumulate);
      }
    }
    return reached;
  }

  // dy: what came from above, if `reached`, and what the layer's output is given, where the relu let through.
  static void take_gradient(const MlpLayer<T>& layer, int64_t row, int64_t rows, T* dy, bool reached) {
    over_vectors(row, rows, layer.out, [&](int64_t i, int64_t at, int64_t left) {
      Vec<T> g = reached ? load(dy + i) : Vec<T>{};
      if (layer.d_output.data != nullptr) g += read<T>(layer.d_output, at, left);
      if (layer.rectified) g = read<T>(layer.output, at, left) <= 0 ? Vec<T>{} : g;
      store(dy + i, g);
    });
  }

  void add_weight_gradient(int64_t task, const MlpLayer<T>& layer, int64_t rows, const T* x, const T* dy) {
    T *d_weight = d_weight_of(layer, task), *d_bias = d_bias_of(layer, task);
    for (int64_t p = 0; p < panels_of<T>(layer.in); ++p)
      for (int64_t o = 0; o < panels_of<T>(layer.out); ++o) {
        const int64_t outs = at_most(layer.out - o * kPanel<T>, kPanel<T>);
        for (int64_t i = 0; i < tiles_of(outs); ++i) {
          const int64_t o0 = tile_begin(outs, i), o1 = tile_begin(outs, i + 1);
          tile_for<T, kPanel<T>>(o1 - o0, layer.in - p * kPanel<T>)(
              {rows, dy + o * kBlockRows * kPanel<T> + o0, 0, x + p * kBlockRows * kPanel<T>,
               d_weight + (p * layer.out + o * kPanel<T> + o0) * kPanel<T>, true});
        }
      }
    for (int64_t o = 0; o < layer.out; o += kLanes<T>)
      store(d_bias + o,
            load(d_bias + o) + sum_of_rows(dy + o / kPanel<T> * kBlockRows * kPanel<T> + o % kPanel<T>, rows));
  }

  // Of a vector's columns in a panel; four sums, for shorter chains of additions and of rounding errors.
  static Vec<T> sum_of_rows(const T* column, int64_t rows) {
    Vec<T> sum[4] = {};
    for (int64_t r = 0; r < rows; ++r) sum[r % 4] += load(column + r * kPanel<T>);
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

template <class T>
size_t mlp_workspace_bytes(const MlpProblem<T>& problem, bool backward, int64_t threads) {
  return Mlp<T>(problem, backward, threads, nullptr).arena.used;
}
template <class T>
void mlp_forward(const MlpProblem<T>& problem, void* workspace, Parallel parallel) {
  Mlp<T>(problem, false, parallel.threads, static_cast<char*>(workspace)).forward(parallel);
}
template <class T>
void mlp_backward(const MlpProblem<T>& problem, void* workspace, Parallel parallel) {
  Mlp<T>(problem, true, parallel.threads, static_cast<char*>(workspace)).backward(parallel);
}
