"""What is wrong with compiled kernels, and their recorded figures: reading, writing, what has
become worse since.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.infonce.compile.occupancy import SHARED
from benchmarks.measure import save

KEY = ("kernel", "variant", "kind", "dtype", "width", "arch")
NOT_RECORDED = ("stack", "local", "seconds", "faults")  # a record has no faults, and its stack is 0
MATRIX = {80: "HMMA.16816", 90: "HGMMA.64x"}  # what products of half types and bf16x3 must use
GROWTH = 1.02  # the most by which the instructions of a tile may grow
Result = dict[str, Any]


def path_of(triton: str, folder: Path = RESULTS) -> Path:
    """Returns the results file of a version of Triton; the releases of one minor
    version share it.
    """
    return folder / f"compile-triton{'.'.join(triton.split('.')[:2])}.json"


def write(
    compiler: dict[str, str],
    results: list[Result],
    left: Sequence[Result] = (),
    folder: Path = RESULTS,
) -> Path:
    """Writes compiler, date, commit and, one a line and in order, the figures of each kernel;
    returns the path.

    Args:
        compiler: as ``build.compiler`` returns it.
        results: of the kernels that were compiled, or have the code that is in the record.
        left: cases of the record to keep, where ``results`` has no other of the same kernel.
        folder: of the results files.
    """
    kept = {key_of(each): each for each in [*left, *results]}
    cases = [{k: v for k, v in each.items() if k not in NOT_RECORDED} for each in kept.values()]
    cases.sort(key=lambda each: tuple(each[part] for part in ("arch", *KEY)))
    origin = {"compiler": compiler}
    without_code = sum("code" not in each for each in cases)
    if without_code:
        of_all = f"{without_code} of {len(cases)} kernels"
        origin["stale"] = f"{of_all} have no digest, so their figures may be of earlier commits"
    path = path_of(compiler["triton"], folder)
    save(path, origin, cases)
    return path


def read(compiler: dict[str, str], folder: Path = RESULTS) -> list[Result] | None:
    """Returns the recorded figures, or None if there are none of this very version of Triton and
    its assembler.
    """
    path = path_of(compiler["triton"], folder)
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["cases"] if record["compiler"] == compiler else None


def name(result: Result) -> str:
    """Names a kernel: row_sweep train, half bfloat16, d=128, sm_90."""
    kind = f"{result['kind']} {result['dtype']}".strip()
    return (
        f"{result['kernel']} {result['variant']}, {kind}, d={result['width']}, sm_{result['arch']}"
    )


def faults(result: dict[str, Any]) -> list[str]:
    """Returns what is wrong with a compiled kernel; empty if nothing."""
    found = []
    if result["stack"] or result["local"]:
        found.append(
            f"spills: {result['stack']} bytes of stack, {result['local']} accesses to local memory"
        )
    if result["shared"] > SHARED[result["arch"]].program:
        found.append(f"asks for {result['shared']} bytes of shared memory")
    if result["kind"] in ("half", "bf16x3") and not all(
        each.startswith(MATRIX[result["arch"]]) for each in result["matrix"]
    ):
        found.append(f"expected the products by {MATRIX[result['arch']]}, got {result['matrix']}")
    if result["kind"] and result["products"] < 1:
        found.append(
            f"the tile loop that was found holds only {result['products']} of the products of "
            "a tile"
        )
    return found


def worse(results: list[Result], recorded: list[Result], complete: bool) -> list[str]:
    """Returns a line for each kernel and figure that is worse than recorded, and for each kernel
    without counterpart.

    Spills are faults with or without a record.

    Args:
        results: as now compiled.
        recorded: the cases of a record.
        complete: the results are of all kernels, so that a kernel that is in the record alone
            counts too.
    """
    known = {key_of(each): each for each in recorded}
    lines = []
    for result in results:
        before = known.pop(key_of(result), None)
        found = ["is not in the record"] if before is None else _worse(result, before)
        lines += [f"{name(result)}: {line}" for line in found]
    if complete:
        lines += [
            f"{name(each)}: is in the record and is no longer compiled" for each in known.values()
        ]
    return lines


def key_of(result: Result) -> tuple[Any, ...]:
    """Returns what tells a kernel from all others."""
    return tuple(result[part] for part in KEY)


def _worse(now: Result, before: Result) -> list[str]:
    if "instructions" not in now:
        return []  # its machine code could not be read, which is one of its faults
    lines = []
    if sorted(now.get("matrix", {})) != sorted(before.get("matrix", {})):
        lines.append(f"matrix instructions {_listed(now)}, recorded {_listed(before)}")
    lines += [
        f"{figure} {now.get(figure, 0)}, recorded {before[figure]}"
        for figure in ("copies", "programs")
        if now.get(figure, 0) < before.get(figure, 0)
    ]
    if now["instructions"] > GROWTH * before["instructions"]:
        growth = now["instructions"] / before["instructions"] - 1
        lines.append(
            f"instructions {now['instructions']}, recorded {before['instructions']} (+{growth:.1%})"
        )
    return lines


def _listed(result: Result) -> str:
    return ", ".join(sorted(result.get("matrix", {}))) or "none"
