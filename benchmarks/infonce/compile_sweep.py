"""Compile every tiling of the GPU loss kernels without a GPU, and check what the compiler made of it.

    python -m benchmarks.infonce.compile_sweep [--quick] [--arch 80 90]

Prints one JSON line a kernel (registers, stack, shared memory, matrix instructions, seconds) and exits with 1 if one
spills, asks for more shared memory than the card has, or misses its matrix instructions. Not under TRITON_INTERPRET.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from adaftr_fast.kernels.infonce.column_sweep import infonce_column_sweep_kernel
from adaftr_fast.kernels.infonce.combine import infonce_combine_kernel
from adaftr_fast.kernels.infonce.config import TILINGS, TYPES, Config, choose_tiling, constants, max_offset
from adaftr_fast.kernels.infonce.launch import COMBINE_BLOCK_D, COMBINE_BLOCK_M
from adaftr_fast.kernels.infonce.row_sweep import infonce_row_sweep_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may ask for
INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "float64": torch.float64}
POINTEE = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
INT64 = ("positive_ptr", "row_group_ptr", "column_group_ptr")
WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
EXPLICIT = {"HAS_POSITIVE": True, "HAS_GROUP": True}
IMPLICIT = {"HAS_POSITIVE": False, "HAS_GROUP": False}
# Row sweep: training; all at once; forward only; a frozen h_ctr with a tau to be learned.
ROW_VARIANTS = {
    "train": IMPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": False},
    "stats": IMPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": True},
    "explicit": EXPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": False},
    "everything": EXPLICIT | {"NEED_D_ANCHORS": True, "NEED_SUM_PZ": True},
    "forward": IMPLICIT | {"NEED_D_ANCHORS": False, "NEED_SUM_PZ": False},
    "tau": EXPLICIT | {"NEED_D_ANCHORS": False, "NEED_SUM_PZ": True},
}
COLUMN_VARIANTS = {"train": IMPLICIT, "everything": EXPLICIT}


class Case(NamedTuple):
    kernel: triton.JITFunction
    variant: str
    kind: str
    dtype: torch.dtype
    width: int
    arch: int
    config: Config
    constants: dict


def cases(archs: list[int], quick: bool) -> Iterator[Case]:
    """Every row of the table at its greatest width with every variant, and at the lesser widths with two of them.

    ``quick`` is the training variant at the greatest width, in one type.
    """
    for arch in archs:
        for tiling in TILINGS:
            unbounded = 1024 if tiling.kind == "half" else 256
            widest = int(tiling.max_width) if tiling.max_width < float("inf") else unbounded
            if quick:
                yield from _of_tiling(tiling, DTYPES[tiling.kind], widest, arch, ("train",))
                continue
            for width in (w for w in WIDTHS if w <= widest):
                names = tuple(ROW_VARIANTS) if width == widest else ("train", "everything")
                yield from _of_tiling(tiling, DTYPES[tiling.kind], width, arch, names)
            if tiling.kind == "half":
                yield from _of_tiling(tiling, torch.float16, widest, arch, ("train", "everything"))
        for dtype in (torch.bfloat16,) if quick else POINTEE:
            yield _combine(dtype, arch)


def _of_tiling(tiling, dtype: torch.dtype, width: int, arch: int, names: tuple[str, ...]) -> Iterator[Case]:
    fitted = choose_tiling(tiling.kind, width, arch)
    if fitted[:3] != tiling[:3]:
        return  # another row serves this width on this architecture
    for name in names:
        config = fitted.row_sweep_pz if ROW_VARIANTS[name]["NEED_SUM_PZ"] else fitted.row_sweep
        values = constants(dtype, tiling.kind, width, config) | ROW_VARIANTS[name] | {"MAX_OFFSET": max_offset(dtype)}
        yield Case(infonce_row_sweep_kernel, name, tiling.kind, dtype, width, arch, config, values)
        if name in COLUMN_VARIANTS:
            values = constants(dtype, tiling.kind, width, fitted.column_sweep) | COLUMN_VARIANTS[name] | {"D": width}
            yield Case(infonce_column_sweep_kernel, name, tiling.kind, dtype, width, arch, fitted.column_sweep, values)


def _combine(dtype: torch.dtype, arch: int) -> Case:
    names = ("HAS_POSITIVE", "NEED_D_ANCHORS", "NEED_D_CANDIDATES", "NEED_D_TAU", "NEED_STATS")
    acc_dtype = TYPES[torch.float64 if dtype == torch.float64 else torch.float32]
    blocks = {"BLOCK_M": COMBINE_BLOCK_M, "BLOCK_D": COMBINE_BLOCK_D}
    values = dict.fromkeys(names, True) | blocks | {"D": 256, "D_PADDED": 256, "ACC_DTYPE": acc_dtype}
    config = Config(COMBINE_BLOCK_M, 0, COMBINE_BLOCK_D, 0, 4, 3)  # warps and stages: Triton's defaults
    return Case(infonce_combine_kernel, "everything", "-", dtype, 256, arch, config, values)


def build(case: Case) -> dict:
    """Compile one case; pointers and strides are divisible by 16 as in launch.py."""
    acc = "fp64" if case.dtype == torch.float64 else "fp32"
    signature, attributes = {}, {}
    for place, name in enumerate(case.kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
            continue
        if not name.endswith("_ptr"):
            signature[name] = "i32"
        elif name in INT64:
            signature[name] = "*i64"
        elif name == "top1_ptr":
            signature[name] = "*i1"
        else:
            signature[name] = "*" + (POINTEE[case.dtype] if name in ("anchors_ptr", "candidates_ptr") else acc)
        if name.endswith(("_ptr", "_stride")):
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = {"num_warps": case.config.num_warps, "num_stages": case.config.num_stages}
    started = time.perf_counter()
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=options)
    seconds = time.perf_counter() - started
    return (
        _describe(case)
        | _usage(compiled.asm["cubin"])
        | {
            "shared": compiled.metadata.shared,
            "seconds": round(seconds, 1),
            "matrix": INSTRUCTION[case.arch] in compiled.asm["ptx"],
        }
    )


def _describe(case: Case) -> dict:
    return {
        "kernel": case.kernel.__name__,
        "variant": case.variant,
        "kind": case.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "width": case.width,
        "arch": case.arch,
        "config": list(case.config),
    }


def _usage(cubin: bytes) -> dict:
    """Registers a thread and bytes of stack (that is where spills go), as the assembler recorded them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", printed).groups()
    return {"registers": int(registers), "stack": int(stack) + int(local)}


def faults(result: dict) -> list[str]:
    """What is wrong with a compiled kernel; empty if nothing."""
    found = []
    if result["stack"]:
        found.append(f"spills {result['stack']} bytes")
    if result["shared"] > SHARED_LIMIT[result["arch"]]:
        found.append(f"asks for {result['shared']} bytes of shared memory")
    if result["kind"] == "half" and not result["matrix"]:
        found.append(f"lacks {INSTRUCTION[result['arch']]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one variant and type for each row of the table")
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(SHARED_LIMIT), default=sorted(SHARED_LIMIT))
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    failed = False
    for case in cases(options.arch, options.quick):
        result = build(case)
        result["faults"] = faults(result)
        failed |= bool(result["faults"])
        print(json.dumps(result), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
