"""The figures of a kernel whose warps specialise: some copy, others multiply, in loops that only
mbarriers join.

The sweeps in Gluon have two warpgroups of consumers. A listing holds the code of both, and so two
tile loops for each form of a tile: with masks and without, or with a row's weight in the exponent
and without. The figures are of the shortest, but where they count what must not be: that is the
most of any tile loop.
"""

import re
from collections import Counter
from typing import Any

from benchmarks.infonce.compile import sass

WARPGROUP = "0x80"  # threads
TMA = re.compile(r"UTMALDG\b")
WAIT = re.compile(r"WARPGROUP\.DEPBAR")
PHASE = re.compile(r"SYNCS\.PHASECHK")  # waits at an mbarrier
ARRIVAL = re.compile(r"SYNCS\.ARRIVE")
MULTIPLY_ADDS = 2048  # of half types, by the tensor cores of a multiprocessor of sm_90 in a cycle
EXPONENTIALS = 16  # by a multiprocessor in a cycle
MOST = 1250 / 1024  # cycles for a cycle of the busiest unit


def figures(listing: sass.Listing) -> dict[str, Any]:
    """Returns the figures of ``sass.figures``, with the copies of the loop that copies, and

    wide barriers: barriers in a tile loop that wait for more than a warpgroup.
    unguarded: arrivals in a tile loop that come before all threads of the warpgroup have passed the
    last wait.
    uncovered: exponentials of a tile that run while no product of their warps does.
    exposed: instructions from the wait for all products to the next product.

    Raises:
        SassError: there is no tile loop, or no loop that copies by TMA.
    """
    loops = _innermost(listing, sass.MATRIX, sass.EXPONENTIAL)
    tiles = [_of_a_tile(listing, loop) for loop in loops]
    found = min(tiles, key=lambda tile: tile["instructions"])
    found |= {
        name: max(tile[name] for tile in tiles)
        for name in ("wide barriers", "unguarded", "uncovered")
    }
    copying = min(_innermost(listing, TMA), key=len)
    found["copies"] = sum(map(bool, map(TMA.match, listing.opcodes[copying.start : copying.stop])))
    return found


def _of_a_tile(listing: sass.Listing, loop: range) -> dict[str, Any]:
    opcodes, operands = (
        each[loop.start : loop.stop] for each in (listing.opcodes, listing.operands)
    )
    found = sass.tally(Counter(opcodes))
    barriers = [operand for opcode, operand in zip(opcodes, operands) if opcode.startswith("BAR.")]
    found["wide barriers"] = sum(WARPGROUP not in operand for operand in barriers)
    found["unguarded"] = _unguarded(opcodes, operands)
    waits = [(i, operands[i].split()[-1]) for i, opcode in enumerate(opcodes) if WAIT.match(opcode)]
    one = next((i for i, left in waits if left == "0x1"), 0)
    none = next((i for i, left in waits if left == "0x0" and i > one), one)
    covered = sum(bool(sass.EXPONENTIAL.match(opcode)) for opcode in opcodes[one:none])
    found["uncovered"] = found["exponentials"] - covered
    first = next(i for i, opcode in enumerate(opcodes) if sass.MATRIX.match(opcode))
    found["exposed"] = len(opcodes) - none + first
    return found


def _unguarded(opcodes: list[str], operands: list[str]) -> int:
    """Counts the arrivals of a loop that no barrier of the warpgroup parts from the last wait at an
    mbarrier.

    One thread arrives for all. If a warp still waited for a turn then, the turn after the next,
    which has the same parity, could come before it looks again, and it would wait for ever.
    """
    found = 0
    guarded = True
    for counts in (False, True):  # the last wait before an arrival may be one of the turn before
        for opcode, operand in zip(opcodes, operands):
            if PHASE.match(opcode):
                guarded = False
            elif opcode.startswith("BAR.") and WARPGROUP in operand:
                guarded = True
            elif ARRIVAL.match(opcode):
                found += counts and not guarded
    return found


def cycles(found: dict[str, Any], warps: int, schedulers: int) -> dict[str, int]:
    """Models the cycles of a tile of all consumers: those of the busiest unit, and the instructions
    that are exposed.

    It is as if no product ran during the exposed instructions, though those of the other consumer
    may. It models nothing where exponentials are uncovered.

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
    """Returns what is wrong with the pipeline; the exponentials of the variant "train" run during a
    product.
    """
    found = []
    if result["wide barriers"]:
        found.append(
            f"{result['wide barriers']} barriers in a tile loop wait for more than a warpgroup"
        )
    if result["unguarded"]:
        found.append(
            f"{result['unguarded']} arrivals in a tile loop follow a wait without a barrier of the "
            "warpgroup"
        )
    if result["variant"] == "train":
        if result["uncovered"]:
            found.append(
                f"{result['uncovered']} of {result['exponentials']} exponentials run during no "
                "product"
            )
        elif result["cycles"] > MOST * result["busiest"]:
            found.append(
                f"takes {result['cycles']} cycles a tile, of which the busiest unit needs "
                f"{result['busiest']}"
            )
    return found


def _innermost(listing: sass.Listing, *patterns: re.Pattern[str]) -> list[range]:
    """Returns the loops in which each pattern matches an instruction, and which share none with a
    shorter such loop.

    A wait polls behind the end of the code and jumps back into its loop, which looks like a longer
    loop.
    """
    loops = [
        loop
        for loop in listing.loops
        if all(
            any(map(pattern.match, listing.opcodes[loop.start : loop.stop])) for pattern in patterns
        )
    ]
    if not loops:
        raise sass.SassError(
            f"pipeline: expected a loop with {[p.pattern for p in patterns]}, got {listing.loops}"
        )
    found = []
    for loop in sorted(loops, key=len):
        if all(loop.stop <= other.start or other.stop <= loop.start for other in found):
            found.append(loop)
    return found
