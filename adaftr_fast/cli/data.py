"""The commands ``prepare``, ``synthesize`` and ``info``."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

from adaftr_fast.cli.options import Command, OnEngine, Place, options
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.errors import DataError

INFERRED = (
    "The fields are inferred: --ignore, --multi, --dense, --hash and --min_count change how they "
    "are read."
)
ASK_FOR_SCHEMA = (
    "For any other change, add --write_schema FILE.toml, edit the file, and prepare with --dataset "
    "FILE.toml."
)
EXAMPLE = """\
adaftr-fast prepare --files log.csv --labels click conversion --group user --time timestamp --out data/mine
adaftr-fast train --data data/mine --out runs/mine"""


@options
class Inputs:
    """What to read and where to write."""

    files: list[str] = field(default_factory=list)
    """Files of parquet, text or JSON lines, and folders of them, as one log; not used for
    flights and synthetic.
    """
    out: Place
    """The prepared folder."""
    labels: list[str] | None = None
    """One 0/1 column per task; the fields are inferred."""
    dataset: str | None = None
    """Instead of --labels: a data set that info lists, or a schema file (.toml)."""


@options
class Roles:
    """The roles of columns, with --labels."""

    group: str | None = None
    """The column of users."""
    time: str | None = None
    """The column to split by, else users or rows."""
    weight: str | None = None
    """The column of sample weights."""
    ignore: list[str] = field(default_factory=list)
    """Columns to leave out."""
    funnel: list[str] | None = None
    """Tasks in order, each of which happens only after the one before, for the CVR AUC of each
    later one and for predict --bid; none for independent tasks (default: click conversion, if both
    are labels).
    """


@options
class ReadFields:
    """How fields are read, with --labels."""

    multi: list[str] = field(default_factory=list)
    """Text columns that hold lists, as NAME=SEPARATOR, such as 'tags=|'; NAME= reads one value.
    Others are detected, with a warning.
    """
    dense: list[str] = field(default_factory=list)
    """Numbers that are not embedded."""
    hash: list[str] = field(default_factory=list)
    """Columns whose values get their ids by a hash, as NAME=IDS, such as item=1000000."""
    min_count: int | None = None
    """How many training rows a value needs to get an id (default: 1)."""
    write_schema: Place | None = None
    """Also write the inferred schema to this file (.toml), to edit it and pass it as --dataset."""


@options
class ReadText:
    """How text is read, with --labels."""

    null: list[str] = field(default_factory=list)
    """Words that mean missing, such as NA (default: those in columns of numbers)."""
    thousands: str = ""
    """The mark of thousands, such as ',' (default: detected)."""
    decimal: str = "."
    """The mark of decimals (default: ., or a comma if detected)."""
    dates: list[str] = field(default_factory=list)
    """Forms of --time, such as %d/%m/%Y (default: detected)."""


@options
class Work:
    """How to work."""

    bad_rows: float = 0.0
    """Maximum share of rows that cannot be read."""
    grow: Place | None = None
    """A prepared folder of the same fields whose ids are kept; new values get new ids."""
    shards: int | None = None
    """Into how many shards the rows are divided (default: 1, with --engine ray one for each 512 MB
    of the files).
    """
    memory: float | None = None
    """How many GB (2^30 bytes) each process may take, beside the distinct values of the fields
    (default: 4).
    """


@options
class Prepare(Inputs, Roles, ReadFields, ReadText, Work, OnEngine, Command):
    """Convert raw logs, parquet, text or JSON lines, to a prepared folder."""

    example = EXAMPLE

    def __call__(self) -> None:
        from adaftr_fast.api.data_report import PAGE
        from adaftr_fast.api.prepare import prepare

        options = self.values()
        options["multi"] = _pairs("multi", "SEPARATOR", self.multi)
        hashed = _pairs("hash", "IDS", self.hash)
        options["hash"] = {name: _ids(name, ids) for name, ids in hashed.items()}
        prepared = prepare(**options)
        print(prepared)
        print(f"Values, label rates and drift of each field: {prepared.name}/{PAGE}")
        if self.labels:
            print(INFERRED)
            if self.write_schema is None:
                print(ASK_FOR_SCHEMA)
            else:
                print(f"Edit {self.write_schema}, and prepare with --dataset {self.write_schema}.")
        print(f"adaftr-fast train --data {self.out} --out RUN")


def _pairs(option: str, what: str, pairs: list[str]) -> dict[str, str]:
    """Returns the values of an option by column."""
    values = {}
    for pair in pairs:
        name, equals, values[name] = pair.partition("=")
        if not equals:
            raise DataError(f"--{option}: expected NAME={what}, got {pair!r}")
    return values


def _ids(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"--hash: expected NAME=IDS with a number of ids, got '{name}={text}'"
        ) from None


@options
class Synthesize(LogConfig, Command):
    """Generate a synthetic impression log with known true probabilities."""

    raw: bool = False
    """Write text in Ali-CCP's raw format instead of parquet."""
    out: Place
    """Folder for the log and its schema."""

    def __call__(self) -> None:
        from adaftr_fast.api.places import output_folder
        from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log, write_raw

        config = LogConfig(**{each.name: getattr(self, each.name) for each in fields(LogConfig)})
        with output_folder(self.out) as out:
            if self.raw:
                dataset = "aliccp"
                names = [file.name for file in write_raw(config, out, progress=True)]
            else:
                write_log(config, out, progress=True)
                dataset = f"{self.out}/{SCHEMA}"
                names = [LOG]
        paths = " ".join(f"{self.out}/{name}" for name in names)
        print(f"adaftr-fast prepare --dataset {dataset} --files {paths} --out PREPARED")


@options
class Info(Command):
    """Show the build, the instruction sets in use and the available data sets."""

    def __call__(self) -> None:
        from adaftr_fast._extension import build_info
        from adaftr_fast.data.schema.parse import shipped_schemas

        info: dict[str, Any] = build_info() | {"data sets": ", ".join(shipped_schemas())}
        width = max(map(len, info))
        for name, value in info.items():
            print(f"{name:<{width}}  {value}")
