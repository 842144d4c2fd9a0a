"""Experiments: the paper's tables and figures, from many runs."""
