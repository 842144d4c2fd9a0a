"""The commands that use runs: ``evaluate``, ``compare``, ``export``, ``predict`` and ``serve``."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from adaftr_fast.cli.options import Command, OwnModel, Place, options
from adaftr_fast.files.json import dumps


@options
class Evaluate(OwnModel, Command):
    """Evaluate a trained model on one split."""

    run: Place
    """The --out folder of train."""
    data: Place | None = None
    """A prepared folder, if not the one the run was trained on."""
    split: str = "test"
    """The split: train, validation or test."""
    importance: bool = False
    """Also measure what each field is worth: the AUC that is lost if its values are those of other
    rows.
    """
    repeats: int = 5
    """With --importance: permutations of each field, for the standard error."""
    max_rows: int = 50_000
    """With --importance: the most rows to measure, drawn at random, which bounds the time."""
    seed: int = 0
    """With --importance: of the permutations and the draw."""
    memory: float | None = None
    """How many GB (2^30 bytes) the process may take, beside the model and the rows of --importance;
    all rows' predictions must fit (default: any).
    """
    out: Place | None = None
    """A folder for evaluation.md, a page with calibration, lift, gain and importance, and
    evaluation.png.
    """
    json: bool = False
    """Print JSON in place of tables."""
    progress: bool = True
    """With --importance: show a progress bar."""

    def __call__(self) -> None:
        from adaftr_fast.api.run import evaluate

        options = self.values() | {"model_class": self.named_class()}
        del options["out"], options["json"]
        found = evaluate(**options)
        files = [] if self.out is None else found.write(self.out)
        if self.json:
            print(dumps(found.numbers(), indent=2))
            return
        print(found)
        if files:
            print(f"\nPage: {', '.join(files)}")
        else:
            fields = "" if self.importance else "; fields: --importance"
            print(f"\nCalibration, lift and gain: --out FOLDER{fields}")


@options
class Compare(Command):
    """Compare runs: metrics, best epochs, speed, and the options in which they differ."""

    positional = ("runs",)
    runs: list[Place]
    """The --out folders of train."""
    out: Place | None = None
    """A folder for report.md and report.png with the curves."""

    def __call__(self) -> None:
        from adaftr_fast.api.compare import compare

        print(compare(self.runs, self.out))
        if self.out is not None:
            print(f"\nReport: {self.out}/report.md")


@options
class Export(OwnModel, Command):
    """Export a trained model as a program that scores raw rows."""

    run: Place
    """The --out folder of train."""
    out: Place
    """The folder to write."""
    data: Place | None = None
    """The prepared folder of the run, if it has moved."""
    aot: bool = False
    """Also compile a native package (AOTInductor)."""
    onnx: bool = False
    """Also write ONNX (pip install adaftr-fast[onnx])."""
    int8: bool = False
    """Round the embedding tables to int8, and show their size and the validation metrics beside
    float32's.
    """
    task: str | None = None
    """Export the network of one task alone, without what only other tasks need."""

    def __call__(self) -> None:
        from adaftr_fast.api.serve import export

        exported = export(**self.values() | {"model_class": self.named_class()})
        print(exported if self.int8 else "\n".join([exported.summary(), *exported.about.doubts]))
        print(f"adaftr-fast predict --model {self.out} --files RAW --out SCORES.parquet")
        print(f"adaftr-fast serve {self.out}")


@options
class Columns:
    """The columns of scores."""

    click: str | None = None
    """The task that is p_ctr (default: the first of two stages of the funnel of prepare, else
    click).
    """
    conversion: str | None = None
    """The conversion task (default: the second of two stages of the funnel, else conversion)."""
    bid: str | None = None
    """Add a column with the bid for an impression, from the price of a conversion: a number, or the
    column that holds it (p_c of Eq. 16).
    """
    bid_weight: float = 1.0
    """A factor of the bid (w of Eq. 16)."""
    cvr: Literal["quotient", "output"] = "quotient"
    """p_cvr: the quotient of the conversion and the click task, at most 1, or the output of the
    conversion task.
    """


@options
class Predict(Columns, Command):
    """Score raw rows, parquet, text or JSON lines, with an exported model."""

    model: Place
    """The --out folder of export."""
    files: list[str]
    """Raw rows in the formats of prepare, without labels; for Ali-CCP, pairs SKELETON COMMON."""
    out: Place
    """The parquet file to write."""
    keep: list[str] = field(default_factory=list)
    """Input columns to copy before the scores."""
    bad_rows: float = 0.0
    """Maximum share of unreadable rows in text files."""
    memory: float | None = None
    """How many GB (2^30 bytes) the process may take, beside the model and its vocabularies
    (default: 4).
    """
    progress: bool = True
    """Show a progress bar."""

    def __call__(self) -> None:
        from adaftr_fast.api.serve import predict

        print(predict(**self.values()))


@options
class Serve(Columns, Command):
    """Serve an exported model over HTTP: rows and scores as JSON."""

    positional = ("model",)
    model: Place
    """The --out folder of export; one that replaces it is served at once, but not at a URL."""
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 for all."""
    port: int = 8000
    """The port; 0 for a free one."""
    extra: Literal["error", "ignore"] = "error"
    """What to do with a column of a row that the schema does not know."""

    def __call__(self) -> None:
        from adaftr_fast.api.places import local
        from adaftr_fast.extras.server.app import serve

        options = self.values() | {"name": self.model}
        serve(local(options.pop("model")), **options)
