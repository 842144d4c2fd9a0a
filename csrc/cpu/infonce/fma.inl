// The products of the sweep (softmax.inl) on the vector units, in the accumulation type: three (3G), and one
// exponential an element. For each stripe
//   row phase (a thread owns rows): for each block of columns, S = A B^T in cache; a running maximum m and the sum of
//     E = exp(S / tau - m); O += E B, rescaled when m grows. E stays in memory with the m it was taken at.
//   column phase (a thread owns columns): E is brought to the final m where it grew since; D += E^T A'.
// So no partial sums of the column gradient are kept per thread, and each of its sums runs over the rows in order.
#pragma once

#include "cpu/infonce/softmax.inl"

constexpr int kWidthChunk = 64;     // S is summed this many products at a time
constexpr int kDepthChunk = 224;    // one panel of E this deep stays in L1
constexpr int kBlockColumns = 448;  // S, B and B^T of a block stay in a 2 MB L2 up to d = 128 in float32

template <class T>
struct FmaSweep : Sweep<T, 1> {
  using Guard = FlushDenormals;
  using Base = Sweep<T, 1>;
  using Base::need_row, Base::need_column, Base::first, Base::height, Base::d_column, Base::arena;
  using Base::q, Base::stripe, Base::task_rows, Base::column_panels, Base::width_panels;

  static constexpr int kBlockPanels = kBlockColumns / kPanel<T>;
  int64_t width_tiles, column_blocks;
  int64_t e_rows;              // of a panel of E: odd, or panels a multiple of 4 KiB apart would alias loads and stores
  T *b_transposed, *b_panels;  // [column_panels][d][kPanel], [width_panels][N][kPanel]
  T* factor;        // [column_blocks][stripe]: first the m that E's block was taken at, then what brings it to the last
  T *e, *scaled_a;  // [column_panels][e_rows][kPanel], [width_tiles][stripe][kStrip]
  T *task_a, *task_e;  // per thread: [width_panels][task_rows][kPanel], and a block of E where e is not kept

  FmaSweep(const InfoNCEProblem<T>& problem, int64_t threads, char* base) : Base(problem, threads, base, 1) {
    width_tiles = tiles_of(q.width);
    column_blocks = ceil_div(column_panels, kBlockPanels);
    e_rows = (need_column ? stripe : task_rows) | 1;
    arena.take(column_panels * q.width * kPanel<T>, b_transposed);
    arena.take(need_row ? width_panels * q.columns * kPanel<T> : 0, b_panels);
    arena.take(need_column ? column_blocks * stripe : 0, factor);
    arena.take(need_column ? column_panels * e_rows * kPanel<T> : 0, e);
    arena.take(need_column ? width_tiles * stripe * kStrip : 0, scaled_a);
    arena.take(threads * width_panels * task_rows * kPanel<T>, task_a);
    arena.take(need_column ? 0 : threads * kBlockPanels * e_rows * kPanel<T>, task_e);
  }

  void run_stripe() {
    over_rows(*this, [](FmaSweep& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (need_column) over_panels(*this, [](FmaSweep& s, int64_t p) { s.accumulate_column_panel(p); });
  }

  void pack_column_panel(int64_t p) {
    const int64_t j0 = p * kPanel<T>, count = at_most(q.columns - j0, kPanel<T>);
    T* out = b_transposed + p * q.width * kPanel<T>;
    for (int64_t k = 0; k < q.width; ++k, out += kPanel<T>) {
      const T* in = q.b + j0 * q.width + k;
      for (int64_t j = 0; j < count; ++j) out[j] = in[j * q.width];
      for (int64_t j = count; j < kPanel<T>; ++j) out[j] = 0;
    }
    if (need_row) copy_to_panels(q.b + j0 * q.width, count, b_panels + j0 * kPanel<T>, q.columns);
  }

  // `rows` rows of a [.., d] matrix into panels that are `height` rows high.
  void copy_to_panels(const T* in, int64_t rows, T* out, int64_t height) {
    for (int64_t w = 0; w < width_panels; ++w) {
      const int64_t k0 = w * kPanel<T>, count = at_most(q.width - k0, kPanel<T>);
      for (int64_t r = 0; r < rows; ++r) {
        T* to = out + (w * height + r) * kPanel<T>;
        for (int64_t k = 0; k < count; ++k) to[k] = in[r * q.width + k0 + k];
        for (int64_t k = count; k < kPanel<T>; ++k) to[k] = 0;
      }
    }
  }

  // Rows [begin, end) of the stripe, against every block of columns.
  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    T* a = task_a + task * width_panels * task_rows * kPanel<T>;
    T* out = this->out_of(task);
    copy_to_panels(q.a + (first + begin) * q.width, rows, a, task_rows);
    this->start_rows(begin, end);
    for (int64_t c = 0; c < column_blocks; ++c) {
      const int64_t p0 = c * kBlockPanels, panels = at_most(column_panels - p0, kBlockPanels);
      T* block =
          need_column ? e + (p0 * e_rows + begin) * kPanel<T> : task_e + task * kBlockPanels * e_rows * kPanel<T>;
      similarities(a, rows, p0, panels, block);
      for (int64_t r = 0; r < rows; ++r)
        this->template absorb<true>(begin + r, p0, panels, block + r * kPanel<T>, e_rows * kPanel<T>,
                                    out == nullptr ? nullptr : out + r * kPanel<T>);
      if (need_column)
        for (int64_t r = begin; r < end; ++r) factor[c * stripe + r] = this->state[r].m;
      if (need_row) accumulate_rows(block, rows, c, out);
    }
    for (int64_t r = begin; r < end; ++r) finish(r, out == nullptr ? nullptr : out + (r - begin) * kPanel<T>);
  }

  void finish(int64_t r, const T* out) {
    this->finish_row(r);
    if (need_row) this->finish_row_gradient(r, out);
    if (!need_column) return;
    const RowState<T>& row = this->state[r];
    const T weight = this->exp2(this->e_shift(r));
    for (int64_t c = 0; c < column_blocks; ++c) {
      T& f = factor[c * stripe + r];
      f = row.slope == 0 ? 0 : weight * (f == row.m ? 1 : this->exp2((f - row.m) * row.scale));
    }
    this->positive_entry[r] *= weight;
    scale_into_strips(r, row.slope == 0 ? 0 : row.slope * (row.inverse_l / weight));
  }

  // Summed kWidthChunk products at a time: shorter chains of rounding errors in logits that tau may magnify.
  void similarities(const T* a, int64_t rows, int64_t p0, int64_t panels, T* block) {
    for (int64_t p = 0; p < panels; ++p) {
      const T* b = b_transposed + (p0 + p) * q.width * kPanel<T>;
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        T* s = block + (p * e_rows + r0) * kPanel<T>;
        for (int64_t k = 0; k < q.width; k += kWidthChunk)
          tile_for<T, 0>(
              r1 - r0, kPanel<T>)({at_most(q.width - k, kWidthChunk), a + (k / kPanel<T> * task_rows + r0) * kPanel<T>,
                                   task_rows * kPanel<T>, b + k * kPanel<T>, s, k > 0});
      }
    }
  }

  void accumulate_rows(const T* block, int64_t rows, int64_t c, T* out) {
    const int64_t j0 = c * kBlockColumns, depth = at_most(q.columns - j0, kBlockColumns);
    for (int64_t w = 0; w < width_panels; ++w) {
      for (int64_t i = 0; i < tiles_of(rows); ++i) {
        const int64_t r0 = tile_begin(rows, i), r1 = tile_begin(rows, i + 1);
        tile_for<T, 0>(r1 - r0, q.width - w * kPanel<T>)({depth, block + r0 * kPanel<T>, e_rows * kPanel<T>,
                                                          b_panels + (w * q.columns + j0) * kPanel<T>,
                                                          out + (w * task_rows + r0) * kPanel<T>, c > 0});
      }
    }
  }

  void scale_into_strips(int64_t r, T slope) {
    for (int64_t i = 0; i < width_tiles; ++i) {
      const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
      T* to = scaled_a + (i * stripe + r) * kStrip;
      for (int64_t k = k0; k < k1; ++k) to[k - k0] = slope == 0 ? 0 : slope * q.a[(first + r) * q.width + k];
    }
  }

  void accumulate_column_panel(int64_t p) {
    T* panel = e + p * e_rows * kPanel<T>;
    const T* factor_p = factor + p / kBlockPanels * stripe;
    for (int64_t r = 0; r < height; ++r) {
      T* x = panel + r * kPanel<T>;
      if (factor_p[r] != 1)
        for (int v = 0; v < 2; ++v)  // 0: all negligible, or the row has no gradient, whatever E holds
          store<T>(x + v * kLanes<T>, factor_p[r] == 0 ? Vec<T>{} : load(x + v * kLanes<T>) * factor_p[r]);
      const int64_t j = this->positive_of(first + r) - p * kPanel<T>;
      if (j >= 0 && j < kPanel<T>) x[j] = this->state[r].slope == 0 ? 0 : this->positive_entry[r];
    }
    for (int64_t r0 = 0; r0 < height; r0 += kDepthChunk) {
      const int64_t depth = at_most(height - r0, kDepthChunk);
      for (int64_t i = 0; i < width_tiles; ++i) {
        const int64_t k0 = tile_begin(q.width, i), k1 = tile_begin(q.width, i + 1);
        tile_for<T, kStrip>(k1 - k0,
                            kPanel<T>)({depth, scaled_a + (i * stripe + r0) * kStrip, 0, panel + r0 * kPanel<T>,
                                        d_column + (p * q.width + k0) * kPanel<T>, first + r0 > 0});
      }
    }
  }
};

constinit const InfoNCEKernels kInfoNCE = {
    .f32 = kernel_of<FmaSweep<float>>(), .f64 = kernel_of<FmaSweep<double>>(), .bf16 = {}, .bf16x2 = {}};
