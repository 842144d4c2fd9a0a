"""``adaftr-fast export`` and ``adaftr-fast predict``: their options, and what they do with them.

Like the command line itself, this imports what is slow to import only when it runs.
"""

from __future__ import annotations

from pathlib import Path

import jsonargparse


def add_export_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Adds the options of ``export``."""
    parser.add_argument("--run", type=Path, required=True, help="the --out folder of train")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--data", type=Path | None, help="the prepared folder of the run, if it has moved since")
    parser.add_argument("--aot", action="store_true", help="also compile a native package (AOTInductor; a minute)")
    parser.add_argument("--onnx", action="store_true", help="also write ONNX (pip install adaftr-fast[onnx])")


def add_predict_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Adds the options of ``predict``."""
    files = "raw rows as prepare reads them, labels not needed; of Ali-CCP pairs SKELETON COMMON"
    parser.add_argument("--model", type=Path, required=True, help="the --out folder of export")
    parser.add_argument("--files", type=str, nargs="+", required=True, help=files)
    parser.add_argument("--out", type=Path, required=True, help="the parquet file to write")
    parser.add_argument("--keep", type=str, nargs="+", default=[], help="input columns to put before the scores")
    parser.add_argument("--bad_rows", type=float, default=0.0, help="share of rows of text that may be unreadable")
    parser.add_argument("--click", type=str | None, help="the task that is p_ctr (default: click)")
    parser.add_argument("--conversion", type=str | None, help="the task that is p_ctcvr (default: conversion)")
    bid = "add the bid of Eq. 16; its p_c, the price of a conversion: a number, or the column that holds it"
    parser.add_argument("--bid", type=str | None, help=bid)
    parser.add_argument("--bid_weight", type=float, default=1.0, help="w of Eq. 16")
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")


def run_export(arguments: jsonargparse.Namespace) -> None:
    """Exports a run's model and says what was written."""
    from adaftr_fast.serving.export import export_run

    about = export_run(arguments.run, arguments.out, data=arguments.data, aot=arguments.aot, onnx=arguments.onnx)
    print(f"{arguments.out}: {', '.join(about.sha256)}")
    print(f"adaftr-fast predict --model {arguments.out} --files RAW --out SCORES.parquet")


def run_predict(arguments: jsonargparse.Namespace) -> None:
    """Scores raw rows and says how many, how fast and what was left out."""
    from adaftr_fast.serving.columns import output_columns
    from adaftr_fast.serving.predict import predict
    from adaftr_fast.serving.scorer import load_scorer

    scorer = load_scorer(arguments.model)
    options = {name: arguments[name] for name in ("click", "conversion", "bid", "bid_weight")}
    columns = output_columns(scorer.about.tasks, **options)
    options = {name: arguments[name] for name in ("keep", "bad_rows", "progress")}
    report = predict(scorer, arguments.files, arguments.out, columns, **options)
    rate = report.rows / report.seconds
    print(f"{arguments.out}: {report.rows:,} rows, {', '.join(columns.names())} ({rate:,.0f} rows/s)")
    if report.bad_rows.bad:
        print(f"Left out: {report.bad_rows.summary()}")
