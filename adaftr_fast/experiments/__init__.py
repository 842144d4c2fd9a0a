"""Runs put together: one model trained and tested, and the paper's tables and figures from many of them."""
