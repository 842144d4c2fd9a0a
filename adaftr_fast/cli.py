"""The command line: prepare, synthesize, train, daily, evaluate, export, predict, demo, experiment, info.

Whatever a command needs beyond its arguments is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from adaftr_fast._json import dumps
from adaftr_fast.config.model import ModelConfig
from adaftr_fast.config.training import DataConfig, OptimizerConfig, TrainingConfig
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.distributed.ranks import launched
from adaftr_fast.errors import CheckpointError, DataError, RankError, ServingError, TrainingError
from adaftr_fast.experiments import command
from adaftr_fast.runs import command as runs
from adaftr_fast.runs import demo
from adaftr_fast.serving import command as serving

SECTIONS = {"data": DataConfig, "model": ModelConfig, "optimizer": OptimizerConfig, "training": TrainingConfig}
USER_ERRORS = (DataError, CheckpointError, RankError, ServingError, TrainingError, ValueError, OSError)
INTERRUPTED = 128  # + the signal's number: what shells report for a program that a signal ended


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        name = self.prog.replace(" [options]", "")
        self.exit(2, f"{name}: {' '.join(message.split())}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns 0, 2 after one line on what the user can put right, 130 after Ctrl-C, or 143 after SIGTERM.
    """
    parsed = build_parser().parse_args(arguments)
    name = parsed.subcommand
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            if launched() and name != "train":
                raise RankError("only train runs as several processes (WORLD_SIZE > 1, as torchrun sets it)")
            COMMANDS[name](parsed[name])
        except USER_ERRORS as error:
            print(f"adaftr-fast {name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(f"adaftr-fast {name}: {stop.args[1] if stop.args else 'interrupted'}", file=sys.stderr)
            return INTERRUPTED + (stop.args[0] if stop.args else signal.SIGINT)
    return 0


def build_parser() -> Parser:
    """The parser of all commands; every config field is an option ``--section.field`` and a TOML key."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # help texts of config fields
    about = "Joint click/conversion models with adaptive task relatedness: prepare data, train, evaluate, serve."
    parser = Parser(prog="adaftr-fast", description=about, parser_mode="toml")
    commands = parser.add_subcommands(required=True)

    prepare = Parser(description="Turn raw logs, parquet or text, into a prepared folder.")
    prepare.add_argument("--dataset", type=str | None, help="one that info lists, or a schema file (.toml)")
    prepare.add_argument("--files", type=str, nargs="+", default=[], help="input files; none for flights and synthetic")
    prepare.add_argument("--labels", type=str, nargs="+", help="instead of --dataset: the 0/1 columns, one a task")
    prepare.add_argument("--group", type=str | None, help="with --labels: the column of users")
    prepare.add_argument("--time", type=str | None, help="with --labels: the column to split by, else by users or rows")
    prepare.add_argument("--weight", type=str | None, help="with --labels: the column of sample weights")
    prepare.add_argument("--ignore", type=str, nargs="+", default=[], help="with --labels: columns to leave out")
    prepare.add_argument("--bad_rows", type=float, default=0.0, help="share of rows of text that may be unreadable")
    grow = "a prepared folder of the same fields whose ids keep their meaning; new values get ids after its own"
    prepare.add_argument("--grow", type=Path | None, help=grow)
    part = (
        "K/N: do part K of N, on any machine that sees the files and --out, as far as the others have come; run every "
        "part three times, with Ali-CCP's raw files four, and the last to come writes --out"
    )
    prepare.add_argument("--part", type=str | None, help=part)
    wait = "with --part: seconds to wait for the others at each step, so that one run of each is enough"
    prepare.add_argument("--wait", type=float, default=0.0, help=wait)
    prepare.add_argument("--out", type=Path, required=True, help="the prepared folder")
    commands.add_subcommand("prepare", prepare)

    synthesize = Parser(description="Make an impression log with known truth, to prepare and train on.")
    synthesize.add_class_arguments(LogConfig)
    synthesize.add_argument("--raw", type=bool, default=False, help="write text in Ali-CCP's raw layout, no parquet")
    synthesize.add_argument("--out", type=Path, required=True, help="folder for the log and its schema")
    commands.add_subcommand("synthesize", synthesize)

    # print_config would need a writer of TOML; best/checkpoint.json records every setting instead.
    train = Parser(description="Train one model on a prepared folder.", print_config=None)
    train.add_argument("--config", action="config", help="a TOML file; options given after it win")
    for name, section in SECTIONS.items():
        train.add_argument(f"--{name}", type=section, default=section())
    out = (
        "folder for metrics.jsonl, best/ and test.json; an unfinished run there is resumed, a finished one replaced "
        "once an epoch is done"
    )
    train.add_argument("--out", type=Path, required=True, help=out)
    restart = "begin anew even if --out holds an unfinished run"
    train.add_argument("--restart", action="store_true", help=restart)
    warm = "a run to start from: embedding rows by field and value, dense weights by name and shape"
    train.add_argument("--warm_start", type=Path | None, help=warm)
    commands.add_subcommand("train", train)

    daily = Parser(description="Train day by day, each day measured before it is trained on.", print_config=None)
    runs.add_daily_arguments(daily)
    commands.add_subcommand("daily", daily)

    evaluate = Parser(description="Measure a trained model on one split.")
    evaluate.add_argument("--run", type=Path, required=True, help="the --out folder of train")
    evaluate.add_argument("--data", type=Path, required=True, help="a prepared folder")
    evaluate.add_argument("--split", type=str, default="test", help="train, validation or test")
    commands.add_subcommand("evaluate", evaluate)

    export = Parser(description="Write a trained model as a program that scores raw rows.")
    serving.add_export_arguments(export)
    commands.add_subcommand("export", export)

    predict = Parser(description="Score raw rows, parquet or text, with an exported model.")
    serving.add_predict_arguments(predict)
    commands.add_subcommand("predict", predict)

    demonstration = Parser(description="Train MMoE and AdaFTR on the flights that ship with the package, and compare.")
    demo.add_arguments(demonstration)
    commands.add_subcommand("demo", demonstration)

    experiment = Parser(description="Run, resume and report a table or figure of the paper.", print_config=None)
    command.add_arguments(experiment)
    commands.add_subcommand("experiment", experiment)

    commands.add_subcommand("info", Parser(description="What is built, for which machine, and what is missing."))
    return parser


def run_prepare(arguments: jsonargparse.Namespace) -> None:
    from adaftr_fast.data.prepare.run import Part, Unfinished, prepare, prepare_part
    from adaftr_fast.data.raw.infer import infer_schema
    from adaftr_fast.data.schema.parse import load_schema, parse_schema

    if (arguments.dataset is None) == (arguments.labels is None):
        raise DataError("expected --dataset, or --labels for a schema inferred from the one file of --files")
    if arguments.dataset is not None:
        schema = load_schema(arguments.dataset)
    elif len(arguments.files) != 1:
        raise DataError(f"--files: expected one file beside --labels, got {len(arguments.files)}")
    else:
        names = {name: arguments[name] for name in ("labels", "group", "time", "weight", "ignore")}
        schema = parse_schema(infer_schema(arguments.files[0], **names))
    options = {"bad_rows": arguments.bad_rows, "grow": arguments.grow, "progress": True}
    if arguments.part is None and arguments.wait:
        raise DataError("--wait goes with --part")
    if arguments.part is None:
        manifest = prepare(schema, arguments.files, arguments.out, **options)
    else:
        part = Part.parse(arguments.part)
        manifest = prepare_part(schema, arguments.files, arguments.out, part, wait=arguments.wait, **options)
    if isinstance(manifest, Unfinished):
        missing = ", ".join(map(str, manifest.missing))
        told = f"part {part}: {manifest.step} is done, but not by part {missing}; run this again once it is"
        if arguments.wait:
            raise DataError(f"{told} (waited {arguments.wait:g} seconds)")
        print(told)
        return
    print(f"{arguments.out}: {manifest.dataset}, {len(manifest.fields)} fields, {sum(manifest.num_embeddings):,} ids")
    for name, split in manifest.splits.items():
        rates = ", ".join(f"{task} {100 * count / split.rows:.2f} %" for task, count in split.positives.items())
        print(f"  {name}: {split.rows:,} rows, {rates}")
    if manifest.bad_rows and manifest.bad_rows.bad:
        print(f"Left out: {manifest.bad_rows.summary()}")
    if manifest.attribution:
        print(f"Source: {manifest.attribution}")


def run_synthesize(arguments: jsonargparse.Namespace) -> None:
    from adaftr_fast.data.synthetic.raw import write_raw
    from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log

    settings = arguments.as_dict()
    folder, raw = settings.pop("out"), settings.pop("raw")
    if raw:
        dataset, files = "aliccp", write_raw(LogConfig(**settings), folder, progress=True)
    else:
        write_log(LogConfig(**settings), folder, progress=True)
        dataset, files = folder / SCHEMA, [folder / LOG]
    print(f"adaftr-fast prepare --dataset {dataset} --files {' '.join(map(str, files))} --out PREPARED")


def run_train(arguments: jsonargparse.Namespace) -> None:
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.distributed.ranks import joined
    from adaftr_fast.runs.run import train_one
    from adaftr_fast.training.report import metrics_table

    config = {name: section(**arguments[name].as_dict()) for name, section in SECTIONS.items()}
    data = PreparedData(config["data"].folder)
    options = {"restart": arguments.restart, "warm_start": arguments.warm_start}
    with joined(config["training"].device, config["training"].rank_timeout) as ranks:
        run = train_one(data, config, arguments.out, ranks=ranks, **options)
        if ranks is None or ranks.is_chief:
            print(metrics_table([run]))


def run_evaluate(arguments: jsonargparse.Namespace) -> None:
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.runs.trained import load_trained
    from adaftr_fast.training.evaluation import evaluate

    data, trained = PreparedData(arguments.data), load_trained(arguments.run)
    trained.check_data(data)
    metrics = evaluate(trained.model, data.load(arguments.split), trained.training.eval_batch_size)
    print(dumps({"split": arguments.split, "metrics": metrics}, indent=2))


def run_info(arguments: jsonargparse.Namespace) -> None:
    from adaftr_fast import build_info
    from adaftr_fast.data.schema.parse import shipped_schemas

    info: dict[str, Any] = build_info() | {"data sets": ", ".join(shipped_schemas())}
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name:<{width}}  {value}")


COMMANDS = {
    "prepare": run_prepare,
    "synthesize": run_synthesize,
    "train": run_train,
    "daily": runs.run_daily,
    "evaluate": run_evaluate,
    "export": serving.run_export,
    "predict": serving.run_predict,
    "demo": demo.run_demo,
    "experiment": command.run_experiment,
    "info": run_info,
}


if __name__ == "__main__":
    sys.exit(main())
