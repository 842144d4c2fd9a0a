"""prepare and synthesize: what they print and accept."""

import pyarrow.csv as csv
import pytest

from adaftr_fast.cli import main
from tests.logs import shop_log

from .conftest import fails


def test_memory_and_shards(schema, log, tmp_path, capsys):
    out = tmp_path / "out"
    command = f"prepare --dataset {schema} --files {log} --out {out}".split()
    assert main([*command, "--shards", "2", "--memory", "0.5"]) == 0
    assert "| train      | 2,100 |" in capsys.readouterr().out


@pytest.mark.parametrize(("raw", "dataset"), [("false", "synthetic-aliccp"), ("true", "aliccp")])
def test_synthesize_prints_the_command_that_prepares_the_log(raw, dataset, tmp_path, capsys):
    out = tmp_path / "log"
    rates = '{"click":0.3,"conversion":0.1}'
    assert main(f"synthesize --rows 2000 --rates {rates} --raw {raw} --out {out}".split()) == 0
    _, *command = capsys.readouterr().out.replace("PREPARED", str(tmp_path / "data")).split()
    assert main(command) == 0
    assert f"{dataset}, 23 fields" in capsys.readouterr().out
    line = fails(f"synthesize --rows -1 --out {out}".split(), capsys)
    assert "rows: expected >= 1, got -1" in line


def test_the_schema_that_is_written_is_named_in_place_of_the_option(tmp_path, capsys):
    csv.write_csv(shop_log(600, users=30), tmp_path / "log.csv")
    command = f"prepare --files {tmp_path}/log.csv --labels click conversion --out {tmp_path}/out"
    schema = tmp_path / "mine.toml"
    assert main(f"{command} --write_schema {schema} --funnel".split()) == 0
    shown = capsys.readouterr().out
    assert "click, conversion are independent" in shown
    assert "--write_schema" not in shown
    assert f"Edit {schema}, and prepare with --dataset {schema}." in shown
