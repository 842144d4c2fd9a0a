"""Impression logs with known truth, of any size, from a seed."""
