"""Benchmarks of training runs."""
