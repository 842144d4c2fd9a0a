"""Prepared folders of a Ray cluster are those of one process, also if a node is killed.

That every step may run twice, and that a machine may not see the files, is tested without a cluster
(tests/data/prepare/test_steps.py).
"""

import pytest

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.extras.ray.engine import Ray
from tests.data.prepare.shards import BY_ROW, SCHEMA, assert_same, write_log
from tests.extras.ray.cluster import soon


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"))


def test_a_node_is_killed(nodes, log, tmp_path):
    """Each node has one call and others that wait for it."""
    schema = parse_schema(SCHEMA | {"split": BY_ROW})
    files = [log / "files"]
    prepare(schema, files, tmp_path / "whole")

    def kill(_):
        nodes.kill(nodes.nodes[0].node_id)

    with soon(kill, lambda: list(tmp_path.glob(".out.new-*/counted/fields-*"))):
        prepare(schema, files, tmp_path / "out", engine=Ray(), shards=7)
    assert len(nodes.nodes) == 2
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_the_command_connects_and_takes_relative_paths(nodes, log, tmp_path, monkeypatch, capfd):
    nodes.disconnect()
    monkeypatch.chdir(log)
    command = ["prepare", "--labels", "click", "--group", "user", "--files", "log.csv", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    ray = f"--engine ray --address {nodes.address} --shards 2".split()
    assert main([*command, str(tmp_path / "out"), *ray]) == 0
    assert len(read_manifest(tmp_path / "out").files("train")) == 1  # of one block of text
    assert_same(tmp_path / "out", tmp_path / "whole")
    printed = capfd.readouterr()
    assert "pid=" not in printed.out + printed.err
    assert main([*command, *f"{tmp_path}/out --engine ray --address 127.0.0.1:1".split()]) == 2
    no_cluster = "engine ray: no cluster at address '127.0.0.1:1'"
    assert no_cluster in capfd.readouterr().err.splitlines()[-1]
