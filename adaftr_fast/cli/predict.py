"""``adaftr-fast predict``."""

from __future__ import annotations

from typing import Literal

import jsonargparse

from adaftr_fast.cli.options import Parser, place

DESCRIPTION = "Score raw rows, parquet or text, with an exported model."


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``predict``."""
    files = "raw rows in the formats of prepare, without labels; for Ali-CCP, pairs SKELETON COMMON"
    parser.add_argument("--model", type=place, required=True, help="the --out folder of export")
    parser.add_argument("--files", type=str, nargs="+", required=True, help=files)
    parser.add_argument("--out", type=place, required=True, help="the parquet file to write")
    parser.add_argument("--keep", type=str, nargs="+", default=[], help="input columns to copy before the scores")
    parser.add_argument("--bad_rows", type=float, default=0.0, help="maximum share of unreadable rows in text files")
    parser.add_argument("--click", type=str | None, help="the task that is p_ctr (default: click)")
    parser.add_argument("--conversion", type=str | None, help="the conversion task (default: conversion)")
    bid = "add the bid of Eq. 16; p_c, the price of a conversion, as a number or the name of a column"
    parser.add_argument("--bid", type=str | None, help=bid)
    parser.add_argument("--bid_weight", type=float, default=1.0, help="w of Eq. 16")
    cvr = "p_cvr: the quotient of the conversion and the click task, at most 1, or the output of the conversion task"
    parser.add_argument("--cvr", type=Literal["quotient", "output"], default="quotient", help=cvr)
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")


def run(arguments: jsonargparse.Namespace) -> None:
    """Scores raw rows and prints their number, the speed and the skipped rows."""
    from adaftr_fast.api.serve import predict

    options = arguments.as_dict()
    print(predict(options.pop("model"), options.pop("files"), options.pop("out"), **options))
