"""Compile every tiling of the GPU loss kernels without a GPU, and check what the compiler made of
it.

    python -m benchmarks.infonce.compile_sweep [--quick] [--arch 80 90] [--jobs 2]
    python -m benchmarks.infonce.compile_sweep --record     writes results/compile-triton<version>.json
    python -m benchmarks.infonce.compile_sweep --compare    names each figure that is worse than recorded

Prints one JSON line a kernel and exits with 1 if one spills, asks for more shared memory than the
card has, misses its matrix instructions, or is worse than recorded. ``--quick`` compares where
there is a record of the installed Triton. A kernel is compiled only where the record lacks it, or
has it of other code. ``--anew`` compiles all, as is needed once the code that reads the figures has
changed. A part of the kernels is recorded beside what the record has of the others. Not under
TRITON_INTERPRET.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import triton

from benchmarks.infonce.compile import record
from benchmarks.infonce.compile.build import build, compiler, describe
from benchmarks.infonce.compile.cases import ARCHS, cases


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one variant and type for each row of the table"
    )
    parser.add_argument(
        "--anew", action="store_true", help="compile also what the record has of the same code"
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=list(ARCHS))
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="kernels compiled at a time (default: cores)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--record", action="store_true", help="write the figures, unless a kernel has faults"
    )
    either.add_argument(
        "--compare", action="store_true", help="fail where a figure is worse than recorded"
    )
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {options.jobs}")
    return options


def main() -> int:
    options = parsed()
    versions = compiler()
    recorded = record.read(versions)
    if options.compare and recorded is None:
        print(
            f"compile_sweep: {record.path_of(versions['triton'])} is no record of {versions}",
            file=sys.stderr,
        )
        return 1
    partial = options.quick or set(options.arch) != set(ARCHS)
    if (
        options.record
        and partial
        and recorded is None
        and (path := record.path_of(versions["triton"])).exists()
    ):
        print(
            f"compile_sweep: {path} is of another compiler; record all kernels at once",
            file=sys.stderr,
        )
        return 1
    chosen = list(cases(options.arch, options.quick))
    known = {} if options.anew else {record.key_of(each): each for each in recorded or ()}
    results = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for result in pool.map(
            build, chosen, [known.get(record.key_of(describe(case))) for case in chosen]
        ):
            results.append(result)
            print(json.dumps(result), flush=True)
    problems = [f"{record.name(each)}: {fault}" for each in results for fault in each["faults"]]
    if recorded is not None and (options.compare or options.quick) and not options.record:
        here = [each for each in recorded if each["arch"] in options.arch]
        problems += record.worse(results, here, complete=not options.quick)
    for problem in problems:
        print(f"compile_sweep: {problem}", file=sys.stderr)
    if not problems and options.record:
        left = [
            each for each in recorded or () if options.quick or each["arch"] not in options.arch
        ]
        print(record.write(versions, results, left), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
