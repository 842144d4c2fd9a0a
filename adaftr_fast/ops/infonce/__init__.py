"""Adaptive InfoNCE (paper, Eq. 13): the public function, the op, its reference, and candidates of
other ranks.
"""
