"""The figures of a kernel's machine code, from the listing that ``nvdisasm -c`` prints.

The tile loop is the loop over streamed blocks: the outermost loop that holds both products and
exponentials. Most sweeps have two or three, for blocks with masks and without, and for blocks whose
values allow fewer operations; the figures are of the shortest. Where the first product runs in a
loop of its own over slices of the width, that loop counts as often as it runs.
"""

import re
from collections import Counter
from typing import Any, NamedTuple

LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[\w.]+)?)\s*([^;]*);"
)
BRANCH = re.compile(r"^BRA\b")
TARGET = re.compile(r"\((\.L_\w+)\)")
MATRIX = re.compile(r"^[HDIQ]G?MMA\.")
FMA = re.compile(r"^FFMA\b")  # the matrix instruction of IEEE float32
EXPONENTIAL = re.compile(r"^(?:MUFU\.EX2|DFMA)\b")  # in float64 a polynomial
COPY = re.compile(r"^(?:LDGSTS\.(?:\w+\.)*128|UTMALDG|UBLKCP)\b")  # at least 16 bytes a thread
NARROW_COPY = re.compile(r"^LDGSTS\b(?!.*\.128\b)")
LOCAL = re.compile(r"^(?:LDL|STL)\b")
SHORT_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "884": (8, 8, 4)}


class SassError(ValueError):
    """A listing in which the tile loop is not to be found."""


class Listing(NamedTuple):
    """The instructions of a kernel in order, without predicates, and its loops."""

    opcodes: list[str]
    # places of the instructions from the target of a backward branch to the branch
    loops: list[range]
    operands: list[str]


def parse(text: str) -> Listing:
    """Reads a listing.

    Raises:
        SassError: it holds no instruction.
    """
    opcodes = []
    operands = []
    labels = {}
    ends = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := INSTRUCTION.match(line):
            opcodes.append(found[1])
            operands.append(found[2].strip())
            target = TARGET.search(found[2]) if BRANCH.match(found[1]) else None
            if target and target[1] in labels:  # later labels are forward branches
                ends[labels[target[1]]] = len(opcodes)
    if not opcodes:
        raise SassError(f"sass: expected a listing of nvdisasm -c, got {text[:80]!r}")
    return Listing(opcodes, [range(start, end) for start, end in ends.items()], operands)


def figures(listing: Listing, slices: int) -> dict[str, Any]:
    """Returns what one turn of the tile loop executes in each warp.

    Args:
        listing: of a sweep.
        slices: how often a loop over slices of the width runs, if there is one.

    Returns:
        The matrix instructions by name, and the numbers of asynchronous copies (of 16 bytes a
        thread or more, and narrower), barriers, waits for matrix instructions, MUFU.EX2 and
        instructions.

    Raises:
        SassError: there is no tile loop.
    """
    matrix = MATRIX if any(map(MATRIX.match, listing.opcodes)) else FMA
    loop = _tile_loop(listing, matrix)
    inner = [each for each in _outermost(_within(listing, loop)) if _holds(listing, each, matrix)]
    executed = Counter(listing.opcodes[loop.start : loop.stop])
    for each in inner:
        for opcode in listing.opcodes[each.start : each.stop]:
            executed[opcode] += slices - 1
    return tally(executed, matrix)


def tally(executed: Counter[str], matrix: re.Pattern[str] = MATRIX) -> dict[str, Any]:
    """Returns the figures of instructions by how often each is executed, as ``figures`` does."""

    def count(pattern: str | re.Pattern[str]) -> int:
        return sum(times for opcode, times in executed.items() if re.match(pattern, opcode))

    products = Counter()
    for opcode, times in executed.items():
        if matrix.match(opcode):
            products[_shape(opcode)] += times
    return {
        "matrix": dict(sorted(products.items())),
        "copies": count(COPY),
        "narrow copies": count(NARROW_COPY),
        "barriers": count(r"BAR\."),
        "waits": count(r"WARPGROUP\.DEPBAR"),
        "exponentials": count(r"MUFU\.EX2"),
        "instructions": executed.total(),
    }


def local_accesses(listing: Listing) -> int:
    """Counts the loads and stores of local memory, which is where spilled registers go."""
    return sum(bool(LOCAL.match(opcode)) for opcode in listing.opcodes)


def multiply_adds(matrix: dict[str, int]) -> int:
    """Returns the multiply-adds that the matrix instructions of ``figures`` execute in one warp."""
    return sum(times * _multiply_adds_of(name) for name, times in matrix.items())


def _multiply_adds_of(name: str) -> int:
    kind, _, shape = name.partition(".")
    if kind == "FFMA":
        return 32
    digits = shape.split(".")[0]
    m, n, k = SHORT_SHAPES[digits] if digits in SHORT_SHAPES else map(int, digits.split("x"))
    # a warpgroup of four warps executes it together
    return m * n * k // (4 if kind.endswith("GMMA") else 1)


def _shape(opcode: str) -> str:
    """HGMMA.64x64x16.F32.BF16 without what follows; FFMA without rounding modes."""
    return "FFMA" if FMA.match(opcode) else opcode


def _tile_loop(listing: Listing, matrix: re.Pattern[str]) -> range:
    products = [loop for loop in listing.loops if _holds(listing, loop, matrix)]
    found = [loop for loop in _outermost(products) if _holds(listing, loop, EXPONENTIAL)]
    if not found:
        raise SassError(
            f"sass: expected a loop with products and exponentials, got loops at {listing.loops}"
        )
    return min(found, key=len)


def _holds(listing: Listing, loop: range, pattern: re.Pattern[str]) -> bool:
    return any(map(pattern.match, listing.opcodes[loop.start : loop.stop]))


def _within(listing: Listing, loop: range) -> list[range]:
    return [
        each
        for each in listing.loops
        if each != loop and each.start >= loop.start and each.stop <= loop.stop
    ]


def _outermost(loops: list[range]) -> list[range]:
    def contains(outer: range, inner: range) -> bool:
        return outer != inner and outer.start <= inner.start and inner.stop <= outer.stop

    return [loop for loop in loops if not any(contains(other, loop) for other in loops)]
