"""What reads each kind of file.

A target reads a damaged file, which stands alone in its folder, by the public functions. It
returns, or raises an error that the command line shows as one line; anything else is a failure.
"""

import gzip
import hashlib
import io
import json
import re
import tempfile
import tomllib
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.api import prepare as api_prepare
from adaftr_fast.api.run import load_run
from adaftr_fast.cli import main
from adaftr_fast.config import RunConfig
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.dataset.manifest import MANIFEST, read_manifest, signed
from adaftr_fast.data.encode.vocabulary import VOCABULARY, read_encoders
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.rows import raw_files
from adaftr_fast.data.raw.staging import blocks
from adaftr_fast.data.raw.text import count_lines
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.errors import DataError
from adaftr_fast.extras.streaming.messages import RowReader
from adaftr_fast.runs import daily
from adaftr_fast.serving.columns import output_columns
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.programs import Probabilities
from adaftr_fast.serving.scorer import ABOUT, VERSION, About, Scorer, load_scorer, read_about
from adaftr_fast.training.checkpoint.snapshots import load_snapshot
from adaftr_fast.training.trained import load_trained
from tests.chaos import corpus
from tests.chaos.mutations import damaged, damaged_json, damaged_table, damaged_toml
from tests.data.manifests import recorded

KEEP = ("time", "user")
QUOTED = re.compile(rb'(?:^|[,;|\t\n])"((?:[^"]|"")*)"')  # what is within the quotes of a value
DIGEST = hashlib.sha256(b"").hexdigest()  # stands for that of a file in the seeds and the cases
WEIGHTS = f"weights-{DIGEST[:16]}.safetensors"


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        file: the name of the damaged file.
        read: reads it.
        seeds: returns whole files.
        damage: damages one of them.
        weight: how often the target is drawn; less for slow ones.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    damage: Callable = damaged
    weight: float = 1.0


@cache
def log_schema():
    return parse_schema(tomllib.loads(corpus.SCHEMA.decode()))


@cache
def lists_schema():
    """Returns the schema of the log, whose tags may be lists."""
    source = tomllib.loads(corpus.SCHEMA.decode())
    for field in ("tags", "last_tag"):
        del source["fields"][field]["separator"]
    return parse_schema(source)


def check_account(bad_rows, text, kept):
    """Raises AssertionError unless each line of a text is a row that was kept, a bad row or blank;
    a row whose values in quotes hold line ends is one line.
    """
    found = (kept, bad_rows.bad, bad_rows.blank)
    lines = count_lines(text)
    # a quote within a value is a part of it, or damage that pairs quotes otherwise
    quoted = (QUOTED.findall(text), text.split(b'"')[1::2])
    joined = max(sum(part.count(b"\n") for part in parts) for parts in quoted)
    lines = max(lines - joined, min(lines, bad_rows.lines))
    assert bad_rows.lines == lines == sum(found), (
        f"{lines} lines, counted {bad_rows.lines}, kept, bad and blank {found}"
    )
    assert bad_rows.bad == sum(bad_rows.reasons.values())


def counted(schema, path):
    """Reads rows for scoring; returns the account of bad ones, and how many are kept."""
    (file,) = raw_files(schema, [path], KEEP)
    bad_rows = BadRows()
    kept = 0
    for chunk in file.chunks():
        table, _, of_chunk = chunk.parse()
        table.validate(full=True)
        bad_rows = bad_rows + of_chunk
        kept = kept + table.num_rows
    return bad_rows, kept


def rows_of(path):
    """Reads rows for scoring."""
    bad_rows, kept = counted(log_schema(), path)
    if path.suffix != ".parquet":
        text = b"".join(blocks(path))
        if kept or bad_rows.rows:
            check_account(bad_rows, text.partition(b"\n")[2], kept)


def json_rows_of(path):
    """Reads rows of JSON lines for scoring; a line is a row, or bad, or blank."""
    bad_rows, kept = counted(lists_schema(), path)
    if kept or bad_rows.rows:
        check_account(bad_rows, b"".join(blocks(path)).replace(b'"', b"'"), kept)


def prepared_json(path):
    """Prepares a folder from JSON lines, and reads it."""
    manifest = prepare(lists_schema(), [path], path.parent / "data", bad_rows=0.9)
    rows = sum(split.rows for split in manifest.splits.values()) + manifest.unused.unmatched
    check_account(manifest.bad_rows, path.read_bytes().replace(b'"', b"'"), rows)
    read_all(path.parent / "data")


def compressed(path):
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    rows_of(path)


def prepared(path):
    """Prepares a folder with the schema of the log, and reads it."""
    manifest = prepare(log_schema(), [path], path.parent / "data", bad_rows=0.9)
    if manifest.bad_rows and manifest.bad_rows.lines is not None:  # of text
        rows = sum(split.rows for split in manifest.splits.values()) + manifest.unused.unmatched
        check_account(manifest.bad_rows, path.read_bytes().partition(b"\n")[2], rows)
    read_all(path.parent / "data")


def inferred(path):
    """Prepares a folder with a schema that is inferred from the file."""
    options = {
        "labels": ["click", "buy"],
        "group": "user",
        "ignore": ["tags"],
        "bad_rows": 0.9,
        "progress": False,
    }
    time = "time" if path.stat().st_size % 2 else None
    api_prepare.prepare(path, path.parent / "data", time=time, **options)
    read_all(path.parent / "data")


def read_all(folder):
    """Reads every part of a prepared folder."""
    data = api_prepare.Prepared(folder)
    repr(data)
    for split in data.manifest.splits:
        rows = sum(len(batch) for batch in data.load(split).batches(32))
        assert rows == data.manifest.splits[split].rows
    read_encoders(folder, data.manifest)


def messages(path):
    """Prepares the messages that are rows as a chunk, which no other message may spoil."""
    schema = daily.part_schema(log_schema())
    rows, _ = RowReader(schema).read(path.read_bytes().split(b"\n"))
    chunk = path.with_name("chunk.parquet")
    data = path.with_name("data")
    pq.write_table(rows, chunk)
    try:
        prepare(schema, [chunk], data)
    except DataError as error:
        if len(rows) > 0.8 * corpus.ROWS:
            raise AssertionError(f"a message has spoiled its chunk: {error}") from error
        raise
    read_all(data)


def complete(path, files):
    """Writes the whole files beside a damaged one; returns the folder."""
    for name, whole in files.items():
        if name != path.name:
            (path.parent / name).parent.mkdir(exist_ok=True)
            (path.parent / name).write_bytes(whole)
    return path.parent


def part_of_prepared(path):
    """Reads a prepared folder of which one file is damaged, which must not pass unnoticed."""
    read_all(complete(path, corpus.prepared()))
    assert path.read_bytes() == corpus.prepared()[path.name], f"{path.name}: damaged unnoticed"


def recorded_part(path):
    """Reads a prepared folder of which one file is damaged but has the recorded checksum, if its
    manifest is JSON.
    """
    folder = complete(path, corpus.prepared())
    with suppress(ValueError, TypeError, RecursionError):
        recorded(folder)
    read_all(folder)


def grown(path):
    """Prepares the log with the ids of a folder whose manifest is damaged but records the checksums
    of all files.
    """
    known = complete(path, corpus.prepared())
    with suppress(ValueError, TypeError, RecursionError):
        recorded(known)
    prepare(log_schema(), [log_beside(path)], known / "data", grow=known)


def log_beside(path):
    log = path.with_name("log.csv")
    log.write_bytes(corpus.log())
    return log


def schema(path):
    """Parses a schema, and prepares the log with it."""
    parsed = load_schema(str(path))
    if parsed.format is None and len(parsed.files) == 1:
        prepare(parsed, [log_beside(path)], path.parent / "data", bad_rows=0.9)
        read_all(path.parent / "data")


def config(path):
    RunConfig.from_toml(path).identity()


def command(path):
    """Passes a configuration to the command line, whose prepared folder does not exist."""
    said = io.StringIO()
    folder = str(path.parent)
    arguments = ["train", "--config", str(path), "--data.folder", f"{folder}/none", "--out", folder]
    try:
        with redirect_stderr(said), redirect_stdout(said):
            status = main(arguments)
    except SystemExit as end:
        status = end.code
    lines = said.getvalue().splitlines()
    assert status == 2, f"status {status}"
    assert len(lines) == 1, f"{len(lines)} lines"


def trained_beside(path, weights, about):
    """Loads a model from the folder ``best`` beside a file; the description has the checksum of the
    weights.
    """
    best = path.with_name("best")
    best.mkdir()
    (best / WEIGHTS).write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    (best / "checkpoint.json").write_bytes(about.replace(DIGEST.encode(), digest.encode()))
    load_trained(path.parent)


def snapshot(path):
    """Loads a snapshot that is damaged but has the recorded checksum."""
    path.rename(path.with_name(f"{7:012d}-{zlib.crc32(path.read_bytes()):08x}.safetensors"))
    found = load_snapshot(path.parent)
    if found is not None:
        dict(found[0])


def run(path):
    """Reads a run of which one file is damaged."""
    repr(load_run(complete(path, corpus.run())))


def days(path):
    daily._check(
        path.parent, daily.Journal(path).records, [Path("day1.csv.gz"), Path("day2.csv.gz")]
    )


def serving(path):
    """Reads the description of an exported model, whose program is missing."""
    for name in (MANIFEST, VOCABULARY):
        path.with_name(name).write_bytes(corpus.prepared()[name])
    read_about(path.parent)
    load_scorer(path.parent)


def exports():
    about = json.loads(description())
    digests = {
        name: hashlib.sha256(corpus.prepared()[name]).hexdigest() for name in (MANIFEST, VOCABULARY)
    }
    named = {name: about[name] for name in ("fingerprint", "tasks", "metrics")}
    described = named | {"version": VERSION, "sha256": digests | {"model.pt2": DIGEST}}
    return [signed(described, ABOUT).encode()]


@cache
def scorer():
    """Returns the scorer of an export, with the model in place of its program."""
    with tempfile.TemporaryDirectory() as name:
        folder = complete(Path(name) / "none", corpus.prepared() | corpus.run())
        manifest = read_manifest(folder)
        encoders = read_encoders(folder, manifest)
        program = Probabilities(load_trained(folder).model)
    about = About(**json.loads(exports()[0]))
    return Scorer(
        about, manifest, log_schema(), encoders, program, output_columns(about.tasks, bid="price")
    )


def scored(path):
    """Scores a file."""
    out = path.with_name("scores.parquet")
    report = predict(scorer(), [path], out, keep=KEEP, bad_rows=0.9)
    assert ds.dataset(out).count_rows() == report.rows
    if report.bad_rows.lines:
        check_account(report.bad_rows, path.read_bytes().partition(b"\n")[2], report.rows)


def aliccp(path):
    """Reads Ali-CCP's raw files, of which one is damaged."""
    paths = [path.with_name("skeleton.csv"), path.with_name("common.csv")]
    complete(path, dict(zip((each.name for each in paths), corpus.aliccp())))
    (file,) = raw_files(load_schema("aliccp"), paths, ["sample_id"])
    bad_rows = BadRows()
    kept = 0
    for chunk in file.chunks():
        table, _, of_chunk = chunk.parse()
        bad_rows = bad_rows + of_chunk
        kept = kept + table.num_rows
    if kept or bad_rows.rows:
        check_account(bad_rows, paths[0].read_bytes(), kept)


def whole(name):
    return lambda: [corpus.prepared()[name]]


def of_run(name):
    return lambda: [corpus.run()[name]]


@cache
def model_weights():
    return next(content for name, content in corpus.run().items() if name.endswith(".safetensors"))


@cache
def description():
    """Returns the description of a checkpoint, with the name and the checksum that stand for those
    of its weights.
    """
    content = json.loads(corpus.run()["best/checkpoint.json"])
    return json.dumps(content | {"weights": WEIGHTS, "sha256": DIGEST}).encode()


def gzipped():
    return [gzip.compress(each) for each in corpus.tables()]


CSV = "log.csv"
JSON = "log.jsonl"
TRAIN = "train.parquet"
TOML = "mine.toml"
TARGETS = {
    "text": Target(CSV, rows_of, corpus.tables, damaged_table, 6),
    "compressed": Target("log.csv.gz", compressed, corpus.tables, damaged_table, 2),
    "gzip": Target("log.csv.gz", rows_of, gzipped, damaged, 2),
    "prepare text": Target(CSV, prepared, corpus.tables, damaged_table, 1),
    "messages": Target("messages", messages, lambda: [corpus.messages()], damaged_json, 2),
    "json lines": Target(JSON, json_rows_of, corpus.json_lines, damaged_json, 4),
    "prepare json lines": Target(JSON, prepared_json, corpus.json_lines, damaged_json, 1),
    "infer json lines": Target(JSON, inferred, corpus.json_lines, damaged_json, 0.3),
    "infer text": Target(CSV, inferred, corpus.tables, damaged_table, 0.3),
    "parquet": Target("log.parquet", rows_of, corpus.parquets, damaged, 5),
    "prepare parquet": Target("log.parquet", prepared, corpus.parquets, damaged, 2),
    "infer parquet": Target("log.parquet", inferred, corpus.parquets, damaged),
    "schema": Target(TOML, schema, corpus.schemas, damaged_toml, 4),
    "config": Target(TOML, config, lambda: corpus.CONFIGS, damaged_toml, 4),
    "command": Target(TOML, command, lambda: corpus.CONFIGS, damaged_toml, 0.1),
    "manifest": Target(MANIFEST, recorded_part, whole(MANIFEST), damaged_json, 5),
    "grow": Target(MANIFEST, grown, whole(MANIFEST), damaged_json, 1),
    "vocabulary": Target(VOCABULARY, recorded_part, whole(VOCABULARY), damaged, 4),
    "split": Target(TRAIN, recorded_part, whole(TRAIN), damaged, 5),
    "checked manifest": Target(MANIFEST, part_of_prepared, whole(MANIFEST)),
    "checked vocabulary": Target(VOCABULARY, part_of_prepared, whole(VOCABULARY)),
    "checked split": Target(TRAIN, part_of_prepared, whole(TRAIN)),
    "checkpoint": Target(
        "about",
        lambda path: trained_beside(path, model_weights(), path.read_bytes()),
        lambda: [description()],
        damaged_json,
        5,
    ),
    "weights": Target(
        "weights",
        lambda path: trained_beside(path, path.read_bytes(), description()),
        lambda: [model_weights()],
        damaged,
        4,
    ),
    "snapshot": Target("snapshot", snapshot, lambda: [corpus.snapshot()], damaged, 2),
    "metrics": Target("metrics.jsonl", run, of_run("metrics.jsonl"), damaged_json, 2),
    "test": Target("test.json", run, of_run("test.json"), damaged_json, 2),
    "daily": Target(
        "daily.jsonl",
        days,
        lambda: [b"\n".join(json.dumps(day).encode() for day in corpus.DAYS)],
        damaged_json,
        3,
    ),
    "serving": Target("serving.json", serving, exports, damaged_json, 3),
    "score text": Target(CSV, scored, corpus.tables, damaged_table, 2),
    "score parquet": Target("log.parquet", scored, corpus.parquets, damaged, 0.7),
    "skeleton": Target("skeleton.csv", aliccp, lambda: [corpus.aliccp()[0]], damaged_table, 2),
    "common": Target("common.csv", aliccp, lambda: [corpus.aliccp()[1]], damaged_table, 2),
}
"""By name. The name is in the files of cases."""
