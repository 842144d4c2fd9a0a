"""The commands that use runs: ``evaluate``, ``compare``, ``export``, ``predict`` and ``serve``."""

from __future__ import annotations

from typing import Literal

import jsonargparse

from adaftr_fast._json import dumps
from adaftr_fast.cli.options import Command, Parser, add_class, add_memory, place, read_class


def add_evaluate(parser: Parser) -> None:
    """Adds the options of ``evaluate``."""
    parser.add_argument("--run", type=place, required=True, help="the --out folder of train")
    parser.add_argument(
        "--data", type=place, help="a prepared folder, if not the one the run was trained on"
    )
    parser.add_argument(
        "--split", type=str, default="test", help="the split: train, validation or test"
    )
    importance = (
        "also measure what each field is worth: the AUC that is lost if its values are those of "
        "other rows"
    )
    parser.add_argument("--importance", action="store_true", help=importance)
    repeats = "with --importance: permutations of each field, for the standard error"
    parser.add_argument("--repeats", type=int, default=5, help=repeats)
    max_rows = "with --importance: the most rows to measure, drawn at random, which bounds the time"
    parser.add_argument("--max_rows", type=int, default=50_000, help=max_rows)
    parser.add_argument(
        "--seed", type=int, default=0, help="with --importance: of the permutations and the draw"
    )
    memory = (
        "the process may take, beside the model and the rows of --importance; all rows' "
        "predictions must fit"
    )
    add_memory(parser, memory, "any")
    out = (
        "a folder for evaluation.md, a page with calibration, lift, gain and importance, and "
        "evaluation.png"
    )
    parser.add_argument("--out", type=place, help=out)
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument(
        "--progress", type=bool, default=True, help="with --importance: show a progress bar"
    )
    add_class(parser)


def evaluate(arguments: jsonargparse.Namespace) -> None:
    """Prints the metrics as tables or JSON, and writes the page."""
    from adaftr_fast.api.run import evaluate

    names = ("importance", "repeats", "max_rows", "seed", "memory", "progress")
    options = {name: arguments[name] for name in names}
    found = evaluate(
        arguments.run, arguments.data, arguments.split, **options, model_class=read_class(arguments)
    )
    files = [] if arguments.out is None else found.write(arguments.out)
    if arguments.json:
        print(dumps(found.numbers(), indent=2))
        return
    print(found)
    if files:
        print(f"\nPage: {', '.join(files)}")
    else:
        print(
            "\nCalibration, lift and gain: --out FOLDER"
            + ("" if arguments.importance else "; fields: --importance")
        )


def add_compare(parser: Parser) -> None:
    """Adds the options of ``compare``."""
    parser.add_argument("runs", type=place, nargs="+", help="the --out folders of train")
    parser.add_argument(
        "--out", type=place, help="a folder for report.md and report.png with the curves"
    )


def compare(arguments: jsonargparse.Namespace) -> None:
    """Prints the tables, and a line about each run that cannot be read."""
    from adaftr_fast.api.compare import compare

    print(compare(arguments.runs, arguments.out))
    if arguments.out is not None:
        print(f"\nReport: {arguments.out}/report.md")


def add_export(parser: Parser) -> None:
    """Adds the options of ``export``."""
    parser.add_argument("--run", type=place, required=True, help="the --out folder of train")
    parser.add_argument("--out", type=place, required=True, help="the folder to write")
    parser.add_argument(
        "--data", type=place, help="the prepared folder of the run, if it has moved"
    )
    parser.add_argument(
        "--aot", action="store_true", help="also compile a native package (AOTInductor)"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also write ONNX (pip install adaftr-fast[onnx])"
    )
    int8 = (
        "round the embedding tables to int8, and show their size and the validation metrics beside "
        "float32's"
    )
    parser.add_argument("--int8", action="store_true", help=int8)
    task = "export the network of one task alone, without what only other tasks need"
    parser.add_argument("--task", type=str | None, help=task)
    add_class(parser)


def export(arguments: jsonargparse.Namespace) -> None:
    """Exports the model and prints the files and the command that uses them."""
    from adaftr_fast.api.serve import export

    options = {name: arguments[name] for name in ("data", "aot", "onnx", "int8", "task")}
    exported = export(arguments.run, arguments.out, **options, model_class=read_class(arguments))
    print(exported if arguments.int8 else exported.summary())
    print(f"adaftr-fast predict --model {arguments.out} --files RAW --out SCORES.parquet")
    print(f"adaftr-fast serve {arguments.out}")


def add_predict(parser: Parser) -> None:
    """Adds the options of ``predict``."""
    files = "raw rows in the formats of prepare, without labels; for Ali-CCP, pairs SKELETON COMMON"
    parser.add_argument("--model", type=place, required=True, help="the --out folder of export")
    parser.add_argument("--files", type=str, nargs="+", required=True, help=files)
    parser.add_argument("--out", type=place, required=True, help="the parquet file to write")
    parser.add_argument(
        "--keep", type=str, nargs="+", default=[], help="input columns to copy before the scores"
    )
    parser.add_argument(
        "--bad_rows", type=float, default=0.0, help="maximum share of unreadable rows in text files"
    )
    _add_columns(parser)
    add_memory(parser, "the process may take, beside the model and its vocabularies")
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")


def _add_columns(parser: Parser) -> None:
    """Adds the options that say which columns of scores there are."""
    click = (
        "the task that is p_ctr (default: the first of two stages of the funnel of prepare, else "
        "click)"
    )
    parser.add_argument("--click", type=str | None, help=click)
    conversion = (
        "the conversion task (default: the second of two stages of the funnel, else conversion)"
    )
    parser.add_argument("--conversion", type=str | None, help=conversion)
    bid = (
        "add a column with the bid for an impression, from the price of a conversion: a number, or "
        "the column that "
        "holds it (p_c of Eq. 16)"
    )
    parser.add_argument("--bid", type=str | None, help=bid)
    parser.add_argument(
        "--bid_weight", type=float, default=1.0, help="a factor of the bid (w of Eq. 16)"
    )
    cvr = (
        "p_cvr: the quotient of the conversion and the click task, at most 1, or the output of the "
        "conversion task"
    )
    parser.add_argument("--cvr", type=Literal["quotient", "output"], default="quotient", help=cvr)


def predict(arguments: jsonargparse.Namespace) -> None:
    """Scores raw rows and prints their number, the speed and the skipped rows."""
    from adaftr_fast.api.serve import predict

    options = arguments.as_dict()
    print(predict(options.pop("model"), options.pop("files"), options.pop("out"), **options))


def add_serve(parser: Parser) -> None:
    """Adds the options of ``serve``."""
    parser.add_argument(
        "model",
        type=place,
        help="the --out folder of export; one that replaces it is served at once",
    )
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="the address to listen at; 0.0.0.0 for all"
    )
    parser.add_argument("--port", type=int, default=8000, help="the port; 0 for a free one")
    extra = "what to do with a column of a row that the schema does not know"
    parser.add_argument("--extra", type=Literal["error", "ignore"], default="error", help=extra)
    _add_columns(parser)


def serve(arguments: jsonargparse.Namespace) -> None:
    """Serves until it is interrupted."""
    from adaftr_fast.serving.server import serve

    options = arguments.as_dict()
    serve(options.pop("model"), **options)


COMMANDS = {
    "evaluate": Command("Evaluate a trained model on one split.", add_evaluate, evaluate),
    "compare": Command(
        "Compare runs: metrics, best epochs, speed, and the options in which they differ.",
        add_compare,
        compare,
    ),
    "export": Command(
        "Export a trained model as a program that scores raw rows.", add_export, export
    ),
    "predict": Command(
        "Score raw rows, parquet or text, with an exported model.", add_predict, predict
    ),
    "serve": Command(
        "Serve an exported model over HTTP: rows and scores as JSON.", add_serve, serve
    ),
}
