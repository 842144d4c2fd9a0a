"""``adaftr-fast export``."""

from __future__ import annotations

import jsonargparse

from adaftr_fast.cli.options import Parser, add_class, place, read_class

DESCRIPTION = "Export a trained model as a program that scores raw rows."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``export``."""
    parser.add_argument("--run", type=place, required=True, help="the --out folder of train")
    parser.add_argument("--out", type=place, required=True, help="the folder to write")
    parser.add_argument("--data", type=place, help="the prepared folder of the run, if it has moved")
    parser.add_argument("--aot", action="store_true", help="also compile a native package (AOTInductor)")
    parser.add_argument("--onnx", action="store_true", help="also write ONNX (pip install adaftr-fast[onnx])")
    task = "export the network of one task alone, without what only other tasks need"
    parser.add_argument("--task", type=str | None, help=task)
    add_class(parser)


def run(arguments: jsonargparse.Namespace) -> None:
    """Exports the model and prints the files and the command that uses them."""
    from adaftr_fast.api.serve import export

    options = {name: arguments[name] for name in ("data", "aot", "onnx", "task")}
    exported = export(arguments.run, arguments.out, **options, model_class=read_class(arguments))
    print(exported.summary())
    print(f"adaftr-fast predict --model {arguments.out} --files RAW --out SCORES.parquet")
