"""Every file in examples/ and every block of docs/python_api.md runs."""

import ast
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.csv as csv
import pytest

from tests.forks import Script
from tests.logs import shop_log

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def printed(script, folder):
    """What an example prints, run in an empty folder, where it leaves nothing."""
    run = (
        "import os, runpy, sys; os.chdir(sys.argv[1]); runpy.run_path(sys.argv[2], "
        "run_name='__main__')"
    )
    out, _ = Script(run, folder, EXAMPLES / script).end()
    assert list(folder.iterdir()) == []
    return out


def run_cell(source, names):
    """Runs a cell as a notebook does; returns the value of its last line if that is an
    expression.
    """
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    return None if last is None else eval(compile(last, "<cell>", "eval"), names)


def test_two_towers_learn_to_retrieve(tmp_path):
    before, *_, after = (
        float(each) for each in re.findall(r"recall@10 (\S+)", printed("two_tower.py", tmp_path))
    )
    assert before < 0.05
    assert after > 0.8


def test_fused_tables_equal_those_of_dense_adam(tmp_path):
    weight, difference = re.search(
        r"weight (\S+), .* tables (\S+)", printed("embedding_adam.py", tmp_path)
    ).groups()
    # three epochs of float32 rounding; SparseAdam's are 1e-1 apart
    assert float(difference) < 1e-4 * float(weight)


def test_an_own_model_learns_alone_and_under_adaftr(tmp_path):
    text = printed("own_model.py", tmp_path)
    assert re.findall(r"^(?!GAUC:)\w.*$", text, re.MULTILINE) == [
        "CrossNet",
        "AdaFTR over CrossNet",
    ]
    aucs = [float(auc) for auc in re.findall(r"\| (?:click|conversion) +\| (\S+) ", text)]
    assert len(aucs) == 4
    assert min(aucs) > 60


def test_a_stream_learns_and_its_scores_change(tmp_path):
    text = printed("stream.py", tmp_path)
    assert re.findall(r"^(\S+): ", text, re.MULTILINE) == [
        f"hour-0{hour}.parquet" for hour in range(4)
    ]
    aucs = [float(auc) for auc in re.findall(r"click AUC (\S+)", text)]
    assert len(aucs) == 3
    assert 55 < aucs[0] < aucs[-1]
    assert len(set(re.findall(r"scores of three rows: (.*)", text))) == 4


def test_the_notebook_runs_and_shows_tables_and_plots(tmp_path, monkeypatch):
    """Without Jupyter: its cells are plain Python, and what a cell shows is the value of its last
    line.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notebook = json.loads((EXAMPLES / "road.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # committed without
    plots = []
    names = {}

    def show():
        plots.append(plt.gcf())
        plt.close()

    monkeypatch.setattr(plt, "show", show)
    shown = [value for value in (run_cell(cell, names) for cell in cells) if value is not None]
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert sum("<table>" in (page or "") for page in pages) == 6
    assert [type(value).__name__ for value in shown if hasattr(value, "_repr_png_")] == ["Picture"]
    assert repr(shown[-1]).startswith(
        f"{names['folder'] / 'scores.parquet'}: 10,000 rows, p_ctr, p_ctcvr, p_cvr ("
    )
    assert len(plots) == 2


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The blocks of the guide as (language, text), in a folder with the log that it speaks of."""
    log = shop_log(4000, users=300, time="timestamp")
    csv.write_csv(log, tmp_path / "log.csv")
    csv.write_csv(log.drop_columns(["click", "conversion"]), tmp_path / "today.csv")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/python_api.md").read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_guide_runs_and_prints_what_it_shows(guide, capsys):
    """In order and in one namespace; of what is printed, numbers and the widths of columns may
    differ.
    """
    names = {}
    capsys.readouterr()
    outputs = 0
    for language, text in guide:
        if language == "toml":
            Path("mine.toml").write_text(text)
        elif language == "python":
            value = run_cell(text, names)
            out = capsys.readouterr().out + ("" if value is None else repr(value))
        else:
            assert (language, without_numbers(out)) == ("text", without_numbers(text))
            outputs += 1
    assert outputs >= 6


def without_numbers(text):
    text = re.sub(r"\d[\d,.]*", "0", text)
    return [re.sub(r"[ -]+", " ", line) for line in text.strip().splitlines()]
