"""Calls the ops with random shapes, types, strides, values and options, on every instruction set.

A case is a dictionary: ``op``, ``seed`` of the values, ``sizes`` (numbers and lists of numbers) and
``options``, which holds only what differs from the default.
"""

import random
from collections.abc import Iterator

from tests.chaos.search import Case

NAMES = (
    "infonce", "infonce_spoiled", "sigmoid", "targets", "lookup", "bags", "select", "steps", "adam", "mlp",
    "mixture",
)  # fmt: skip


def draw(random: random.Random) -> Case:
    """Makes a case."""
    from tests.chaos.ops import drawing

    op = random.choice(NAMES)
    return {"op": op, "seed": random.randrange(2**31), **getattr(drawing, op)(random)}


def check(case: Case) -> None:
    """Raises AssertionError where a kernel errs more than the tolerance rule allows."""
    from tests.chaos.ops import checking

    checking.check(case)


def simpler(case: Case) -> Iterator[Case]:
    """Yields the case with smaller sizes, then without one of its options."""
    for name, size in case["sizes"].items():
        for smaller in _smaller(size):
            yield case | {"sizes": case["sizes"] | {name: smaller}}
    for name in case["options"]:
        yield case | {
            "options": {key: value for key, value in case["options"].items() if key != name}
        }


def _smaller(size: int | list) -> Iterator[int | list]:
    if isinstance(size, int):
        yield from sorted({1, size // 2, size - 1} & set(range(1, size)))
        if size == 1:
            yield 0
        return
    for place, each in enumerate(size):
        if len(size) > 1:
            yield size[:place] + size[place + 1 :]
        for smaller in _smaller(each):
            if smaller != 0:
                yield [*size[:place], smaller, *size[place + 1 :]]
