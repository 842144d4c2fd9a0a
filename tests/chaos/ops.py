"""The search of ops: draws from the table of cases that ``tests/ops/test_cases.py`` takes examples
of.
"""

from tests.ops.cases import check, draw, simpler

__all__ = ["check", "draw", "simpler"]
