// The products of the sweep (infonce_rows.inl) on bfloat16 tiles (bf16_tiles.inl), after amx_product.inl or
// dpbf16_product.inl is included.
//
// Products are so cheap on AMX that S is made twice rather than E stored: for each stripe
//   row phase (a thread owns rows): S block by block, for m, l and what follows from them;
//   column phase (a thread owns columns): S again, E at its final m, and from that one block in cache O and D. O is
//     summed in kMinParts fixed parts of the columns, so that as many threads give the same bits.
// Where no column gradient is wanted, the row phase makes O as it goes and that is all; its E is exact before it is
// rounded to bfloat16, that of the column phase good to bfloat16, so last bits of d_row depend on what is wanted.
// Rows are taken 32 at a time, whose S and E stay in L1 from product to product.

template <int kTerms>
struct Bf16Sweep : Sweep<float, 32> {
  using Guard = Bf16Guard;
  static constexpr int64_t kStep = kTerms * kTile;  // elements from one tile to the next
  // Floats from one panel of S to the next; a multiple of 4 KiB would alias loads and stores.
  static constexpr int64_t kPanelSize = 32 * kPanel<float> + 16;
  static constexpr int64_t kMinParts = 4;
  static constexpr int64_t kRowPanels = 7;      // of a block in the row phase: its S, 28 KiB, stays in L1
  static constexpr int64_t kColumnPanels = 14;  // in the column phase: its E stays in L2 over the stripe

  int64_t k_tiles;    // d / 32, rounded up
  int64_t row_tiles;  // stripe / 32
  int64_t parts, out_size;
  Bf16* b_transposed;  // B tiles [column_panels * 2][k_tiles]: k along d
  Bf16* b_tiles;       // B tiles [k_tiles * 2][column_panels]: k along the columns
  Bf16* a_tiles;       // A tiles [stripe / 16][k_tiles]
  Bf16* scaled_a;      // A tiles [k_tiles * 2][row_tiles]: A' transposed
  Bf16* task_e;        // per thread, A tiles [2][kColumnPanels]
  Bf16* task_kept;     // per thread, B tiles [kColumnPanels * 2][row_tiles]: a block of E, k along the stripe's rows
  float* task_s;       // per thread, [kRowPanels][32][kPanel], panels kPanelSize apart
  float* part_out;     // per part, [width_panels][stripe][kPanel]: O over the part's columns
  struct Entry {       // E = 2^((s - m) scale + shift)
    float m, scale, shift;
    bool empty() const { return shift == -__builtin_inff(); }  // the row has no gradient: E = 0
  };
  Entry* entries;  // [stripe]

  Bf16Sweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base) : Sweep(problem, threads, base, 32) {
    k_tiles = ceil_div(q.width, 32);
    row_tiles = stripe / 32;
    parts = at_most(at_least(kMinParts, threads), column_panels);
    out_size = width_panels * stripe * kPanel<float>;
    arena.take(column_panels * 2 * k_tiles * kStep, b_transposed);
    arena.take(need_row ? k_tiles * 2 * column_panels * kStep : 0, b_tiles);
    arena.take(stripe / 16 * k_tiles * kStep, a_tiles);
    arena.take(need_column ? k_tiles * 2 * row_tiles * kStep : 0, scaled_a);
    arena.take(threads * 2 * kColumnPanels * kStep, task_e);
    arena.take(need_column ? threads * kColumnPanels * 2 * row_tiles * kStep : 0, task_kept);
    arena.take(threads * kRowPanels * kPanelSize, task_s);
    arena.take(need_row && need_column ? parts * out_size : 0, part_out);
    arena.take(stripe, entries);
  }

  void run_stripe(Parallel parallel) {
    over_rows(*this, parallel,
              [](Bf16Sweep& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (!need_column) return;
    in_parallel(*this, parts, parallel, [](Bf16Sweep& s, int64_t task, int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) s.sweep_columns(task, part);
    });
    if (need_row)
      over_rows(*this, parallel, [](Bf16Sweep& s, int64_t task, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) s.finish_parts(task, r);
      });
  }

  // Columns [32 p, 32 p + 32) of b as B tiles both ways; what lies beyond N or d is 0.
  void pack_column_panel(int64_t p) {
    alignas(64) float panel[32 * 32];
    alignas(64) Bf16 rows[2 * kStep];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.b, q.columns, q.width, p * 32, w * 32, panel, [](int64_t) { return 1.f; });
      Bf16* pairs = need_row ? b_tiles + (w * 2 * column_panels + p) * kStep : nullptr;
      PanelTiles<kTerms>{rows, kStep, pairs, column_panels * kStep}.fill(panel, unchanged);
      for (int64_t half = 0; half < 2; ++half)
        transpose_pairs<kTerms>(rows + half * kStep, b_transposed + ((p * 2 + half) * k_tiles + w) * kStep);
    }
  }

  void pack_rows(int64_t r0) {  // [r0, r0 + 32) of the stripe; beyond its height: zeros
    alignas(64) float panel[32 * 32];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.a + first * q.width, height, q.width, r0, w * 32, panel, [](int64_t) { return 1.f; });
      Bf16* tiles = a_tiles + (r0 / 16 * k_tiles + w) * kStep;
      PanelTiles<kTerms>{tiles, k_tiles * kStep, nullptr, 0}.fill(panel, unchanged);
    }
  }

  void scale_into_tiles(int64_t r0) {  // A' of [r0, r0 + 32)
    alignas(64) float panel[32 * 32];
    alignas(64) Bf16 columns[2 * kStep];
    for (int64_t w = 0; w < k_tiles; ++w) {
      load_panel(q.a + first * q.width, height, q.width, r0, w * 32, panel, [&](int64_t r) {
        const RowState<float>& row = state[r0 + r];
        return row.slope == 0 ? 0 : row.slope * (row.inverse_l * exp2(-entries[r0 + r].shift));
      });
      PanelTiles<kTerms>{nullptr, 0, columns, kStep}.fill(panel, unchanged);
      for (int64_t half = 0; half < 2; ++half)
        transpose_pairs<kTerms>(columns + half * kStep, scaled_a + ((w * 2 + half) * row_tiles + r0 / 32) * kStep);
    }
  }

  static __m512 unchanged(int, __m512 x) { return x; }

  // --- row phase -----------------------------------------------------------------------------------------------

  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    float* out = need_column ? nullptr : out_of(task);
    for (int64_t r0 = begin; r0 < end; r0 += 32) pack_rows(r0);
    start_rows(begin, end);
    for (int64_t p0 = 0; p0 < column_panels; p0 += kRowPanels) {
      const int64_t panels = at_most(column_panels - p0, kRowPanels);
      for (int64_t r0 = begin; r0 < end; r0 += 32) {
        float* s = similarities(task, r0, p0, panels);
        float* out_0 = out == nullptr ? nullptr : out + (r0 - begin) * kPanel<float>;
        for (int64_t r = r0; r < at_most(end, r0 + 32); ++r) {
          float* row = s + (r - r0) * kPanel<float>;
          if (out == nullptr)
            absorb<false>(r, p0, panels, row, kPanelSize, nullptr);
          else
            absorb<true>(r, p0, panels, row, kPanelSize, out_0 + (r - r0) * kPanel<float>);
        }
        if (out == nullptr) continue;
        for (int64_t p = 0; p < panels; ++p)
          PanelTiles<kTerms>{e_of(task) + p * kStep, panels * kStep, nullptr, 0}.fill(s + p * kPanelSize, unchanged);
        accumulate_rows(task, p0, panels, out_0, task_rows, p0 > 0);
      }
    }
    for (int64_t r = begin; r < end; ++r) {
      finish_row(r);
      if (out != nullptr) finish_row_gradient(r, out + (r - begin) * kPanel<float>);
    }
    if (!need_column) return;
    for (int64_t r0 = begin; r0 < end; r0 += 32) {
      for (int64_t r = r0; r < r0 + 32; ++r) entries[r] = entry_of(r);
      scale_into_tiles(r0);
    }
  }

  Entry entry_of(int64_t r) const {
    if (r >= height || state[r].slope == 0) return {0, 0, -__builtin_inff()};
    return {state[r].m, state[r].scale, e_shift(r)};
  }

  // S of 32 rows and a block of columns, in the thread's scratch.
  float* similarities(int64_t task, int64_t r0, int64_t p0, int64_t panels) {
    float* s = task_s + task * kRowPanels * kPanelSize;
    for (int64_t p = 0; p < panels; ++p) similarities_of_panel(r0, p0 + p, s + p * kPanelSize);
    return s;
  }

  void similarities_of_panel(int64_t r0, int64_t p, float* s) {
    const Bf16 *a = a_tiles + r0 / 16 * k_tiles * kStep, *b = b_transposed + p * 2 * k_tiles * kStep;
    multiply_tiles<kTerms>({k_tiles, a, a + k_tiles * kStep, b, b + k_tiles * kStep, s, false});
  }

  Bf16* e_of(int64_t task) const { return task_e + task * 2 * kColumnPanels * kStep; }

  // O of 32 rows (panels `height_of_out` rows high) (+)= E B over a block.
  void accumulate_rows(int64_t task, int64_t p0, int64_t panels, float* out, int64_t height_of_out, bool accumulate) {
    const Bf16* e = e_of(task);
    for (int64_t w = 0; w < width_panels; ++w) {
      const Bf16* b = b_tiles + (w * 2 * column_panels + p0) * kStep;
      multiply_tiles<kTerms>({panels, e, e + panels * kStep, b, b + column_panels * kStep,
                              out + w * height_of_out * kPanel<float>, accumulate});
    }
  }

  // --- column phase --------------------------------------------------------------------------------------------

  void sweep_columns(int64_t task, int64_t part) {
    const int64_t begin = column_panels * part / parts, end = column_panels * (part + 1) / parts;
    const int64_t blocks = ceil_div(end - begin, kColumnPanels);
    Bf16* kept = task_kept + task * kColumnPanels * 2 * row_tiles * kStep;
    for (int64_t c = 0; c < blocks; ++c) {
      const int64_t p0 = begin + (end - begin) * c / blocks, panels = begin + (end - begin) * (c + 1) / blocks - p0;
      for (int64_t r0 = 0; r0 < height; r0 += 32) {
        make_entries(task, r0, p0, panels, kept + r0 / 32 * kStep);
        for (int64_t r = r0; r < at_most(r0 + 32, height); ++r) place_positive(task, r, p0, panels, kept);
        if (need_row) accumulate_rows(task, p0, panels, part_out + part * out_size + r0 * kPanel<float>, stripe, c > 0);
      }
      for (int64_t p = 0; p < panels; ++p) accumulate_columns(p0 + p, kept + p * 2 * row_tiles * kStep);
    }
  }

  // E of 32 rows and a block, at the rows' final m, panel by panel while it is in L1: as A tiles for O, and in `kept`.
  void make_entries(int64_t task, int64_t r0, int64_t p0, int64_t panels, Bf16* kept) {
    float* s = task_s + task * kRowPanels * kPanelSize;
    Bf16* e = need_row ? e_of(task) : nullptr;
    const Entry* entry = entries + r0;
    bool to_hide = q.row_group != nullptr;
    for (int64_t r = 0; r < 32; ++r) to_hide |= entry[r].empty();
    for (int64_t p = 0; p < panels; ++p) {
      similarities_of_panel(r0, p0 + p, s);
      if (to_hide || (p0 + p + 1) * 32 > q.columns) hide_rows(r0, p0 + p, s);
      PanelTiles<kTerms>{e == nullptr ? nullptr : e + p * kStep, panels * kStep, kept + p * 2 * row_tiles * kStep,
                         row_tiles * kStep}
          .fill(s, [entry](int r, __m512 x) {
            return exp2_of<float, kTerms == 1>((x - entry[r].m) * entry[r].scale + entry[r].shift);
          });
    }
  }

  // Readies a panel of S for E; rows without a gradient must give 0 whatever they hold.
  void hide_rows(int64_t r0, int64_t p, float* s) {
    for (int64_t r = r0; r < r0 + 32; ++r) {
      float* row = s + (r - r0) * kPanel<float>;
      if (entries[r].empty())
        clear(1, row, kPanelSize);
      else
        hide(first + r, positive_of(first + r), p, 1, row, kPanelSize);
    }
  }

  // The positive is no part of O, and stands in `kept` as p - 1.
  void place_positive(int64_t task, int64_t r, int64_t p0, int64_t panels, Bf16* kept) {
    const int64_t j = positive_of(first + r) - p0 * 32;
    if (j < 0 || j >= panels * 32) return;
    if (need_row) put<kTerms>(e_of(task) + (j / 32 + (r % 32 < 16 ? 0 : panels)) * kStep, in_a(r % 16, j % 32), 0);
    put<kTerms>(kept + (j / 16 * row_tiles + r / 32) * kStep, in_b(r % 32, j % 16),
                state[r].slope == 0 ? 0 : positive_entry[r] * exp2(entries[r].shift));
  }

  void accumulate_columns(int64_t p, const Bf16* e) {
    for (int64_t w = 0; w < k_tiles; ++w) {
      const Bf16* a = scaled_a + w * 2 * row_tiles * kStep;
      multiply_tiles<kTerms>({ceil_div(height, 32), a, a + row_tiles * kStep, e, e + row_tiles * kStep,
                              d_column + (p * d_column_rows + w * 32) * kPanel<float>, first > 0});
    }
  }

  // Sums the parts of O in order, and from that the row's gradient.
  void finish_parts(int64_t task, int64_t r) {
    float* out = out_of(task);
    const float unshift = exp2(-entries[r].shift);
    for (int64_t w = 0; w < width_panels; ++w)
      for (int v = 0; v < 2; ++v) {
        const float* from = part_out + (w * stripe + r) * kPanel<float> + v * kLanes<float>;
        Vec<float> sum = load(from);
        for (int64_t part = 1; part < parts; ++part) sum += load(from + part * out_size);
        store<float>(out + w * task_rows * kPanel<float> + v * kLanes<float>, sum * unshift);
      }
    finish_row_gradient(r, out);
  }
};
