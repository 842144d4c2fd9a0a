"""Generates the tables of figures in the documents from benchmarks/results/*.json.

    python -m benchmarks.tables            rewrites them
    python -m benchmarks.tables --check    changes nothing, exits with 1 and names each file and table that differ

A document says where a table stands and what it shows: everything between ``<!-- table: NAME
RESULTS -->`` and ``<!-- /table -->`` is generated, by the function NAME of benchmarks/render.py, of
the tables.py of benchmarks/paper, benchmarks/contrast and benchmarks/evidence or, once there are
figures of a GPU, of benchmarks/gpu/render.py, from benchmarks/results/RESULTS.json or from several
files, FIRST+SECOND. The line below a table names the machine or compiler, date and commit of its
figures and repeats the "stale" text of the results file.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, render
from benchmarks.contrast.evidence import evidence
from benchmarks.contrast.tables import TABLES as CONTRAST
from benchmarks.evidence.gradients import gradients
from benchmarks.evidence.tables import TABLES as EVIDENCE
from benchmarks.gpu.render import TABLES as GPU_TABLES
from benchmarks.paper.tables import TABLES as PAPER

ROOT = Path(__file__).parents[1]
TABLES = render.TABLES | PAPER | CONTRAST | {"contrast_evidence": evidence}
TABLES |= EVIDENCE | {"evidence_gradients": gradients}
TABLES |= GPU_TABLES if any(RESULTS.glob("gpu-*.json")) else {}
BLOCK = re.compile(
    r"<!-- table: (\S+) (\S+) -->\n((?:(?!<!-- /?table).)*)<!-- /table -->", re.DOTALL
)
MARKER = re.compile(r"^.*<!--\s*(?:table:|/table).*$", re.MULTILINE)


class TableError(Exception):
    """A document or a results file from which no table can be made; the message names it."""


def documents(root: Path = ROOT) -> dict[str, str]:
    """Returns the texts of the documents that may hold generated tables, by path below ``root``.
    The first two must.
    """
    paths = [
        "README.md",
        "benchmarks/README.md",
        *(str(p.relative_to(root)) for p in sorted(root.glob("docs/**/*.md"))),
    ]
    return {path: (root / path).read_text(encoding="utf-8") for path in paths}


def caption(record: dict[str, Any]) -> str:
    """Returns one line that names machine, date and commit of a results file, and why its figures
    are stale.

    The figures of compiled kernels depend on the compiler instead, and their files name that.
    """
    if "compiler" in record:
        tools = {"triton": "Triton"}
        by = " with ".join(
            f"{tools.get(name, name)} {version}" for name, version in record["compiler"].items()
        )
        verb = "compiled"
    else:
        by = _machine(record["machine"])
        verb = "measured"
    stale = f" **Stale: {record['stale']}.**" if record.get("stale") else ""
    return f"{by}; {verb} {record['date']}, {record['commit']}.{stale}"


def _machine(on: dict[str, Any]) -> str:
    threads = "1 thread" if on["threads"] == 1 else f"{on['threads']} threads"
    kind = on["in use"].upper().replace("_", "-")
    machine = f"{on['cpu']}, {kind}, {on['cores']} cores, torch {on['torch']} on {threads}"
    return f"{on['gpu']} beside {machine}" if "gpu" in on else machine


def block(name: str, results: str, folder: Path = RESULTS) -> str:
    """Returns everything between the markers of table ``name`` of the file ``results``, or of
    several joined by "+".

    Raises:
        TableError: there is no such table or file, or a file lacks what the table or its caption
            shows.
    """
    if name not in TABLES:
        raise TableError(
            f"no table {name!r} in benchmarks/render.py; there are {', '.join(TABLES)}"
        )
    paths = [folder / f"{each}.json" for each in results.split("+")]
    for path in paths:
        if not path.exists():
            raise TableError(f"table {name}: no results file {path}")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    try:
        cases = [
            case | {"cpu": record["machine"]["cpu"]} if "machine" in record else case
            for record in records
            for case in record["cases"]
        ]
        return f"\n{TABLES[name](cases)}\n\n{' '.join(map(caption, records))}\n\n"
    except KeyError as error:
        raise TableError(f"table {name}: {' or '.join(map(str, paths))} has no {error}") from error


def blocks(text: str, document: str) -> Iterator[re.Match[str]]:
    """Yields the generated parts of a document: name, results file, content.

    Raises:
        TableError: a marker is malformed or lacks its other half.
    """
    found = list(BLOCK.finditer(text))
    paired = {
        offset
        for match in found
        for offset in (match.start(), match.end() - len("<!-- /table -->"))
    }
    for marker in MARKER.finditer(text):
        if marker.start() not in paired:
            line = text.count("\n", 0, marker.start()) + 1
            raise TableError(
                f"{document}:{line}: expected pairs of lines <!-- table: NAME RESULTS --> and <!-- "
                "/table -->, "
                f"got {marker[0]!r} alone"
            )
    yield from found


def update(text: str, document: str, folder: Path = RESULTS) -> tuple[str, list[str]]:
    """Returns the document with its tables generated anew, and the names of those that were
    different.
    """
    different = []
    for match in reversed(list(blocks(text, document))):
        name, results, content = match.groups()
        try:
            made = block(name, results, folder)
        except TableError as error:
            raise TableError(f"{document}: {error}") from error
        if made != content:
            different.insert(0, f"{name} {results}")
            text = text[: match.start(3)] + made + text[match.end(3) :]
    return text, different


def unshown(texts: dict[str, str], folder: Path = RESULTS) -> list[str]:
    """Names tables and results that no marker mentions, and documents that must have a table and
    have none.
    """
    found = {
        document: [match.groups()[:2] for match in blocks(text, document)]
        for document, text in texts.items()
    }
    names, shown = ({pair[i] for pairs in found.values() for pair in pairs} for i in (0, 1))
    results = {each for files in shown for each in files.split("+")}
    lost = [
        f"{document} has no generated table" for document in list(texts)[:2] if not found[document]
    ]
    lost += [f"table {name} stands in no document" for name in TABLES if name not in names]
    for path in sorted(folder.glob("*.json")):
        if path.stem not in results:
            lost.append(f"results/{path.name} is shown by no table")
    return lost


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table differs"
    )
    check = parser.parse_args(arguments).check
    texts = documents(root)
    folder = root / "benchmarks/results"
    problems = []
    try:
        for document, text in texts.items():
            new, different = update(text, document, folder)
            if check:
                hint = "differs from its results file; python -m benchmarks.tables generates it"
                problems += [f"{document}: table {name} {hint}" for name in different]
            elif different:
                (root / document).write_text(new, encoding="utf-8")
                print(f"{document}: {', '.join(different)}")
        problems += unshown(texts, folder)
    except TableError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"benchmarks.tables: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
