"""Adaptive InfoNCE, the sigmoid loss and their gradients in Triton. Importing this package imports triton.

Three kernels compute InfoNCE with four products of size B N d and two passes of exponentials:

    row sweep     scores, online softmax, softmax times candidates    row_sweep.py     2 products (1 without d_anchors)
    combine       loss, statistics, d_anchors, d_tau                  combine.py       O(B d)
    column sweep  scores again, softmax^T times anchors               column_sweep.py  2 products, for d_candidates only

In half types beyond 256, up to 512, on sm_90, the row sweep has one product, and wide/ has the kernels for d_anchors:

    anchor sweep  scores again, softmax times candidates              anchor_sweep.py  2 products, so five in all
    bounded sweep in place of the row and the anchor sweep where the
                  logits are bounded, without masks and statistics    bounded_sweep.py 2 products, so four in all

gluon_row.py and gluon_column.py are the sweeps for Hopper GPUs in Gluon; ADAFTR_FAST_INFONCE_SWEEPS=gluon chooses both.

symmetric/ computes InfoNCE averaged over both directions, with five products where two calls take eight.

One kernel computes the sigmoid loss, with four products too: it runs once for each side, with two products a run.

    sigmoid sweep  scores, sigmoid, sigmoid times the other side      sigmoid_sweep.py  2 products (1 without gradient)

Another computes InfoNCE within blocks of consecutive rows, with three products of 32 rows with themselves:

    blocks         scores, softmax, both gradients                    blocks.py

No kernel stores a B x N array, and every sum has a fixed order: equal inputs and needs give equal bits on the same GPU.
The one atomic operation counts the splits of a column sweep that are done. Nothing is read back to the host, so a CUDA
graph can capture the call.

Shapes: B rows (anchors), N columns (candidates), d hidden width, S splits of the side that a sweep streams.

Values; the names are FlashAttention's where it has one:
    a_r, b_j     anchor of row r, candidate of column j
    y_r          column of row r's positive; the row's other candidates are its negatives
    s_rj         score: a_r . b_j
    softmax_scale, softmax_scale_log2
                 1 / tau_r and log2(e) / tau_r
    z_rj         base-2 logit: softmax_scale_log2_r s_rj
    m_r          running maximum of z_rj, from the positive's logit on, less MAX_OFFSET; with FIXED_MAX that logit; in
                 bounded_sweep.py that logit or a bound of z_rj less MAX_OFFSET
    l_r          running sum of 2^(z_rj - m_r) over the negatives
    sum_pz_r     running sum of 2^(z_rj - m_r) (z_rj - m_r) over the negatives, for the entropy and d_tau
    alpha        2^(m_old - m_new): rescales l and acc when m grows
    acc          accumulator of a sweep's second product
    scale_r      weight of row r's loss L_r in the op's loss, sum_r scale_r L_r: row_weight_r divided as the reduction
                 asks
    grad_scale   scale_r / tau_r: turns p_rj - [j = y_r] into the gradient of s_rj
    margin       subtracted from s_ry before the softmax
    w_r          positive_weight: what the gradients subtract from the positive's probability instead of 1

Scaling. softmax_scale_log2 multiplies scores, in the accumulation type, and never an operand, whose quotient with tau
may overflow where the logit does not. z_rj - m_r is one fused multiply-add. It is exact but for its last rounding,
while m_r is rounded, so at the maximum it is not 0 but up to half a unit in the last place of m_r. For float32 sums
that is at most 0.5 for logits up to 1e7, 8 up to 1e8, and 128, where p overflows, from 2^31 / log2(e) = 1.5e9 on. In
float16, p overflows at 2^(MAX_OFFSET + 2), so from 2^25 / log2(e) = 2.3e7 on. On CPU the difference of the scores comes
first, which has no such limit, but takes one more operation an element in the inner loop. Unequal logits of 1e8 differ
by 8 or more, and training has diverged where they occur, so the limit stays, and adaptive_infonce documents it. acc
sums the candidates before it is divided by l, so N 2^8 times the largest candidate may not overflow; with FIXED_MAX,
row_sweep.py makes sure that it does not, and so does bounded_sweep.py. combine.py keeps
``descale`` of the column sweep at 2^-114 or more: scale / tau may be subnormal, and the inverse of such a number
overflows.

Compile-time sizes, which config.py chooses and kernels take as fields of one record, META:
    BLOCK_M      rows in a block
    BLOCK_N      columns in a block
    BLOCK_D      width of a block, and of the accumulator
    BLOCK_K      width that one step of the loop over d multiplies when it forms scores; 0: no loop, blocks hold the
                 whole width
    D, D_PADDED  d, and d rounded up to a multiple of 16
    MAX_OFFSET   by how much m stays below the maximum or the bound: p is at most 2^MAX_OFFSET (as in FlashAttention-3)
"""

from adaftr_fast.kernels.infonce.blocks import infonce_blocks, serves_blocks
from adaftr_fast.kernels.infonce.launch import infonce
from adaftr_fast.kernels.infonce.sigmoid import sigmoid_contrast
from adaftr_fast.kernels.infonce.symmetric.launch import infonce_symmetric, serves_symmetric

__all__ = [
    "infonce",
    "infonce_blocks",
    "infonce_symmetric",
    "serves_blocks",
    "serves_symmetric",
    "sigmoid_contrast",
]
