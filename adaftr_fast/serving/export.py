"""Exports the best weights of a run as a folder that scores raw rows: programs, schema, vocabulary,
description.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import MANIFEST, FieldInfo, signed
from adaftr_fast.data.encode.vocabulary import VOCABULARY, read_encoders
from adaftr_fast.errors import ServingError
from adaftr_fast.files.publish import publishing
from adaftr_fast.files.whole import replace_file, sha256
from adaftr_fast.models.build import ModelClass
from adaftr_fast.nn.embedding_int8 import quantize_tables
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.serving.programs import (
    Probabilities,
    apply_program,
    export_program,
    load_onnx,
    save_aot,
    save_onnx,
    save_torch,
)
from adaftr_fast.serving.scorer import (
    ABOUT,
    AOT,
    ONNX,
    PROGRAM,
    VERSION,
    About,
    Int8,
    unlabelled,
)
from adaftr_fast.training.evaluation import measure, predict
from adaftr_fast.training.trained import Trained, load_trained, read_doubts

TOLERANCE = 1e-6  # maximum difference between the probabilities of a program and the model
ONNX_TOLERANCE = 1e-5  # numpy, which evaluates ONNX here, sums in another order
TASK_TOLERANCE = 1e-5  # so do the gates of one task alone
CHECKED_ROWS = (1, 500)
EXAMPLE_ROWS = 50  # with which a program is traced


def export_run(
    run: Path,
    out: Path,
    *,
    data: Path | None = None,
    aot: bool = False,
    onnx: bool = False,
    int8: bool = False,
    task: str | None = None,
    model_class: ModelClass | None = None,
) -> About:
    """Writes ``model.pt2`` (torch.export), ``schema.json``, ``vocabulary.parquet`` and
    ``serving.json`` to ``out``.

    Every program is compared with the model first. Then the folder replaces an earlier export in
    one step.

    Args:
        run: the folder of a finished run.
        out: the folder to write.
        data: the prepared folder of the run, if it has moved. None uses its path at training time.
        aot: also writes ``model.aot.pt2``, native code for this kind of machine (AOTInductor).
        onnx: also writes ``model.onnx``.
        int8: rounds the tables to int8 with a scale per row, and measures the model anew on the
            validation split.
        task: the one task to export, without the parameters that only other tasks need. None
            exports all.
        model_class: the class of a model of one's own, or its name.

    Returns:
        The description in ``serving.json``.

    Raises:
        CheckpointError: the run has no intact checkpoint or needs ``model_class``, or its prepared
            data are missing or changed.
        ConfigError: as ``load_trained``.
        DataError: the vocabulary cannot be read.
        ServingError: ``out`` exists and is not an export or cannot be written, there is no such
            task or its network needs those of other tasks, ``int8`` finds no FusedEmbedding, a
            compiler or ONNX is missing, or a program differs from the model.
        BusyError: another process exports to ``out``.
    """
    try:
        with publishing(out) as new:
            if out.exists() and not (out / ABOUT).is_file():
                raise ServingError(
                    f"{out}: exists and is not an exported model (no {ABOUT}); name another folder"
                )
            trained = load_trained(run, model_class)
            prepared = trained.data(data)
            # raises an error if the vocabulary could not be read
            read_encoders(prepared.folder, prepared.manifest)
            return _write(trained, prepared, new, task, aot=aot, onnx=onnx, int8=int8)
    except OSError as error:
        raise ServingError(f"{out}: cannot be written: {error.strerror or error}") from error


def _write(
    trained: Trained,
    prepared: PreparedData,
    folder: Path,
    task: str | None,
    *,
    aot: bool,
    onnx: bool,
    int8: bool,
) -> About:
    """Writes all files of an export to a new folder."""
    folder.mkdir()
    manifest = prepared.manifest
    for name in (MANIFEST, VOCABULARY):
        (folder / name).write_bytes((prepared.folder / name).read_bytes())
    served = Probabilities(trained.model, task)
    draw = partial(random_rows, manifest.fields, manifest.dense)
    if task is not None:
        whole = Probabilities(trained.model)
        position = trained.model.position(task)

        def column(*features: Tensor, **named: Tensor) -> Tensor:
            return whole(*features, **named)[:, position, None]

        check_program(served, column, draw, tolerance=TASK_TOLERANCE)
    rounded = _round_tables(served, trained, prepared) if int8 else None
    _write_programs(served, draw, folder, aot=aot, onnx=onnx)
    tasks = trained.about.tasks if task is None else [task]
    metrics = {name: each for name, each in trained.about.metrics.items() if name in tasks}
    digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    doubts = read_doubts(trained.folder)
    about = About(VERSION, manifest.fingerprint, tasks, metrics, digests, rounded, doubts)
    replace_file(folder / ABOUT, signed(asdict(about), ABOUT).encode())
    return about


def _round_tables(served: Probabilities, trained: Trained, data: PreparedData) -> Int8:
    """Rounds the tables of a model to int8, and measures it on the validation split."""
    tables = quantize_tables(served)
    if not tables:
        raise ServingError(
            f"int8: the model {trained.config.model.name} has no FusedEmbedding, whose tables would be int8"
        )
    model = served.model
    split = data.load("validation")
    found = predict(model, split, trained.config.training.eval_batch_size)
    columns = [trained.about.tasks.index(task) for task in model.task_names]
    metrics = measure(
        model.task_names,
        found._replace(labels=found.labels[:, columns]),
        data.manifest.funnel,
        trained.config.training.gauc_weights,
    )
    return Int8(
        sum(table.nbytes() for table in tables),
        sum(table.float32_nbytes() for table in tables),
        metrics,
    )


def _write_programs(
    served: Probabilities, draw: Callable[[int], Batch], folder: Path, *, aot: bool, onnx: bool
) -> None:
    exported = partial(export_program, served, draw(EXAMPLE_ROWS))
    check = partial(check_program, served=served, draw=draw)
    save_torch(exported(), folder / PROGRAM)
    check(torch.export.load(folder / PROGRAM).module())
    if not (aot or onnx):
        return
    plain = exported(plain=True)
    check(plain.module())
    if aot:
        save_aot(plain, folder / AOT)
        check(torch._inductor.aoti_load_package(str(folder / AOT)))
    if onnx:
        save_onnx(plain, folder / ONNX)
        check(load_onnx(folder / ONNX), tolerance=ONNX_TOLERANCE)


def check_program(
    program: Callable[..., Tensor],
    served: Callable[..., Tensor],
    draw: Callable[[int], Batch],
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Raises ServingError unless a program and the model return the same probabilities for the rows
    that ``draw`` draws.
    """
    for rows in CHECKED_ROWS:
        drawn = draw(rows)
        with torch.no_grad():
            expected = apply_program(served, drawn)
            found = apply_program(program, drawn)
        if not expected.isfinite().all():
            raise ServingError(
                "the model returns probabilities that are not finite: it has diverged"
            )
        if not (worst := float((expected - found).abs().max())) <= tolerance:  # also true for NaN
            raise ServingError(
                f"the exported program differs from the model by {worst:g} at {rows} rows"
            )


def random_rows(fields: Sequence[FieldInfo], dense: Sequence[NumericEncoding], rows: int) -> Batch:
    """Returns random rows without labels, with 0 to 3 ids per row of a multi-valued field, and 10 %
    missing numbers.
    """
    random = np.random.default_rng(rows)
    columns = []
    for field in fields:
        counts = random.integers(0, 4, rows) if field.multiple else np.ones(rows, np.int64)
        ids = random.integers(0, field.num_embeddings, counts.sum(), np.int32)
        columns.append((ids, np.append(0, counts.cumsum()) if field.multiple else None))
    numbers = [random.normal(encoding.mean, 2 * encoding.std, rows) for encoding in dense]
    numbers = [np.where(random.random(rows) < 0.1, np.nan, x).astype(np.float32) for x in numbers]
    return unlabelled(columns, numbers)
