"""prepare and synthesize: what they print and accept."""

import warnings

import pytest

from adaftr_fast.cli import main


def test_prepare_prints_a_summary(schema, log, tmp_path, capsys):
    out = str(tmp_path / "data")
    assert main(["prepare", "--dataset", str(schema), "--files", str(log), "--out", out]) == 0
    text = capsys.readouterr().out
    assert "small, 3 fields" in text
    headers = [[cell.strip() for cell in text.splitlines()[line].split("|")][1:-1] for line in (1, 7)]
    assert headers == [["field", "read as", "ids", "missing or rare"], ["split", "rows", "click", "conversion"]]
    assert "| train      | 2,100 |" in text


def test_prepare_infers_a_schema_from_labels(log, tmp_path, capsys):
    out = str(tmp_path / "out")
    command = ["prepare", "--files", str(log), "--labels", "click", "--time", "day", "--ignore", "price", "--out", out]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "log, 3 fields" in text
    assert "prepare with --dataset FILE.toml" in text.splitlines()[-1]
    assert main(["prepare", "--files", str(log), "--out", out]) == 2
    assert "expected dataset, or labels" in capsys.readouterr().err
    assert main(["prepare", "--labels", "click", "--out", out]) == 2
    assert "expected one file beside labels, got 0" in capsys.readouterr().err


def test_the_former_name_of_shard_works_with_a_warning(schema, log, tmp_path, capsys):
    """Python's default filters hide a DeprecationWarning from the user of a command."""
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert main(["prepare", "--dataset", str(schema), "--files", str(log), "--part", "1/1", "--out", str(out)]) == 0
    assert "warning: prepare --part is deprecated: use --shard" in capsys.readouterr().err
    assert (out / "schema.json").exists()


@pytest.mark.parametrize(("raw", "dataset"), [("false", "synthetic-aliccp"), ("true", "aliccp")])
def test_synthesize_prints_the_command_that_prepares_the_log(raw, dataset, tmp_path, capsys):
    out, rates = tmp_path / "log", '{"click": 0.3, "conversion": 0.1}'
    assert main(["synthesize", "--rows", "2000", "--rates", rates, "--raw", raw, "--out", str(out)]) == 0
    _, *command = capsys.readouterr().out.replace("PREPARED", str(tmp_path / "data")).split()
    assert main(command) == 0
    assert f"{dataset}, 23 fields" in capsys.readouterr().out
    assert main(["synthesize", "--rows", "-1", "--out", str(out)]) == 2
    assert "rows: expected >= 1, got -1" in capsys.readouterr().err
