// The sigmoid loss (Zhai et al., 2023, Eq. 1) and its gradients, on the products and the blocks of the softmax's sweep
// (fma.inl, softmax.inl). With z_rj = logit_scale s_rj + bias, the loss of row r is
//
//   L_r = softplus(-z_{r, y_r}) + sum_{j != y_r} softplus(z_rj)
//
// P holds dL_r / dz_rj = sigmoid(z_rj) of the negatives. The positive's, -sigmoid(-z), is added apart, as the sweep
// adds the softmax's, so m stays 0 and nothing is ever rescaled. A row without a positive (kIgnore) has negatives
// alone.
#pragma once

#include "cpu/infonce/softmax.inl"

template <class T>
struct SigmoidSweep : Sweep<T, 1, SigmoidProblem<T>> {
  using Base = Sweep<T, 1, SigmoidProblem<T>>;
  using Base::arena, Base::first, Base::positive_p, Base::q, Base::state;

  Vec<T>*sum_p, *sum_ps;  // [block_m] by lane, of p and of p s over the negatives

  SigmoidSweep(const SigmoidProblem<T>& problem, int64_t thread_count, char* base, int64_t width_multiple)
      : Base(problem, thread_count, base, width_multiple) {
    arena.take(this->block_m, sum_p);
    arena.take(this->block_m, sum_ps);
  }

  void start_rows(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      state[r] = RowState<T>{};  // m = 0
      state[r].grad_scale = q.logit_scale;
      state[r].inverse_l = 1;
      sum_p[r] = sum_ps[r] = Vec<T>{};
    }
  }

  // Turns one row's scores with a block of columns into P, and adds up the row's loss.
  template <bool kStoreProbs>
  void to_probs(int64_t r, int64_t p0, int64_t panels, T* s, int64_t step, T*) {
    const int64_t row = first + r, positive = this->positive_of(row);
    RowState<T>& state_r = state[r];
    if (const T* at = this->find(positive, p0, panels, s, step)) state_r.positive_score = *at;
    this->mask(row, positive, p0, panels, s, step);
    const T logit_scale = q.logit_scale, bias = q.bias;
    Vec<T> loss[4] = {state_r.l}, p_sum[4] = {sum_p[r]}, ps_sum[4] = {sum_ps[r]};
    this->over_vectors(panels, s, step, [&](int i, T* at) {
      const Vec<T> score = load(at), z = score * logit_scale + bias;
      const Vec<T> e = exp2_of<T>((z > 0 ? -z : z) * T(kLog2E));  // in [0, 1]
      const Vec<T> p = (z > 0 ? broadcast(T(1)) : e) / (e + T(1));
      loss[i] += (z > 0 ? z : Vec<T>{}) + log1p_of<T>(e);
      p_sum[i] += p;
      ps_sum[i] += p == 0 ? Vec<T>{} : p * score;  // a masked score is -infinity
      if (kStoreProbs) store<T>(at, p);
    });
    state_r.l = (loss[0] + loss[1]) + (loss[2] + loss[3]);
    sum_p[r] = (p_sum[0] + p_sum[1]) + (p_sum[2] + p_sum[3]);
    sum_ps[r] = (ps_sum[0] + ps_sum[1]) + (ps_sum[2] + ps_sum[3]);
  }

  void finish_row(int64_t r) {
    const int64_t row = first + r;
    const double score = state[r].positive_score, z = double(q.logit_scale) * score + q.bias;
    double loss = horizontal_sum<T>(state[r].l), p = 0;
    if (this->positive_of(row) != kIgnore) {
      const double e = __builtin_exp(z > 0 ? -z : z);
      p = -(z > 0 ? e : 1) / (1 + e);
      loss += (z > 0 ? 0 : -z) + __builtin_log1p(e);
    }
    positive_p[r] = T(p);
    q.loss[row] = T(loss);
    q.d_bias[row] = T(horizontal_sum<T>(sum_p[r]) + p);
    q.d_logit_scale[row] = T(horizontal_sum<T>(sum_ps[r]) + p * score);
  }
};
