"""The cases of the ops: shapes, types, strides, values and options, called on every instruction set.

Each module describes some ops once: how inputs are made, the op, its reference in float64, the
errors it raises. ``make chaos`` draws cases at random, ``test_cases.py`` has fixed ones. A case is a
dictionary: ``op``, ``seed`` of the values, ``sizes`` (numbers and lists of numbers) and
``options``, which holds only what differs from the default.
"""

import contextlib
import random

from tests.ops.cases.drawing import draw

__all__ = ["check", "draw", "simpler"]


def check(case, *, cancels=True):
    """Raises AssertionError, with the name of the instruction set, where a kernel errs more than
    the tolerance rule allows.

    Args:
        cancels: whether terms may be so large beside their sum that rounding them is allowed for.
    """
    import torch

    import adaftr_fast as af
    from tests.ops.cases import bags, dense, infonce, losses, optimizers, tables
    from tests.ops.cases.guards import Guarded
    from tests.ops.cases.inputs import instruction_sets, rule

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # by NaN
    torch.manual_seed(case["seed"])
    torch.set_num_threads(1)
    modules = (infonce, losses, tables, bags, optimizers, dense)
    (problem,) = (each.OPS[case["op"]] for each in modules if case["op"] in each.OPS)
    compare = problem(case["sizes"], case["options"])
    if compare is None:  # not a valid case
        return
    torch.set_num_threads(case["options"].get("threads", 1))
    for name in instruction_sets():
        af.set_cpu_capability(name)
        side = case["options"].get("guards")
        try:
            with (
                Guarded(side, random.Random(case["seed"])) if side else contextlib.nullcontext(),
                rule(cancels),
            ):
                compare()
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            af.set_cpu_capability(None)


def simpler(case):
    """Yields the case with smaller sizes, then without one of its options."""
    for name, size in case["sizes"].items():
        for smaller in _smaller(size):
            yield case | {"sizes": case["sizes"] | {name: smaller}}
    for name in case["options"]:
        kept = {key: value for key, value in case["options"].items() if key != name}
        yield case | {"options": kept}


def _smaller(size):
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
