"""Compiles one kernel and reads the figures of its machine code. Not under TRITON_INTERPRET."""

import hashlib
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import triton
from adaftr_fast.kernels.infonce.blocks import infonce_blocks_kernel
from adaftr_fast.kernels.infonce.column_sweep import TERMS, infonce_column_sweep_kernel
from adaftr_fast.kernels.infonce.combine import infonce_combine_kernel
from adaftr_fast.kernels.infonce.gluon_column import infonce_gluon_column_sweep_kernel
from adaftr_fast.kernels.infonce.gluon_pipeline import DEFAULT_WARPS, OWNED, block_layout
from adaftr_fast.kernels.infonce.gluon_row import infonce_gluon_row_sweep_kernel
from adaftr_fast.kernels.infonce.row_sweep import infonce_row_sweep_kernel
from adaftr_fast.kernels.infonce.sigmoid_sweep import sigmoid_sweep_kernel
from adaftr_fast.kernels.infonce.symmetric.combine import infonce_symmetric_combine_kernel
from adaftr_fast.kernels.infonce.symmetric.gradient import infonce_symmetric_gradient_kernel
from adaftr_fast.kernels.infonce.symmetric.sums import (
    infonce_symmetric_positives_kernel,
    infonce_symmetric_sums_kernel,
)
from adaftr_fast.kernels.infonce.wide.anchor_sweep import infonce_anchor_sweep_kernel
from adaftr_fast.kernels.infonce.wide.bounded_sweep import (
    infonce_bounded_sweep_kernel,
    infonce_unbounded_anchor_sweep_kernel,
    infonce_unbounded_row_sweep_kernel,
)
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource

from benchmarks.infonce.compile import pipeline, sass
from benchmarks.infonce.compile.cases import Case
from benchmarks.infonce.compile.occupancy import SCHEDULERS, programs_per_multiprocessor
from benchmarks.infonce.compile.record import faults

KERNELS = {
    "row_sweep": infonce_row_sweep_kernel,
    "gluon_row_sweep": infonce_gluon_row_sweep_kernel,
    "anchor_sweep": infonce_anchor_sweep_kernel,
    "bounded_sweep": infonce_bounded_sweep_kernel,
    "unbounded_row_sweep": infonce_unbounded_row_sweep_kernel,
    "unbounded_anchor_sweep": infonce_unbounded_anchor_sweep_kernel,
    "column_sweep": infonce_column_sweep_kernel,
    "gluon_column_sweep": infonce_gluon_column_sweep_kernel,
    "combine": infonce_combine_kernel,
    "blocks": infonce_blocks_kernel,
    "sigmoid_rows": sigmoid_sweep_kernel,
    "sigmoid_columns": sigmoid_sweep_kernel,
    "symmetric_positives": infonce_symmetric_positives_kernel,
    "symmetric_sums": infonce_symmetric_sums_kernel,
    "symmetric_combine": infonce_symmetric_combine_kernel,
    "symmetric_gradient": infonce_symmetric_gradient_kernel,
}
POINTEE = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
OPERANDS = ("anchors_ptr", "candidates_ptr", "x_ptr", "y_ptr")
DESCRIPTORS = ("anchors", "candidates", "terms")
INT64 = ("positive_ptr", "row_group_ptr", "column_group_ptr", "x_group_ptr", "y_group_ptr")
OTHERS = {"top1_ptr": "*i1", "arrivals_ptr": "*i32", "swept_ptr": "*i32"}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
LOCATION = re.compile(r"^#loc.*\n| loc\((?:[^()]|\([^()]*\))*\)", re.MULTILINE)


def compiler() -> dict[str, str]:
    """Names what the figures depend on besides the code: the versions of Triton and of NVIDIA's
    assembler.
    """
    printed = _run("ptxas", "--version")
    return {"triton": triton.__version__, "ptxas": re.search(r"\bV([\d.]+)", printed)[1]}


def build(case: Case, recorded: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the figures of a case, as the README describes them, and what is wrong with them
    ("faults").

    Machine code that cannot be read, or has no tile loop, is a fault; the figures of a tile are
    missing then. A case whose code is that of ``recorded`` is not compiled again, and has its
    figures.
    """
    started = time.perf_counter()
    digest = _digest(case)
    if recorded is not None and recorded.get("code") == digest:
        result = recorded | {"stack": 0, "local": 0, "seconds": 0.0}
        return result | {"faults": _faults(case, result)}
    source, target, options = _source(case)
    compiled = triton.compile(source, target=target, options=options)
    seconds = time.perf_counter() - started
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        printed = _run("nvdisasm", "-c", file.name)
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    )
    warps = case.config.num_warps
    shared = compiled.metadata.shared
    launched = compiled.metadata.num_warps if _specialises(case) else warps
    result = describe(case) | {
        "registers": registers,
        "shared": shared,
        "warps": warps,
        "programs": programs_per_multiprocessor(case.arch, launched, registers, shared),
        "stack": stack + local,
        "code": digest,
    }
    took = {"seconds": round(seconds, 1)}
    try:
        listing = sass.parse(printed)
        result |= {"local": sass.local_accesses(listing)} | _work(case, listing)
    except sass.SassError as error:
        return result | took | {"faults": [str(error)]}
    result["issue"] = result["instructions"] * warps // SCHEDULERS
    if _specialises(case):
        result |= pipeline.cycles(result, warps, SCHEDULERS)
    return result | took | {"faults": _faults(case, result)}


def _faults(case: Case, result: dict[str, Any]) -> list[str]:
    found = faults(result)
    if result["programs"] < case.config.programs:
        found.append(
            f"a multiprocessor holds {result['programs']} programs, its config counts on "
            f"{case.config.programs}"
        )
    return found + (pipeline.faults(result) if _specialises(case) else [])


def _specialises(case: Case) -> bool:
    return case.kernel.startswith("gluon")


def _digest(case: Case) -> str:
    """Returns a digest of what the compiler starts from: Triton's first intermediate code, without
    lines of the source.

    Equal code gives equal machine code from the same compiler, which takes about thirty times as
    long to make.
    """
    source, target, options = _source(case)
    backend = make_backend(target)
    parsed = backend.parse_options(options | source.parse_options())
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    module = source.make_ir(target, parsed, functions, backend.get_module_map(), context)
    code = LOCATION.sub("", str(module))
    return hashlib.sha256(f"{target} {options} {code}".encode()).hexdigest()[:16]


def _source(case: Case) -> tuple[ASTSource, GPUTarget, dict[str, int]]:
    """Returns what triton.compile takes. Pointers and strides are divisible by 16 as in
    launch.py.
    """
    kernel = KERNELS[case.kernel]
    acc = "fp64" if case.dtype == torch.float64 else "fp32"
    signature = {}
    attributes = {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in case.constants:
            signature[argument] = "constexpr"
            continue
        if argument in DESCRIPTORS:
            signature[argument] = _descriptor(case, argument)
        elif not argument.endswith("_ptr"):
            signature[argument] = "i32"
        elif argument in INT64:
            signature[argument] = "*i64"
        elif argument in OTHERS:
            signature[argument] = OTHERS[argument]
        else:
            signature[argument] = "*" + (POINTEE[case.dtype] if argument in OPERANDS else acc)
        if argument.endswith(("_ptr", "_stride")):
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = {"num_warps": case.config.num_warps, "num_stages": case.config.num_stages}
    if _specialises(case):
        options = {"num_warps": DEFAULT_WARPS}
    source = (GluonASTSource if _specialises(case) else ASTSource)(
        kernel, signature, case.constants, attributes
    )
    return source, GPUTarget("cuda", case.arch, 32), options


def _descriptor(case: Case, argument: str) -> str:
    """Returns the type of a TMA descriptor, as the launcher names it."""
    owned = "anchors" if case.kernel == "gluon_row_sweep" else "candidates"
    rows = OWNED.value if argument == owned else 2 * OWNED.value
    dtype, width = (
        (torch.float32, TERMS.value) if argument == "terms" else (case.dtype, case.config.block_d)
    )
    return f"tensordesc<{POINTEE[dtype]}[{rows},{width}],{block_layout(rows, width, dtype)!r}>"


def describe(case: Case) -> dict[str, Any]:
    """Returns what tells the kernel from all others, and its blocks."""
    return {
        "kernel": case.kernel,
        "variant": case.variant,
        "kind": case.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "width": case.width,
        "arch": case.arch,
        "config": list(case.config[:6]),  # what the compiler sees
    }


def _work(case: Case, listing: sass.Listing) -> dict[str, Any]:
    """Returns the figures of a tile, and its products as a multiple of those that it needs.

    The combine kernel has no tile: its figure is the length of the program.
    """
    if not case.kind:
        return {"instructions": len(listing.opcodes)}
    config = case.config
    slices = triton.cdiv(case.width, config.block_k) if config.block_k else 1
    depth = slices * config.block_k or config.block_d
    found = pipeline.figures(listing) if _specialises(case) else sass.figures(listing, slices)
    width = config.block_d if _has_second_product(case) else 0
    needed = config.block_m * config.block_n * (depth + width)
    executed = sass.multiply_adds(found["matrix"]) * config.num_warps
    return found | {"products": round(executed / needed, 2)}


def _has_second_product(case: Case) -> bool:
    flags = (case.constants.get(name, True) for name in ("NEED_D_ANCHORS", "NEED_GRADIENT"))
    return case.kernel not in ("symmetric_sums", "unbounded_row_sweep") and all(flags)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout
