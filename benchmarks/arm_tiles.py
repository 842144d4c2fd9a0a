"""Counts the inner loops of matrix products on ARM against the bound of the units that multiply and
add.

    python -m benchmarks.arm_tiles             prints the table
    python -m benchmarks.arm_tiles --record    also writes results/arm_tiles.json

It compiles the tiles of csrc/cpu/simd/gemm.inl for aarch64, and llvm-mca simulates their inner
loops, with all data in the L1 cache. Nothing is timed. From Debian: g++-14-aarch64-linux-gnu,
llvm-19.
"""

import re
import subprocess
from typing import Any

from benchmarks import RESULTS, render
from benchmarks.measure import ROOT, options, save

COMPILER = "aarch64-linux-gnu-g++-14"
SIMULATOR = "llvm-mca-19"
# of setup.py, as far as they matter
FLAGS = ("-O3", "-std=c++20", "-fno-math-errno", "-fPIC", f"-I{ROOT}/csrc")
# vectors of 128 bits that it multiplies and adds in a cycle
PIPES = {"neoverse-v1": 4, "neoverse-v2": 4}
TURNS = 1000
TILES = [  # target, type of the elements, header
    ("generic", "float", "cpu/simd/gemm.inl"),
    ("neon", "float", "cpu/simd/gemm.inl"),
    ("neon", "double", "cpu/simd/gemm.inl"),
    ("neon_bf16", "Pair", "cpu/simd/bf16_pairs.inl"),
]
NAMES = {"float": "float32", "double": "float64", "Pair": "bfloat16"}


def assembly(target: str, element: str, header: str, step: str) -> str:
    """Returns the assembly of the whole tile whose operand A has elements ``step`` apart; 0: in
    panels.
    """
    source = f"""
        #include <cstddef>
        #include <cstdint>
        #include "cpu/simd/targets/{target}.inl"
        namespace adaftr_fast {{
        #include "{header}"
        template void tile<{element}, kTileRows, 2, {step}>(const Operands<{element}>&);
        }}"""
    command = [COMPILER, *FLAGS, "-x", "c++", "-S", "-o", "-", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def inner_loop(text: str) -> list[str]:
    """Returns the instructions of the innermost loop that multiplies most."""
    loops = []
    body = []
    label = ""
    for line in text.splitlines():
        if found := re.match(r"(\.L\d+):", line):
            label = found[1]
            body = []
        elif re.match(r"\t[a-z]", line):
            body.append(line)
            if label and line.endswith(f"\t{label}"):
                loops.append([*body])
    return max(loops, key=multiplications)


def multiplications(body: list[str]) -> int:
    return sum(line.startswith(("\tfmla", "\tbfdot")) for line in body)


def cycles(body: list[str], cpu: str) -> float:
    """Returns the cycles of one turn of a loop, simulated."""
    command = [SIMULATOR, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={TURNS}"]
    shown = subprocess.run(
        command, input="\n".join(body), capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", shown)[1]) / TURNS  # type: ignore[index]


def cases() -> list[dict[str, Any]]:
    found = []
    for target, element, header in TILES:
        for operand, step in (("panels", "0"), ("strips", "kStrip")):
            text = assembly(target, element, header, step)
            body, rows = inner_loop(text), int(re.search(r"4tileI\w+?Li(\d+)ELi2", text)[1])  # type: ignore[index]
            about = {"target": target, "type": NAMES[element], "A": operand, "rows": rows}
            counts = {"instructions": len(body), "multiply-adds": multiplications(body)}
            counts["on the stack"] = sum("[sp" in line for line in body)
            bound = {cpu: counts["multiply-adds"] / pipes for cpu, pipes in PIPES.items()}
            simulated = {cpu: cycles(body, cpu) for cpu in PIPES}
            found.append(about | counts | {"bound": bound, "cycles": simulated})
    return found


def version(command: str) -> str:
    shown = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"\d+\.\d+\.\d+", shown)[0]  # type: ignore[index]


def main() -> None:
    arguments = options(__doc__, record=False)
    found = cases()
    print(render.arm_tiles(found))
    if arguments.record:
        compiler = {"GCC": version(COMPILER), "llvm-mca": version(SIMULATOR)}
        save(RESULTS / "arm_tiles.json", {"compiler": compiler}, found)


if __name__ == "__main__":
    main()
