import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare import stages
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.prepare.work_folder import publish, work_folder
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.errors import DataError


def test_failed_publish_keeps_the_old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "nothing", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/old").exists()
    (tmp_path / "work/new").mkdir(parents=True)
    publish(tmp_path / "work/new", tmp_path / "out")
    assert [path.name for path in (tmp_path / "work/replaced").iterdir()] == ["old"]
    assert not list((tmp_path / "out").iterdir())


def test_interrupted_run_resumes(source, write, tmp_path, monkeypatch):
    csv.write_csv(pq.read_table(write()), tmp_path / "log.csv")
    prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "whole")
    real, done = stages.write_split, []

    def interrupted(schema, encoders, groups, batches, path, check):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path.name)
        real(schema, encoders, groups, batches, path, check)

    monkeypatch.setattr(stages, "write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    staged = list((tmp_path / ".out.work").glob("staged/data/part-*.parquet"))
    assert len(staged) == 1
    written = staged[0].stat().st_mtime_ns

    def resumed(schema, encoders, groups, batches, path, check):
        assert staged[0].stat().st_mtime_ns == written
        done.append(path.name)
        real(schema, encoders, groups, batches, path, check)

    monkeypatch.setattr(stages, "write_split", resumed)
    prepare(parse_schema(source), [tmp_path / "log.csv"], tmp_path / "out")
    assert done == ["train.parquet", "validation.parquet", "test.parquet"]
    for split in SPLITS:
        whole, out = (pq.read_table(tmp_path / name / f"{split}.parquet") for name in ("whole", "out"))
        assert whole.equals(out)
    assert not (tmp_path / ".out.work").exists()


def test_concurrent_runs_do_not_mix(source, write, tmp_path):
    with work_folder(tmp_path / "out", "k"), pytest.raises(DataError, match="another process is preparing it"):
        prepare(parse_schema(source), [write()], tmp_path / "out")
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work/key").write_text("another key")
    (tmp_path / ".out.work/prepared").mkdir()
    (tmp_path / ".out.work/prepared/train.parquet").write_text("of other inputs")
    prepare(parse_schema(source), [write()], tmp_path / "out")
