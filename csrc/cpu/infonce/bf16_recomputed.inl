// The sweep where products are so cheap, as on AMX, that S is made twice rather than E stored: for each stripe
//   row phase (a thread owns rows): S block by block, for m, l and what follows from them;
//   column phase (a thread owns columns): S again, E at its final m, and from that one block in cache O and D. O is
//     summed in kMinParts fixed parts of the columns, so that as many threads give the same bits.
// Where no column gradient is wanted, the row phase makes O as it goes and that is all; its E is exact before it is
// rounded to bfloat16, that of the column phase good to bfloat16, so last bits of d_row depend on what is wanted.
#pragma once

#include "cpu/infonce/bf16.inl"

template <int kTerms>
struct RemadeSweep : Bf16Sweep<kTerms> {
  using Base = Bf16Sweep<kTerms>;
  using Base::arena, Base::column_panels, Base::first, Base::height, Base::need_column, Base::need_row;
  using Base::kPanelSize, Base::kRowPanels, Base::kStep, Base::q, Base::row_tiles, Base::shift, Base::state;
  using Base::stripe, Base::task_rows, Base::task_s, Base::width_panels;
  static constexpr int64_t kMinParts = 4;
  static constexpr int64_t kColumnPanels = 14;  // of a block in the column phase: its E stays in L2 over the stripe

  int64_t parts, out_size;
  Bf16* task_kept;  // per thread, B tiles [kColumnPanels * 2][row_tiles]: a block of E, k along the stripe's rows
  float* part_out;  // per part, [width_panels][stripe][kPanel]: O over the part's columns
  struct Entry {    // E = 2^((s - m) scale + shift)
    float m, scale, shift;
    bool empty() const { return shift == -__builtin_inff(); }  // the row has no gradient: E = 0
  };
  Entry* entries;  // [stripe]

  RemadeSweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base)
      : Base(problem, threads, base, kColumnPanels) {
    parts = at_most(at_least(kMinParts, threads), column_panels);
    out_size = width_panels * stripe * kPanel<float>;
    arena.take(need_column ? threads * kColumnPanels * 2 * row_tiles * kStep : 0, task_kept);
    arena.take(need_row && need_column ? parts * out_size : 0, part_out);
    arena.take(stripe, entries);
  }

  void run_stripe() {
    over_rows(*this, [](RemadeSweep& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (!need_column) return;
    in_parallel(*this, parts, [](RemadeSweep& s, int64_t task, int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) s.sweep_columns(task, part);
    });
    if (need_row)
      over_rows(*this, [](RemadeSweep& s, int64_t task, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) s.finish_parts(task, r);
      });
  }

  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    Base::sweep_rows(task, begin, end, need_column ? nullptr : this->out_of(task));
    if (!need_column) return;
    for (int64_t r0 = begin; r0 < end; r0 += 32) {
      for (int64_t r = r0; r < r0 + 32; ++r) {
        entries[r] = entry_of(r);
        shift[r] = entries[r].shift;
      }
      this->scale_into_tiles(r0);
    }
  }

  Entry entry_of(int64_t r) const {
    if (r >= height || state[r].slope == 0) return {0, 0, -__builtin_inff()};
    return {state[r].m, state[r].scale, this->e_shift(r)};
  }

  void sweep_columns(int64_t task, int64_t part) {
    const int64_t begin = column_panels * part / parts, end = column_panels * (part + 1) / parts;
    const int64_t blocks = ceil_div(end - begin, kColumnPanels);
    Bf16* kept = task_kept + task * kColumnPanels * 2 * row_tiles * kStep;
    for (int64_t c = 0; c < blocks; ++c) {
      const int64_t p0 = begin + (end - begin) * c / blocks, panels = begin + (end - begin) * (c + 1) / blocks - p0;
      for (int64_t r0 = 0; r0 < height; r0 += 32) {
        make_entries(task, r0, p0, panels, kept + r0 / 32 * kStep);
        for (int64_t r = r0; r < at_most(r0 + 32, height); ++r) place_positive(task, r, p0, panels, kept);
        if (need_row)
          this->accumulate_rows(task, p0, panels, part_out + part * out_size + r0 * kPanel<float>, stripe, c > 0);
      }
      for (int64_t p = 0; p < panels; ++p)
        this->accumulate_columns(p0 + p, kept + p * 2 * row_tiles * kStep, row_tiles);
    }
  }

  // E of 32 rows and a block, at the rows' final m, panel by panel while it is in L1: as A tiles for O, and in `kept`.
  void make_entries(int64_t task, int64_t r0, int64_t p0, int64_t panels, Bf16* kept) {
    float* s = task_s + task * kRowPanels * kPanelSize;
    Bf16* e = need_row ? this->e_of(task) : nullptr;
    const Entry* entry = entries + r0;
    bool to_hide = q.row_group != nullptr;
    for (int64_t r = 0; r < 32; ++r) to_hide |= entry[r].empty();
    for (int64_t p = 0; p < panels; ++p) {
      this->similarities_of_panel(r0, p0 + p, s);
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
        this->clear(1, row, kPanelSize);
      else
        this->hide(first + r, this->positive_of(first + r), p, 1, row, kPanelSize);
    }
  }

  // The positive is no part of O, and stands in `kept` as p - 1.
  void place_positive(int64_t task, int64_t r, int64_t p0, int64_t panels, Bf16* kept) {
    const int64_t j = this->positive_of(first + r) - p0 * 32;
    if (j < 0 || j >= panels * 32) return;
    if (need_row)
      put<kTerms>(this->e_of(task) + (j / 32 + (r % 32 < 16 ? 0 : panels)) * kStep, in_a(r % 16, j % 32), 0);
    put<kTerms>(kept + (j / 16 * row_tiles + r / 32) * kStep, in_b(r % 32, j % 16),
                state[r].slope == 0 ? 0 : this->positive_entry[r] * this->exp2(entries[r].shift));
  }

  // Sums the parts of O in order, and from that the row's gradient.
  void finish_parts(int64_t task, int64_t r) {
    float* out = this->out_of(task);
    const float unshift = this->exp2(-entries[r].shift);
    for (int64_t w = 0; w < width_panels; ++w)
      for (int v = 0; v < 2; ++v) {
        const float* from = part_out + (w * stripe + r) * kPanel<float> + v * kLanes<float>;
        Vec<float> sum = load(from);
        for (int64_t part = 1; part < parts; ++part) sum += load(from + part * out_size);
        store<float>(out + w * task_rows * kPanel<float> + v * kLanes<float>, sum * unshift);
      }
    this->finish_row_gradient(r, out);
  }
};
