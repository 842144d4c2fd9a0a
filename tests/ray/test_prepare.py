"""Prepared folders of a Ray cluster, of which a node is killed in each step, are those of one
process.
"""

import shutil

import pytest

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import write_raw
from adaftr_fast.engines import Ray
from adaftr_fast.errors import DataError, EngineError
from tests.data.prepare.logs import write_log
from tests.data.prepare.shards import BY_ROW, SCHEMA, assert_same
from tests.ray.cluster import Killing


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.mark.parametrize(
    ("step", "after"),
    [("hash", True), ("read", False), ("read", True), ("count", False), ("encode", True)],
)
def test_a_node_is_killed(nodes, log, tmp_path, step, after):
    schema, files = parse_schema(SCHEMA | {"split": BY_ROW}), [log / "log.csv"]
    prepare(schema, files, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    engine = Killing(nodes, step, tmp_path / "killed", after)
    manifest = prepare(schema, files, tmp_path / "out", engine=engine, shards=5)
    assert len(engine.killed) == 1
    assert len(manifest.files("train")) == 5
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_a_node_is_killed_while_common_features_are_joined(nodes, tmp_path):
    config = LogConfig(
        rows=2_000, users=80, items=30, list_scale=0.05, rates={"click": 0.3, "conversion": 0.1}
    )
    schema, files = load_schema("aliccp"), write_raw(config, tmp_path / "raw")
    prepare(schema, files, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    engine = Killing(nodes, "join", tmp_path / "killed", after=True)
    prepare(schema, files, tmp_path / "out", engine=engine, shards=4)
    assert len(engine.killed) == 1
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_an_error_of_a_step_is_raised_as_itself(nodes, log, tmp_path):
    lines = (log / "log.csv").read_text().splitlines()
    lines[3] = lines[3].replace(",", ";", 1)
    (tmp_path / "log.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"1 of .* rows cannot be read .*log\.csv:4"):
        prepare(
            parse_schema(SCHEMA), [tmp_path / "log.csv"], tmp_path / "out", engine=Ray(), shards=3
        )
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_node_that_does_not_see_the_files_is_named(nodes, log, tmp_path):
    class Elsewhere(Ray):
        def map(self, function, items, **options):
            path = tmp_path / "log.csv"

            def call(item, advance):
                path.unlink(missing_ok=True)
                return function(item, advance)

            return super().map(call, items, **options)

    shutil.copy2(log / "log.csv", tmp_path)
    with pytest.raises(
        EngineError, match=r"node \S+: does not see /.*log\.csv; it must be on a file system that"
    ):
        prepare(
            parse_schema(SCHEMA),
            [tmp_path / "log.csv"],
            tmp_path / "out",
            engine=Elsewhere(),
            shards=2,
        )


def test_the_command_connects_and_takes_relative_paths(
    cluster_nodes, log, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(log)
    command = ["prepare", "--labels", "click", "--group", "user", "--files", "log.csv", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    ray = f"--engine ray --address {cluster_nodes.address} --shards 2".split()
    assert main([*command, str(tmp_path / "out"), *ray]) == 0
    assert len(read_manifest(tmp_path / "out").files("train")) == 1  # of one block of text
    assert_same(tmp_path / "out", tmp_path / "whole")
    printed = capfd.readouterr()
    assert "pid=" not in printed.out + printed.err
    assert main([*command, *f"{tmp_path}/out --engine ray --address 127.0.0.1:1".split()]) == 2
    assert (
        "engine ray: no cluster at address '127.0.0.1:1'" in capfd.readouterr().err.splitlines()[-1]
    )
