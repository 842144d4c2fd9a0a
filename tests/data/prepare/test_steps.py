"""Steps are pure: pickled, in any order and twice at once, they give the folder of one process."""

import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from adaftr_fast.data.prepare import steps
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.prepare.steps import InputFiles
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import write_raw
from adaftr_fast.engines import Local, ignore
from adaftr_fast.errors import EngineError
from tests.data.prepare.shards import BY_ROW, SCHEMA, assert_same

pytestmark = pytest.mark.usefixtures("small_blocks")


class Twice(Local):
    """Calls the pickled function of each pickled item twice at the same time, and in
    random order.
    """

    remote = True

    def _finished(self, function, todo, advance):
        todo = list(todo)
        random.Random(0).shuffle(todo)
        for index, item in todo:
            pickled = pickle.dumps((function, item))

            def call(_, pickled=pickled):
                function, item = pickle.loads(pickled)
                return function(item, ignore)

            with ThreadPoolExecutor(2) as pool:
                first, second = pool.map(call, range(2))
            assert first == second
            yield index, first


def test_steps_that_run_twice_at_once(log, tmp_path, monkeypatch):
    monkeypatch.chdir(log)
    schema = parse_schema(SCHEMA | {"split": BY_ROW})
    prepare(schema, ["log.csv.gz"], tmp_path / "whole")
    prepare(schema, ["log.csv.gz"], tmp_path / "out", engine=Twice(), shards=3)
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_steps_that_join_common_features_twice_at_once(tmp_path):
    config = LogConfig(
        rows=1_000, users=80, items=30, list_scale=0.05, rates={"click": 0.3, "conversion": 0.1}
    )
    files = write_raw(config, tmp_path / "raw")
    source = load_schema("aliccp").source
    lists = {"110_14": {"kind": "categorical", "tokens": "all"}}
    schema = parse_schema(
        source | {"defaults": {"min_count": 2}, "fields": source["fields"] | lists}
    )
    prepare(schema, files, tmp_path / "whole")
    prepare(schema, files, tmp_path / "out", engine=Twice(), shards=3)
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_a_remote_engine_has_a_shard_for_each_512_mb(log, shop, monkeypatch):
    counts = []

    class Counting(Twice):
        def map(self, function, items, **options):
            counts.append(len(items))
            return super().map(function, items, **options)

    size = (log / "log.csv").stat().st_size
    monkeypatch.setattr("adaftr_fast.data.prepare.run.SHARD_BYTES", size // 4 + 1)
    shop(engine=Counting())
    assert counts == [1, 4, 4, 4]  # one file to hash


def test_a_machine_that_does_not_see_the_files_is_named(log, tmp_path, monkeypatch):
    monkeypatch.setattr(steps.socket, "gethostname", lambda: "worker-7")
    shutil.copy(log / "log.csv", tmp_path)
    found = InputFiles.found({"data": [tmp_path / "log.csv"]})
    found.check_seen()
    shutil.copy(log / "log.csv", tmp_path)  # another time of change
    with pytest.raises(
        EngineError,
        match=r"node worker-7: .*log\.csv: sizes or times differ from those on the machine",
    ):
        found.check_seen()
    (tmp_path / "log.csv").unlink()
    with pytest.raises(
        EngineError,
        match=r"node worker-7: does not see .*log\.csv; it must be on a file system that",
    ):
        found.check_seen()


def test_a_machine_that_does_not_see_the_work_folder_is_an_error(shop, tmp_path, monkeypatch):
    class Hiding(Twice):
        def map(self, function, items, **options):
            for work in tmp_path.glob(".out.new-*"):
                work.rename(tmp_path / "hidden")
            return super().map(function, items, **options)

    monkeypatch.setattr("adaftr_fast.data.prepare.steps.VISIBLE_SECONDS", 0.1)
    unseen = r"does not see /.*\.out\.new-.*/prepared; it must be on a file system"
    with pytest.raises(EngineError, match=unseen):
        shop(engine=Hiding(), shards=2)
