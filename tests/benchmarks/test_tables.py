"""The generated tables of the documents equal their results files, and what is missing or changed
is named.
"""

import json
import shutil
import subprocess

import pytest

from benchmarks import RESULTS, measure, tables
from benchmarks.render import significant
from benchmarks.tables import TABLES

CASE = {
    "ids a field": 10_000,
    "bytes a row": 40.6,
    "million rows/s": 4.35,
    "DataLoader by rows, million rows/s": 0.235,
    "DataLoader by indices, million rows/s": 2.53,
}
MACHINE = {"cpu": "A CPU", "cores": 2, "threads": 2, "torch": "2.13.0", "in use": "avx512_bf16"}
RECORD = {"machine": MACHINE, "date": "2026-11-25", "commit": "commit 1a2b3c4", "cases": [CASE]}
DOCUMENT = "Before.\n\n<!-- table: loader one -->\n<!-- /table -->\n\nAfter.\n"


@pytest.fixture
def folder(tmp_path):
    """A folder of results with one file, "one"."""
    save(tmp_path, RECORD)
    return tmp_path


def save(folder, record):
    (folder / "one.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("document", "text"), tables.documents().items(), ids=tables.documents())
def test_documents_show_their_results(document, text):
    assert tables.update(text, document) == (text, []), "run python -m benchmarks.tables"


def test_every_table_and_every_results_file_is_shown():
    assert tables.unshown(tables.documents()) == []


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_name_machine_or_compiler_date_and_commit(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    origin = "machine"
    name = "cpu"
    if "compiler" in record:
        origin = "compiler"
        name = "ptxas" if path.stem.startswith("compile-") else "GCC"
    assert set(record) - {"stale"} == {origin, "date", "commit", "cases"}
    assert record[origin][name] in tables.caption(record)
    of_several = ("contrast", "evidence")  # whose runs may be of several machines
    if origin == "machine" and path.stem not in of_several:
        assert path.stem.endswith(f"-{measure.processor(record[origin])}")


def test_table_replaces_what_stands_between_its_markers(folder):
    text, different = tables.update(DOCUMENT, "a.md", folder)
    assert different == ["loader one"]
    assert text == (
        "Before.\n\n<!-- table: loader one -->\n\n"
        "| ids a field | bytes a row on disk | million rows/s | DataLoader by rows | DataLoader by indices "
        "|\n|---:|---:|---:|---:|---:|\n"
        "| 10,000 | 40.6 | 4.35 | 0.235 | 2.53 |\n\n"
        "A CPU, AVX512-BF16, 2 cores, torch 2.13.0 on 2 threads; measured 2026-11-25, commit "
        "1a2b3c4.\n\n"
        "<!-- /table -->\n\nAfter.\n"
    )
    assert tables.update(text, "a.md", folder) == (text, [])


def test_table_of_several_files_has_the_cases_cpus_and_captions_of_all(folder):
    rates = {"samples/s": dict.fromkeys(("AdaFTR", "AdaFTR, bfloat16", "MMoE"), 1e5)}
    case = RECORD["cases"][0] | rates
    other = {"cpu": "Another CPU"}
    save(folder, RECORD | {"cases": [case]})
    record = RECORD | {"machine": MACHINE | other, "cases": [case], "stale": "older"}
    (folder / "two.json").write_text(json.dumps(record))
    document = DOCUMENT.replace("loader one", "training_summary one+two")
    text, different = tables.update(document, "a.md", folder)
    assert different == ["training_summary one+two"]
    rows = [
        f"| {cpu} | 10,000 | 100 | 100 | 100 |  |  |  |  |  |  |"
        for cpu in ("A CPU", "Another CPU")
    ]
    assert "\n".join(rows) + "\n\nA CPU, AVX512-BF16" in text
    assert text.count("measured 2026-11-25, commit 1a2b3c4.") == 2
    assert text.count("**Stale: older.**") == 1
    texts = {"README.md": DOCUMENT, "benchmarks/README.md": document}
    assert [line for line in tables.unshown(texts, folder) if "json" in line] == []
    with pytest.raises(tables.TableError, match=r"training_summary: no results file .*three\.json"):
        tables.update(document.replace("two", "three"), "a.md", folder)


def test_edited_tables_and_changed_results_are_noticed_alone(folder):
    text, _ = tables.update(DOCUMENT + DOCUMENT, "a.md", folder)
    edited = text.replace("4.35", "5.35", 1)
    assert tables.update(edited, "a.md", folder) == (text, ["loader one"])
    for change in (
        {"cases": [CASE | {"million rows/s": 4.36}]},
        {"stale": "older than the present loader"},
    ):
        save(folder, RECORD | change)
        assert tables.update(text, "a.md", folder)[1] == 2 * ["loader one"]


@pytest.mark.parametrize(
    "text",
    [
        DOCUMENT.replace("<!-- /table -->\n", ""),
        DOCUMENT.replace("<!-- table: loader one -->\n", ""),
        DOCUMENT.replace("table: loader one", "table: loader"),
        DOCUMENT.replace("<!-- /table -->\n", "") + DOCUMENT,
    ],
    ids=["no end", "no beginning", "no results file named", "no end before the next table"],
)
def test_marker_without_its_other_half_is_an_error(folder, text):
    with pytest.raises(tables.TableError, match=r"a\.md:3: expected pairs of lines"):
        tables.update(text, "a.md", folder)


def test_lost_tables_are_named(folder):
    lost = tables.unshown({"README.md": "no table", "benchmarks/README.md": DOCUMENT}, folder)
    assert lost == [
        "README.md has no generated table",
        *(f"table {name} stands in no document" for name in TABLES if name != "loader"),
    ]
    texts = {
        "README.md": DOCUMENT.replace("loader one", "loader two"),
        "benchmarks/README.md": DOCUMENT[:0],
    }
    assert "results/one.json is shown by no table" in tables.unshown(texts, folder)


@pytest.mark.parametrize(
    ("name", "results", "message"),
    [
        ("lodaer", "one", r"a\.md: no table 'lodaer'"),
        ("loader", "two", r"a\.md: table loader: no results file .*two\.json"),
        ("loss", "one", r"a\.md: table loss: .*one\.json has no 'ms'"),
    ],
)
def test_what_a_table_lacks_is_named(folder, name, results, message):
    with pytest.raises(tables.TableError, match=message):
        tables.update(DOCUMENT.replace("loader one", f"{name} {results}"), "a.md", folder)


def test_check_names_file_and_table_and_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "TABLES", {"loader": TABLES["loader"]})
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    save(tmp_path / "benchmarks/results", RECORD)
    for name in ("README.md", "benchmarks/README.md"):
        (tmp_path / name).write_text(DOCUMENT)
    assert tables.main(["--check"], tmp_path) == 1
    assert (
        "benchmarks/README.md: table loader one differs from its results file"
        in capsys.readouterr().err
    )
    assert (tmp_path / "README.md").read_text() == DOCUMENT
    assert tables.main([], tmp_path) == tables.main(["--check"], tmp_path) == 0


def test_written_results_name_machine_date_and_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    path = measure.write("loader", [CASE])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == f"loader-{measure.processor(record['machine'])}.json"
    assert list(record) == ["machine", "date", "commit", "cases"]
    assert record["cases"] == [CASE]
    assert (
        measure.processor({"cpu": "Intel(R) Xeon(R) Processor (family 6, model 167)"})
        == "intel-xeon-6-167"
    )
    assert (
        measure.write("infonce", [], {"gpu": "NVIDIA H100 80GB HBM3"}).name
        == "infonce-nvidia-h100-80gb-hbm3.json"
    )
    assert not list(path.parent.glob("*.tmp"))


@pytest.mark.skipif(shutil.which("git") is None, reason="no git, which names the commit")
def test_measured_code(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert measure.measured_code() == "unknown commit"

    def git(*arguments):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        ).stdout

    for name in ("code.py", "README.md", "benchmarks/results/one.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "--short", "HEAD").decode().strip()
    for name in ("README.md", "benchmarks/results/one.json"):
        (tmp_path / name).write_text("b")  # what a run and the tables rewrite
    assert measure.measured_code() == f"commit {commit}"
    (tmp_path / "code.py").write_text("b")
    assert measure.measured_code() == f"commit {commit} with uncommitted changes"


def test_significant_digits():
    found = [significant(value) for value in (0.2418, 50.127, 1_273_224, 999.6, 2.0)]
    assert found == ["0.242", "50.1", "1,270,000", "1,000", "2.00"]
