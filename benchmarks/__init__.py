"""Benchmarks: each measures one part of the package and writes its figures to ``RESULTS``."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
