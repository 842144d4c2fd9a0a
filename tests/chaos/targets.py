"""What reads each kind of file.

A target writes a damaged file into an empty folder and reads it by the public functions. It
returns, or raises an error that the command line shows as one line; anything else is a failure.
"""

import gzip
import hashlib
import io
import json
import tempfile
import tomllib
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.api import prepare as api_prepare
from adaftr_fast.api.run import load_run
from adaftr_fast.cli import main
from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.manifest import MANIFEST, read_manifest
from adaftr_fast.data.dataset.vocabulary import VOCABULARY, read_encoders
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.raw.rows import raw_files
from adaftr_fast.data.raw.staging import blocks
from adaftr_fast.data.raw.text import count_lines
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.errors import DataError
from adaftr_fast.experiments.jobs import Job, finished
from adaftr_fast.runs import daily
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.serving.columns import output_columns
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.programs import Probabilities
from adaftr_fast.serving.scorer import VERSION, About, Scorer, load_scorer, read_about
from adaftr_fast.streaming.messages import RowReader
from adaftr_fast.training.checkpoint.snapshots import load_snapshot
from tests.chaos import corpus
from tests.chaos.mutations import damaged, damaged_json, damaged_table, damaged_toml
from tests.data.manifests import recorded

KEEP = ("time", "user")
DIGEST = hashlib.sha256(b"").hexdigest()  # stands for that of a file in the seeds and the cases
WEIGHTS = f"weights-{DIGEST[:16]}.safetensors"


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        read: reads the damaged content in a folder.
        seeds: returns whole files.
        damage: damages one of them.
        weight: how often the target is drawn; less for slow ones.
    """

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    damage: Callable = damaged
    weight: float = 1.0


@cache
def log_schema():
    return parse_schema(tomllib.loads(corpus.SCHEMA.decode()))


def check_account(bad_rows: BadRows, lines: int, kept: int) -> None:
    """Raises AssertionError unless each line is a row that was kept, a bad row or blank."""
    found = kept, bad_rows.bad, bad_rows.blank
    assert bad_rows.lines == lines == sum(found), (
        f"{lines} lines, counted {bad_rows.lines}, kept, bad and blank {found}"
    )
    assert bad_rows.bad == sum(bad_rows.reasons.values())


def rows_of(content: bytes, folder: Path, name: str) -> None:
    """Reads rows for scoring."""
    path = folder / name
    path.write_bytes(content)
    (file,) = raw_files(log_schema(), [path], KEEP)
    bad_rows, kept = BadRows(), 0
    for chunk in file.chunks():
        table, of_chunk = chunk.parse()
        table.validate(full=True)
        bad_rows, kept = bad_rows + of_chunk, kept + table.num_rows
    if not name.endswith(".parquet"):
        text = b"".join(blocks(path))
        if kept or bad_rows.rows:
            check_account(bad_rows, count_lines(text.partition(b"\n")[2]), kept)


def compressed(content: bytes, folder: Path) -> None:
    rows_of(gzip.compress(content, 1), folder, "log.csv.gz")


def prepared(content: bytes, folder: Path, name: str) -> None:
    """Prepares a folder with the schema of the log, and reads it."""
    path = folder / name
    path.write_bytes(content)
    manifest = prepare(log_schema(), [path], folder / "data", bad_rows=0.9)
    if manifest.bad_rows:
        rows = sum(split.rows for split in manifest.splits.values()) + manifest.unused.unmatched
        check_account(manifest.bad_rows, count_lines(content.partition(b"\n")[2]), rows)
    read_all(folder / "data")


def inferred(content: bytes, folder: Path, name: str) -> None:
    """Prepares a folder with a schema that is inferred from the file."""
    path = folder / name
    path.write_bytes(content)
    options = {"labels": ["click", "buy"], "group": "user", "ignore": ["tags"], "bad_rows": 0.9, "progress": False}
    time = "time" if len(content) % 2 else None
    api_prepare.prepare(path, folder / "data", time=time, **options)
    read_all(folder / "data")


def read_all(folder: Path) -> None:
    """Reads every part of a prepared folder."""
    data = api_prepare.Prepared(folder)
    repr(data)
    for split in data.manifest.splits:
        rows = sum(len(batch) for batch in data.load(split).batches(32))
        assert rows == data.manifest.splits[split].rows
    read_encoders(folder, data.manifest)


def messages(content: bytes, folder: Path) -> None:
    """Prepares the messages that are rows as a chunk, which no other message may spoil."""
    schema = daily.part_schema(log_schema())
    rows, _ = RowReader(schema).read(content.split(b"\n"))
    pq.write_table(rows, folder / "chunk.parquet")
    try:
        prepare(schema, [folder / "chunk.parquet"], folder / "data")
    except DataError as error:
        if len(rows) > 0.8 * corpus.ROWS:
            raise AssertionError(f"a message has spoiled its chunk: {error}") from error
        raise
    read_all(folder / "data")


def part_of_prepared(content: bytes, folder: Path, name: str) -> None:
    """Reads a prepared folder of which one file is damaged, which must not pass unnoticed."""
    for other, whole in corpus.prepared().items():
        (folder / other).write_bytes(content if other == name else whole)
    read_all(folder)
    assert content == corpus.prepared()[name], f"{name}: damaged unnoticed"


def recorded_part(content: bytes, folder: Path, name: str) -> None:
    """Reads a prepared folder of which one file is damaged but has the recorded checksum."""
    write_recorded(corpus.prepared() | {name: content}, folder)
    read_all(folder)


def write_recorded(files: dict[str, bytes], folder: Path) -> None:
    """Writes a prepared folder whose manifest records the checksums of all files, if it is JSON."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with suppress(ValueError, TypeError, RecursionError):
        recorded(folder)


def grown(content: bytes, folder: Path) -> None:
    """Prepares the log with the ids of a folder whose manifest is damaged."""
    (folder / "known").mkdir()
    write_recorded(corpus.prepared() | {"schema.json": content}, folder / "known")
    (folder / "log.csv").write_bytes(corpus.log())
    prepare(log_schema(), [folder / "log.csv"], folder / "data", grow=folder / "known")


def schema(content: bytes, folder: Path) -> None:
    """Parses a schema, and prepares the log with it."""
    (folder / "mine.toml").write_bytes(content)
    parsed = load_schema(str(folder / "mine.toml"))
    (folder / "log.csv").write_bytes(corpus.log())
    if parsed.format is None and len(parsed.files) == 1:
        prepare(parsed, [folder / "log.csv"], folder / "data", bad_rows=0.9)
        read_all(folder / "data")


def config(content: bytes, folder: Path) -> None:
    (folder / "mine.toml").write_bytes(content)
    RunConfig.from_toml(folder / "mine.toml").identity()


def command(content: bytes, folder: Path) -> None:
    """Passes a configuration to the command line, whose prepared folder does not exist."""
    (folder / "mine.toml").write_bytes(content)
    said = io.StringIO()
    arguments = [
        "train",
        "--config",
        str(folder / "mine.toml"),
        "--data.folder",
        str(folder / "none"),
        "--out",
        str(folder),
    ]
    try:
        with redirect_stderr(said), redirect_stdout(said):
            status = main(arguments)
    except SystemExit as end:
        status = end.code
    lines = said.getvalue().splitlines()
    assert status == 2, f"status {status}"
    assert len(lines) == 1, f"{len(lines)} lines"


def checkpoint(content: bytes, folder: Path) -> None:
    """Loads a model whose description is damaged."""
    best = folder / "best"
    best.mkdir()
    (best / WEIGHTS).write_bytes(model_weights())
    digest = hashlib.sha256(model_weights()).hexdigest()
    (best / "checkpoint.json").write_bytes(content.replace(DIGEST.encode(), digest.encode()))
    load_trained(folder)


def weights(content: bytes, folder: Path) -> None:
    """Loads a model whose weights are damaged but have the recorded checksum."""
    best, digest = folder / "best", hashlib.sha256(content).hexdigest()
    best.mkdir()
    (best / WEIGHTS).write_bytes(content)
    (best / "checkpoint.json").write_bytes(description().replace(DIGEST.encode(), digest.encode()))
    load_trained(folder)


def snapshot(content: bytes, folder: Path) -> None:
    """Loads a snapshot that is damaged but has the recorded checksum."""
    (folder / f"{7:012d}-{zlib.crc32(content):08x}.safetensors").write_bytes(content)
    found = load_snapshot(folder)
    if found is not None:
        dict(found[0])


def run(content: bytes, folder: Path, name: str) -> None:
    """Reads a run of which one file is damaged."""
    (folder / "best").mkdir()
    for other, whole in (corpus.run() | {name: content}).items():
        (folder / other).write_bytes(whole)
    repr(load_run(folder))


def result(content: bytes, folder: Path) -> None:
    (folder / "result.json").write_bytes(content)
    finished(Job("k", folder, RunConfig()))


def results() -> list[bytes]:
    metrics = {"click": {"auc": 0.5, "logloss": 0.6}}
    numbers = {"seconds": 1.0, "epochs": 2, "best_epoch": 1, "learned": {"tau": {"5": 0.1}}, "dead_tasks": []}
    return [json.dumps({"key": "k", "validation": metrics, "test": metrics, "error": None} | numbers).encode()]


def days(content: bytes, folder: Path) -> None:
    (folder / "daily.jsonl").write_bytes(content)
    daily._check(folder, daily.Journal(folder / "daily.jsonl").records, [Path("day1.csv.gz"), Path("day2.csv.gz")])


def serving(content: bytes, folder: Path) -> None:
    """Reads the description of an exported model, whose program is missing."""
    for name in (MANIFEST, VOCABULARY):
        (folder / name).write_bytes(corpus.prepared()[name])
    (folder / "serving.json").write_bytes(content)
    read_about(folder)
    load_scorer(folder)


def exports() -> list[bytes]:
    about = json.loads(description())
    digests = {name: hashlib.sha256(corpus.prepared()[name]).hexdigest() for name in (MANIFEST, VOCABULARY)}
    named = {name: about[name] for name in ("fingerprint", "tasks", "metrics")}
    return [json.dumps(named | {"version": VERSION, "sha256": digests | {"model.pt2": DIGEST}}).encode()]


@cache
def scorer() -> Scorer:
    """Returns the scorer of an export, with the model in place of its program."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for other, whole in corpus.prepared().items():
            (folder / other).write_bytes(whole)
        manifest = read_manifest(folder)
        encoders = read_encoders(folder, manifest)
        (folder / "best").mkdir()
        for other, whole in corpus.run().items():
            (folder / other).write_bytes(whole)
        program = Probabilities(load_trained(folder).model)
    return Scorer(About(**json.loads(exports()[0])), manifest, log_schema(), encoders, program)


def scored(content: bytes, folder: Path, name: str) -> None:
    """Scores a file."""
    path, out = folder / name, folder / "scores.parquet"
    path.write_bytes(content)
    columns = output_columns(scorer().about.tasks, bid="price")
    report = predict(scorer(), [path], out, columns, keep=KEEP, bad_rows=0.9)
    assert ds.dataset(out).count_rows() == report.rows
    if report.bad_rows.lines:
        check_account(report.bad_rows, count_lines(content.partition(b"\n")[2]), report.rows)


def aliccp(content: bytes, folder: Path, which: int) -> None:
    """Reads Ali-CCP's raw files, of which one is damaged."""
    paths = [folder / "skeleton.csv", folder / "common.csv"]
    for number, (path, whole) in enumerate(zip(paths, corpus.aliccp())):
        path.write_bytes(content if number == which else whole)
    (file,) = raw_files(load_schema("aliccp"), paths, ["sample_id"])
    bad_rows, kept = BadRows(), 0
    for chunk in file.chunks():
        table, of_chunk = chunk.parse()
        bad_rows, kept = bad_rows + of_chunk, kept + table.num_rows
    if kept or bad_rows.rows:
        check_account(bad_rows, count_lines(paths[0].read_bytes()), kept)


def whole(name: str) -> Callable[[], list[bytes]]:
    return lambda: [corpus.prepared()[name]]


def of_run(name: str) -> Callable[[], list[bytes]]:
    return lambda: [corpus.run()[name]]


@cache
def model_weights() -> bytes:
    return next(content for name, content in corpus.run().items() if name.endswith(".safetensors"))


@cache
def description() -> bytes:
    """Returns the description of a checkpoint, with the name and the checksum that stand for those of its weights."""
    content = json.loads(corpus.run()["best/checkpoint.json"])
    return json.dumps(content | {"weights": WEIGHTS, "sha256": DIGEST}).encode()


TARGETS = {
    "text": Target(partial(rows_of, name="log.csv"), corpus.tables, damaged_table, 6),
    "compressed": Target(compressed, corpus.tables, damaged_table, 2),
    "gzip": Target(
        partial(rows_of, name="log.csv.gz"), lambda: [gzip.compress(each) for each in corpus.tables()], damaged, 2
    ),
    "prepare text": Target(partial(prepared, name="log.csv"), corpus.tables, damaged_table, 1),
    "messages": Target(messages, lambda: [corpus.messages()], damaged_json, 2),
    "infer text": Target(partial(inferred, name="log.csv"), corpus.tables, damaged_table, 0.3),
    "parquet": Target(partial(rows_of, name="log.parquet"), corpus.parquets, damaged, 5),
    "prepare parquet": Target(partial(prepared, name="log.parquet"), corpus.parquets, damaged, 2),
    "infer parquet": Target(partial(inferred, name="log.parquet"), corpus.parquets, damaged),
    "schema": Target(schema, corpus.schemas, damaged_toml, 4),
    "config": Target(config, lambda: corpus.CONFIGS, damaged_toml, 4),
    "command": Target(command, lambda: corpus.CONFIGS, damaged_toml, 0.1),
    "manifest": Target(partial(recorded_part, name=MANIFEST), whole(MANIFEST), damaged_json, 5),
    "grow": Target(grown, whole(MANIFEST), damaged_json, 1),
    "vocabulary": Target(partial(recorded_part, name=VOCABULARY), whole(VOCABULARY), damaged, 4),
    "split": Target(partial(recorded_part, name="train.parquet"), whole("train.parquet"), damaged, 5),
    "checked manifest": Target(partial(part_of_prepared, name=MANIFEST), whole(MANIFEST)),
    "checked vocabulary": Target(partial(part_of_prepared, name=VOCABULARY), whole(VOCABULARY)),
    "checked split": Target(partial(part_of_prepared, name="train.parquet"), whole("train.parquet")),
    "checkpoint": Target(checkpoint, lambda: [description()], damaged_json, 5),
    "weights": Target(weights, lambda: [model_weights()], damaged, 4),
    "snapshot": Target(snapshot, lambda: [corpus.snapshot()], damaged, 2),
    "metrics": Target(partial(run, name="metrics.jsonl"), of_run("metrics.jsonl"), damaged_json, 2),
    "test": Target(partial(run, name="test.json"), of_run("test.json"), damaged_json, 2),
    "result": Target(result, results, damaged_json, 3),
    "daily": Target(days, lambda: [b"\n".join(json.dumps(day).encode() for day in corpus.DAYS)], damaged_json, 3),
    "serving": Target(serving, exports, damaged_json, 3),
    "score text": Target(partial(scored, name="log.csv"), corpus.tables, damaged_table, 2),
    "score parquet": Target(partial(scored, name="log.parquet"), corpus.parquets, damaged, 0.7),
    "skeleton": Target(partial(aliccp, which=0), lambda: [corpus.aliccp()[0]], damaged_table, 2),
    "common": Target(partial(aliccp, which=1), lambda: [corpus.aliccp()[1]], damaged_table, 2),
}
"""By name. The name is in the files of cases."""
