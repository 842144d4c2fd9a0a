"""Runs a case on every instruction set."""

import torch

import adaftr_fast as af
from tests.chaos.ops import dense, infonce, infonce_spoiled, losses, optimizers, tables
from tests.chaos.ops.inputs import instruction_sets
from tests.chaos.search import Case

PROBLEMS = {
    "infonce": infonce.problem, "infonce_spoiled": infonce_spoiled.problem, "sigmoid": losses.sigmoid,
    "targets": losses.targets,
    "lookup": tables.lookup, "bags": tables.bags, "select": tables.select,
    "steps": optimizers.steps, "adam": optimizers.adam, "mlp": dense.mlp, "mixture": dense.mixture,
}  # fmt: skip


def check(case: Case) -> None:
    """Raises AssertionError, with the name of the instruction set, where a result is wrong."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # by NaN
    torch.manual_seed(case["seed"])
    torch.set_num_threads(1)
    compare = PROBLEMS[case["op"]](case["sizes"], case["options"])
    if compare is None:  # not a valid case
        return
    torch.set_num_threads(case["options"].get("threads", 1))
    for name in instruction_sets():
        if name != "none":
            af.set_cpu_capability(name)
        try:
            compare()
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            af.set_cpu_capability(None)
