"""The figures of a kernel whose warps specialise: some copy, others multiply, in loops that only mbarriers join.

gluon_row.py has two warpgroups of consumers. A listing holds the code of both, and so two tile loops without masks and
two with them; the figures are of the shortest.
"""

import re
from collections import Counter
from typing import Any

from benchmarks.infonce.compile import sass

WARPGROUP = "0x80"  # threads
TMA = re.compile(r"UTMALDG\b")
WAIT = re.compile(r"WARPGROUP\.DEPBAR")
MULTIPLY_ADDS = 2048  # of half types, by the tensor cores of a multiprocessor of sm_90 in a cycle
EXPONENTIALS = 16  # by a multiprocessor in a cycle
MOST = 1250 / 1024  # cycles for a cycle of the busiest unit


def figures(listing: sass.Listing) -> dict[str, Any]:
    """Returns the figures of ``sass.figures``, with the copies of the loop that copies, and

    wide barriers: barriers in the tile loop that wait for more than a warpgroup.
    uncovered: exponentials that run while no product of their warps does.
    exposed: instructions from the wait for all products to the next product.

    Raises:
        SassError: there is no tile loop, or no loop that copies by TMA.
    """
    loop = _innermost(listing, sass.MATRIX, sass.EXPONENTIAL)
    opcodes, operands = (each[loop.start : loop.stop] for each in (listing.opcodes, listing.operands))
    found = sass.tally(Counter(opcodes))
    copying = _innermost(listing, TMA)
    found["copies"] = sum(map(bool, map(TMA.match, listing.opcodes[copying.start : copying.stop])))
    barriers = [operand for opcode, operand in zip(opcodes, operands) if opcode.startswith("BAR.")]
    found["wide barriers"] = sum(WARPGROUP not in operand for operand in barriers)
    waits = [(i, operands[i].split()[-1]) for i, opcode in enumerate(opcodes) if WAIT.match(opcode)]
    one = next((i for i, left in waits if left == "0x1"), 0)
    none = next((i for i, left in waits if left == "0x0" and i > one), one)
    covered = sum(bool(sass.EXPONENTIAL.match(opcode)) for opcode in opcodes[one:none])
    found["uncovered"] = found["exponentials"] - covered
    first = next(i for i, opcode in enumerate(opcodes) if sass.MATRIX.match(opcode))
    found["exposed"] = len(opcodes) - none + first
    return found


def cycles(found: dict[str, Any], warps: int, schedulers: int) -> dict[str, int]:
    """Models the cycles of a tile of all consumers: those of the busiest unit, and the instructions that are exposed.

    It is as if no product ran during the exposed instructions, though those of the other consumer may. It models
    nothing where exponentials are uncovered.

    Args:
        found: as ``figures`` returns them.
        warps: that consume.
        schedulers: of a multiprocessor.
    """
    if found["uncovered"]:
        return {}
    tensor = sass.multiply_adds(found["matrix"]) * warps // MULTIPLY_ADDS
    exponentials = found["exponentials"] * 32 * warps // EXPONENTIALS
    busiest = max(tensor, exponentials, found["instructions"] * warps // schedulers)
    return {"busiest": busiest, "cycles": busiest + found["exposed"] * warps // schedulers}


def faults(result: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the pipeline; the exponentials of the variant "train" run during a product."""
    found = []
    if result["wide barriers"]:
        found.append(f"{result['wide barriers']} barriers in the tile loop wait for more than a warpgroup")
    if result["variant"] == "train":
        if result["uncovered"]:
            found.append(f"{result['uncovered']} of {result['exponentials']} exponentials run during no product")
        elif result["cycles"] > MOST * result["busiest"]:
            found.append(f"takes {result['cycles']} cycles a tile, of which the busiest unit needs {result['busiest']}")
    return found


def _innermost(listing: sass.Listing, *patterns: re.Pattern[str]) -> range:
    """Returns the shortest loop in which each pattern matches an instruction."""
    loops = [
        loop
        for loop in listing.loops
        if all(any(map(pattern.match, listing.opcodes[loop.start : loop.stop])) for pattern in patterns)
    ]
    if not loops:
        raise sass.SassError(f"pipeline: expected a loop with {[p.pattern for p in patterns]}, got {listing.loops}")
    return min(loops, key=len)
