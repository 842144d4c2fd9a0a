// The sweep where products are so cheap, as on AMX, that S is computed twice rather than P stored: for each block of
// rows
//   row phase (a thread owns rows): S block by block, for m, l and what follows from them;
//   column phase (a thread owns columns): S again, P at its final m, and from one block of it in cache acc and
//     d_candidates. acc is summed in kMinParts fixed parts of the columns, so that as many threads give the same bits.
// Where d_candidates is not needed, the row phase sums acc as it goes and that is all; its P is exact before it is
// rounded to bfloat16, that of the column phase good to bfloat16, so last bits of d_anchors depend on what is needed.
#pragma once

#include "cpu/infonce/bf16.inl"

template <int kTerms>
struct RecomputedSweep : Bf16Sweep<kTerms> {
  using Base = Bf16Sweep<kTerms>;
  using Base::arena, Base::column_panels, Base::first, Base::height, Base::need_d_candidates, Base::need_d_anchors;
  using Base::block_m, Base::task_rows, Base::task_scores, Base::width_panels;
  using Base::kPanelSize, Base::kBlockPanels, Base::kStep, Base::q, Base::row_tiles, Base::shift, Base::state;
  static constexpr bool kSharesProbs = false;
  static constexpr int64_t kMinParts = 4;
  static constexpr int64_t kColumnPhasePanels =
      14;  // of a block in the column phase: its P stays in L2 over the block's rows

  int64_t parts, acc_size;
  Bf16* task_block;  // per thread, B tiles [kColumnPhasePanels * 2][row_tiles]: a block of P, k along its rows
  float* part_acc;   // per part, [width_panels][block_m][kPanel]: acc over the part's columns
  struct Exponent {  // P = 2^((s - m) softmax_scale_log2 + shift)
    float m, softmax_scale_log2, shift;
    bool empty() const { return shift == -__builtin_inff(); }  // the row has no gradient: P = 0
  };
  Exponent* exponents;  // [block_m]

  RecomputedSweep(const InfoNCEProblem<float>& problem, int64_t threads, char* base)
      : Base(problem, threads, base, kColumnPhasePanels) {
    parts = at_most(at_least(kMinParts, threads), column_panels);
    acc_size = width_panels * block_m * kPanel<float>;
    arena.take(need_d_candidates ? threads * kColumnPhasePanels * 2 * row_tiles * kStep : 0, task_block);
    arena.take(need_d_anchors && need_d_candidates ? parts * acc_size : 0, part_acc);
    arena.take(block_m, exponents);
  }

  void run_block() {
    over_rows(*this,
              [](RecomputedSweep& s, int64_t task, int64_t begin, int64_t end) { s.sweep_rows(task, begin, end); });
    if (!need_d_candidates) return;
    in_parallel(*this, parts, [](RecomputedSweep& s, int64_t task, int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) s.sweep_columns(task, part);
    });
    if (need_d_anchors)
      over_rows(*this, [](RecomputedSweep& s, int64_t task, int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) s.finish_parts(task, r);
      });
  }

  void sweep_rows(int64_t task, int64_t begin, int64_t end) {
    Base::sweep_rows(task, begin, end, need_d_candidates ? nullptr : this->acc_of(task));
    if (!need_d_candidates) return;
    for (int64_t r0 = begin; r0 < end; r0 += 32) {
      for (int64_t r = r0; r < r0 + 32; ++r) {
        exponents[r] = exponent_of(r);
        shift[r] = exponents[r].shift;
      }
      this->scale_into_tiles(r0);
    }
  }

  Exponent exponent_of(int64_t r) const {
    if (r >= height || state[r].grad_scale == 0) return {0, 0, -__builtin_inff()};
    return {state[r].m, state[r].softmax_scale_log2, this->exponent_shift(r)};
  }

  void sweep_columns(int64_t task, int64_t part) {
    const int64_t begin = column_panels * part / parts, end = column_panels * (part + 1) / parts;
    const int64_t blocks = ceil_div(end - begin, kColumnPhasePanels);
    Bf16* block = task_block + task * kColumnPhasePanels * 2 * row_tiles * kStep;
    for (int64_t c = 0; c < blocks; ++c) {
      const int64_t p0 = begin + (end - begin) * c / blocks, panels = begin + (end - begin) * (c + 1) / blocks - p0;
      for (int64_t r0 = 0; r0 < height; r0 += 32) {
        recompute_probs(task, r0, p0, panels, block + r0 / 32 * kStep);
        for (int64_t r = r0; r < at_most(r0 + 32, height); ++r) place_positive(task, r, p0, panels, block);
        if (need_d_anchors)
          this->accumulate_rows(task, p0, panels, part_acc + part * acc_size + r0 * kPanel<float>, block_m, c > 0);
      }
      for (int64_t p = 0; p < panels; ++p)
        this->accumulate_columns(p0 + p, block + p * 2 * row_tiles * kStep, row_tiles);
    }
  }

  // P of 32 rows and a block, at the rows' final m, panel by panel while it is in L1: as A tiles for acc, and to
  // `block`.
  void recompute_probs(int64_t task, int64_t r0, int64_t p0, int64_t panels, Bf16* block) {
    float* s = task_scores + task * kBlockPanels * kPanelSize;
    Bf16* probs = need_d_anchors ? this->probs_of(task) : nullptr;
    const Exponent* exponent = exponents + r0;
    bool to_mask = q.row_group != nullptr || this->ignores();
    for (int64_t r = 0; r < 32; ++r) to_mask |= exponent[r].empty();
    for (int64_t p = 0; p < panels; ++p) {
      this->scores_of_panel(r0, p0 + p, s);
      if (to_mask || (p0 + p + 1) * 32 > q.columns) mask_rows(r0, p0 + p, s);
      PanelTiles<kTerms>{probs == nullptr ? nullptr : probs + p * kStep, panels * kStep,
                         block + p * 2 * row_tiles * kStep, row_tiles * kStep}
          .fill(s, [exponent](int r, __m512 x) {
            return exp2_of<float, kTerms == 1>((x - exponent[r].m) * exponent[r].softmax_scale_log2 +
                                               exponent[r].shift);
          });
    }
  }

  // Readies a panel of S for P; rows without a gradient must give 0 whatever they hold.
  void mask_rows(int64_t r0, int64_t p, float* s) {
    for (int64_t r = r0; r < r0 + 32; ++r) {
      float* row = s + (r - r0) * kPanel<float>;
      if (exponents[r].empty())
        this->clear(1, row, kPanelSize);
      else
        this->mask(first + r, this->positive_of(first + r), p, 1, row, kPanelSize);
    }
  }

  // The positive is no part of acc, and enters `block` as its probability less 1.
  void place_positive(int64_t task, int64_t r, int64_t p0, int64_t panels, Bf16* block) {
    const int64_t j = this->positive_of(first + r) - p0 * 32;
    if (j < 0 || j >= panels * 32) return;
    if (need_d_anchors)
      put<kTerms>(this->probs_of(task) + (j / 32 + (r % 32 < 16 ? 0 : panels)) * kStep, in_a(r % 16, j % 32), 0);
    put<kTerms>(block + (j / 16 * row_tiles + r / 32) * kStep, in_b(r % 32, j % 16),
                state[r].grad_scale == 0 ? 0 : this->positive_p[r] * this->exp2(exponents[r].shift));
  }

  // Sums the parts of acc in order, and from that the row's gradient.
  void finish_parts(int64_t task, int64_t r) {
    float* acc = this->acc_of(task);
    const float unshift = this->exp2(-exponents[r].shift);
    for (int64_t w = 0; w < width_panels; ++w)
      for (int v = 0; v < 2; ++v) {
        const float* from = part_acc + (w * block_m + r) * kPanel<float> + v * kLanes<float>;
        Vec<float> sum = load(from);
        for (int64_t part = 1; part < parts; ++part) sum += load(from + part * acc_size);
        store<float>(acc + w * task_rows * kPanel<float> + v * kLanes<float>, sum * unshift);
      }
    this->finish_row_gradient(r, acc);
  }
};
