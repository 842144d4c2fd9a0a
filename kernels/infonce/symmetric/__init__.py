"""InfoNCE averaged over both directions in five products, where two calls of InfoNCE take eight.

    positives     a_r . b_r                                            sums.py      O(64 B d)
    sums          scores, online softmax of rows and of columns        sums.py      1 product
    combine       losses, and what the gradient sweeps read            combine.py   O(B row blocks)
    gradients     scores again, W times the other side, for each side  gradient.py  2 products each

W_rj is the gradient of s_rj from both directions, so each side's gradient is one product with it. A sweep takes two
exponentials a pair, one for each direction.

The package above defines shapes and names. Here N = B, row r's positive is column r and the reverse, and primes mark
the second direction: z'_jr = softmax_scale_log2'_j s_rj is the logit of row r for column j, with tau_column_j.
"""
