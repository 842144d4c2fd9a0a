"""One run: trains the model of a configuration and evaluates it once on the test split."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from adaftr_fast import _memory
from adaftr_fast.config import ModelConfig, RunConfig, WarmStartConfig
from adaftr_fast.config.model import MODELS
from adaftr_fast.data.dataset.loader import PreparedData, Split
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.distributed.ranks import ALONE, Ranks, local_share, restarted
from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.explain.doubts import data_doubts, find_doubts, leaks, training_doubts
from adaftr_fast.files.locks import writing_folder
from adaftr_fast.files.whole import write_json
from adaftr_fast.models import MultiTaskModel, build_model
from adaftr_fast.models.base import PlainModule
from adaftr_fast.models.build import check_forward
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.nn.embedding_table import tables_elsewhere
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.runs.warm_start import warm_start
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.weights import FILE, Description
from adaftr_fast.training.device import memory_errors
from adaftr_fast.training.evaluation import TaskMetrics, examine
from adaftr_fast.training.files import RunFiles
from adaftr_fast.training.optimizers import table_state_bytes
from adaftr_fast.training.sharding import check_sharding, check_tables
from adaftr_fast.training.trained import BEST, DOUBTS, METRICS, PICTURE, REPORT, TEST, TRACKERS, Run
from adaftr_fast.training.trainer import OnEpoch, Trainer

RUN_FILES = (
    METRICS,
    TEST,
    DOUBTS,
    REPORT,
    PICTURE,
    TRACKERS,
    f"{BEST}/{FILE}",
)  # that replace_file writes


def train_one(
    data: PreparedData,
    config: RunConfig,
    folder: Path,
    *,
    restart: bool = False,
    ranks: Ranks = ALONE,
    output: Output = HERE,
    report: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Trains the model of ``config`` on ``data`` and evaluates it on the test split.

    The other arguments and the errors are those of ``fit_one``.

    Args:
        report: also writes report.md and report.png.
    """
    if report:
        # imports matplotlib: a missing package raises before training
        from adaftr_fast.training.report import write_page
    with fit_one(
        data, config, folder, restart=restart, ranks=ranks, output=output, on_epoch=on_epoch
    ) as trainer:
        config = config_of(trainer)
        test = open_split(data, "test", ranks)
        size = config.training.eval_batch_size
        metrics, learned = examine(trainer.model, test, size, ranks, config.training.gauc_weights)
        doubts = ranks.from_rank_zero(lambda: find_all(trainer, data, "test", metrics))
        run = replace(trainer.result, test=metrics, diagnostics=learned, doubts=doubts)
        if trainer.files.is_rank_zero:
            write_json(folder / DOUBTS, run.doubts)
            write_json(folder / TEST, metrics)
            trainer.files.log_test(metrics)
            if report:
                write_page(folder, data.manifest, config, run)
        trainer.files.finish()
    return run


@contextmanager
def fit_one(
    data: PreparedData,
    config: RunConfig,
    folder: Path,
    *,
    restart: bool = False,
    ranks: Ranks = ALONE,
    output: Output = HERE,
    on_epoch: OnEpoch | None = None,
    needs_metrics: bool = True,
    wait: float = 0.0,
) -> Iterator[Trainer]:
    """Trains the model of ``config`` on ``data``, and yields its trainer, whose model holds the
    best weights.

    An unfinished run with the same options in ``folder`` is resumed. Until the block ends, this
    process is the only writer of ``folder``. The run remains unfinished unless the block calls
    ``trainer.files.finish()``, when all its results have been written.

    Args:
        data: the prepared data.
        config: the configuration. ``config.data`` is only recorded in the checkpoint.
        folder: the run folder.
        restart: discards an unfinished run in ``folder`` instead of resuming it.
        ranks: the ranks that train together. All ranks read the data; only rank 0 reads and writes
            ``folder``, except for the rows of sharded tables, and reads the run of a warm start.
        output: what ``folder`` is a part of. It is uploaded after snapshots, if it is to be. A warm
            start from another part of it reads the local files. It opens the trackers.
        on_epoch, needs_metrics: see ``Trainer``.
        wait: how many seconds to wait for another writer of ``folder``.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM ended training, which can be resumed. The arguments are
            the number of the signal and a message for the user.
        CheckpointError: ``folder`` contains an unfinished run with other options or data, or cannot
            be written.
        TrainingError: an option is not supported, or training diverged.
        RankError: the ranks have different options or data.
        BusyError: another process writes ``folder``.
    """
    check_options(config, ranks)
    given = config.flat()
    rows = data.manifest.splits["train"].rows
    config = config.for_log(rows, data.manifest.parsed.preset)
    with writing(folder, ranks, *RUN_FILES, wait=wait):
        trainer = _new_trainer(data, config, folder, ranks, on_epoch, needs_metrics, output)
        fitted = [
            f"{name} {value}" for name, value in config.flat().items() if value != given[name]
        ]
        if fitted and ranks.is_rank_zero:
            print(f"options that fit {rows:,} training rows: {', '.join(fitted)}", file=sys.stderr)
        if restart and not restarted():
            trainer.files.finish()
        resumed = trainer.resume()
        if trainer.files.is_rank_zero:
            _announce(folder, output.recorded(folder), trainer.progress if resumed else None)
        if not resumed and config.warm_start is not None:
            _warm_start(trainer.model, data, config.warm_start, config, ranks, output)
        signum = trainer.fit().interrupted
        if signum:
            message = f"interrupted; run the same command to resume from {output.recorded(folder)}"
            raise KeyboardInterrupt(signum, message)
        with trainer.files:
            yield trainer


def config_of(trainer: Trainer) -> RunConfig:
    """Returns the complete configuration of a trainer that ``fit_one`` yields."""
    about = trainer.files.about
    assert about is not None  # as it has a folder
    return about.config


def find_all(trainer: Trainer, data: PreparedData, split: str, metrics: TaskMetrics) -> list[str]:
    """Returns why the model of a trainer may not be worth using, a sentence each.

    Args:
        trainer: the trainer that ``fit_one`` yields, with the best weights.
        data: the data that it was trained on.
        split: the split that ``metrics`` are of.
        metrics: the metrics of the best weights.
    """
    config = config_of(trainer)
    rows = data.manifest.splits["train"].rows
    doubts = find_doubts(metrics)
    doubts += training_doubts(trainer.result, rows, config.training, config.optimizer)
    doubts += data_doubts(data.manifest)
    if trainer.ranks.is_alone:  # tables may be on other ranks, too
        size = config.training.eval_batch_size
        doubts += leaks(trainer.model, data.load(split), data.manifest, metrics, size)
    return doubts


def check_options(config: RunConfig, ranks: Ranks) -> None:
    """Raises TrainingError or RankError if ``config.training.tables`` does not support
    an option.
    """
    check_tables(config.model, config.training)
    check_sharding(config.optimizer, config.training, ranks)


@contextmanager
def writing(folder: Path, ranks: Ranks, *files: str, wait: float = 0.0) -> Iterator[None]:
    """Makes rank 0 the only writer of ``folder``, as ``writing_folder``. All ranks
    raise its error.
    """
    with ExitStack() as stack:
        ranks.from_rank_zero(lambda: stack.enter_context(writing_folder(folder, *files, wait=wait)))
        yield


def _new_trainer(
    data: PreparedData,
    config: RunConfig,
    folder: Path,
    ranks: Ranks,
    on_epoch: OnEpoch | None,
    needs_metrics: bool,
    output: Output,
) -> Trainer:
    about = _description(data, config)
    ranks.agree("settings or data", about.to_dict())
    torch.manual_seed(config.training.seed)  # for the initial weights; the trainer seeds the rest
    if config.training.tables == "replicated":
        _check_memory(config, data)
    with nullcontext() if config.training.tables == "replicated" else tables_elsewhere():
        model = build(config.model, data)
    if config.model.start_at_rates:
        counts = data.manifest.splits["train"]
        # Laplace's estimate, which is never 0 or 1
        model.start_at(
            [(counts.positives[task] + 1) / (counts.rows + 2) for task in model.task_names]
        )
    train = open_split(data, "train", ranks)
    return Trainer(
        model,
        train,
        open_split(data, "validation", ranks),
        optimizer=config.optimizer,
        config=config.training,
        files=RunFiles(
            model,
            config.training,
            folder,
            about,
            rows=len(train),
            ranks=ranks,
            saved=output.save,
            open_trackers=output.open_trackers,
        ),
        ranks=ranks,
        on_epoch=on_epoch,
        needs_metrics=needs_metrics,
    )


def _warm_start(
    model: MultiTaskModel,
    data: PreparedData,
    start: WarmStartConfig,
    config: RunConfig,
    ranks: Ranks,
    output: Output,
) -> None:
    """Copies the weights that the configuration asks for, and says which. Replicas are copied on
    rank 0 alone.
    """

    def copy(ranks: Ranks = ALONE) -> None:
        taken = warm_start(model, data, start, config.model.name, ranks, output)
        if taken is not None:
            print(f"warm start from {start.run}: {taken.summary()}", file=sys.stderr)

    if config.training.tables == "replicated":
        ranks.after_rank_zero(copy)
    else:
        copy(ranks)


def _announce(folder: Path, name: str, resumed: Progress | None) -> None:
    """Says where an unfinished run resumes, or which finished run a new one is going to replace."""
    if resumed is not None:
        print(
            f"{name}: resuming in epoch {resumed.epoch} after step {resumed.step:,}",
            file=sys.stderr,
        )
    elif (folder / TEST).exists():
        at = datetime.fromtimestamp((folder / TEST).stat().st_mtime)
        print(
            f"{name}: replaces the finished run of {at:%Y-%m-%d %H:%M} after the first epoch",
            file=sys.stderr,
        )


def open_split(data: PreparedData, name: str, ranks: Ranks) -> Split:
    """Opens a split of ``data``, of which the ranks of one machine each compare the sha256 of some
    files.

    All ``ranks`` must call it. A rank that finds nothing wrong raises the error of the first that
    does.

    Raises:
        DataError: there is no such split, or a file is unreadable or does not match the manifest.
    """
    if ranks.is_alone:
        return data.load(name)
    split: Split | None = None
    failure: str | None = None
    try:
        split = data.load(name, local_share())
    except DataError as error:
        failure = str(error)
    for each in ranks.gathered(failure):
        if each is not None:
            raise DataError(each)
    assert split is not None  # or this rank's failure was raised
    return split


def _description(data: PreparedData, config: RunConfig) -> Description:
    return Description(
        config=config,
        fingerprint=data.manifest.fingerprint,
        num_embeddings=data.manifest.num_embeddings,
        tasks=data.manifest.tasks,
        metrics={},
        field_names=data.manifest.field_names,
        dense=data.manifest.dense,
    )


def build(config: ModelConfig, data: PreparedData) -> MultiTaskModel:
    """Builds the model of ``config`` for the fields and tasks of ``data``.

    Raises:
        ConfigError: an option is invalid for the data.
        TrainingError: the model needs more memory than there is.
    """
    known = MODELS.get(config.name)
    if known and known.needs_funnel and data.manifest.funnel != tuple(data.manifest.tasks):
        tasks, funnel = (
            ", ".join(each) or "none" for each in (data.manifest.tasks, data.manifest.funnel)
        )
        raise ConfigError(
            f"model.name: {config.name} needs tasks that are the stages of the schema's funnel, in "
            f"order, got tasks {tasks} and funnel {funnel}"
        )
    _check_attention(config, data.manifest)
    try:
        with memory_errors(torch.device("cpu"), "lower the sizes of the model"):
            model = build_model(
                config,
                data.manifest.num_embeddings,
                data.manifest.tasks,
                data.manifest.field_names,
                data.manifest.dense,
            )
    except ConfigError:
        raise
    except ValueError as error:  # raised by a constructor about an option
        raise ConfigError(f"model: {error}") from error
    if isinstance(model, PlainModule) and any(field.multiple for field in data.manifest.fields):
        check_forward(config.name, type(model.module), offsets=None)
    return model


def _check_attention(config: ModelConfig, manifest: Manifest) -> None:
    """Raises ConfigError if attention would pool a single-valued field, or ids of another
    vocabulary than the target's.

    ``attention_targets`` checks the names.
    """
    multiple = {field.name for field in manifest.fields if field.multiple}
    owners = {field.name: field.vocabulary or field.name for field in manifest.parsed.fields}
    for name, target in config.attention.items():
        if not {name, target} <= owners.keys():
            continue
        if name not in multiple:
            raise config.error("attention", 'fields with tokens = "all" in the schema', name)
        if target in multiple:
            raise config.error("attention", f"a single-valued target of {name}", target)
        if owners[name] != owners[target]:
            wanted = (
                f'vocabulary = "{owners[target]}" for {name} in the schema of the prepared data'
            )
            raise config.error("attention", wanted, owners[name])


def _check_memory(config: RunConfig, data: PreparedData) -> None:
    """Raises ConfigError if tables and their optimizer's state alone are larger than the memory
    that is available.
    """
    if config.model.is_own:  # which may have other tables
        return
    with torch.device("meta"):
        sizes = [weight.shape for weight in tables_of([build(config.model, data)])]
    rows = [size[0] for size in sizes]
    widths = [size[1] for size in sizes]
    weights = 4 * sum(map(operator.mul, rows, widths))
    available = _memory.available()
    on_cpu = config.training.device == "cpu"  # other devices hold the state themselves
    state = table_state_bytes(config.optimizer.tables, rows, widths) if on_cpu else 0
    if available is not None and weights + state > available:
        needed = f"{weights / 1e9:,.1f} GB of float32"
        needed += (
            f" and {state / 1e9:,.1f} GB of {config.optimizer.tables}'s state" if state else ""
        )
        raise ConfigError(
            f"model.embedding_dim: the tables of {sum(rows):,} rows take {needed}, and "
            f"{available / 1e9:,.1f} GB of memory are available; use a smaller width, raise "
            "min_count or hash the largest fields in the schema, or use an optimizer.tables with "
            "less state"
        )
