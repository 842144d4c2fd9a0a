"""URLs of files and folders in stores, and who may read and write there."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.stores import PublishedFolder, as_path, local_folder, open_folder
from adaftr_fast.stores.published import Published, State, read_state, upload
from tests.logs import shop_log
from tests.stores.files import put


def write_text(path, text):
    path.write_text(text)
    return path


def test_names_of_stores(tmp_path):
    assert as_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    path = as_path("s3://bucket/folder/data.csv.gz?region=eu-west-1")
    assert (path.place, path.key) == ("s3://bucket?region=eu-west-1", "bucket/folder/data.csv.gz")
    assert (path.name, path.suffix) == ("data.csv.gz", ".gz")
    assert str(path.parent / "x") == "s3://bucket/folder/x?region=eu-west-1"
    assert as_path("hdfs://host:8020/folder").key == "/folder"
    with pytest.raises(
        StoreError, match=r"ftp://x/y: expected a local path or one of file://, s3://"
    ):
        as_path("ftp://x/y")
    with pytest.raises(StoreError, match="set them in the environment") as error:
        as_path("s3://key:secret@bucket/x")
    assert "secret@" not in str(error.value)
    with pytest.raises(StoreError, match="set them in the environment") as error:
        as_path("s3://bucket/x?access_key=key&secret_key=secret")
    assert "secret" not in str(error.value)
    for text in (Path("s3://key:of/secret@b/x"), "https://key:secret@host/x?token=secret"):
        with pytest.raises(StoreError, match="expected a") as error:
            as_path(text)
        assert "secret" not in str(error.value)
    with pytest.raises(StoreError, match="expected a bucket or a folder"):
        as_path("s3://")
    with pytest.raises(StoreError, match=r"s3://…@\[b/x: expected the name of a bucket") as error:
        as_path("s3://key:secret@[b/x")
    assert "secret" not in str(error.value)
    assert as_path("s3://bucket/part#1?region=eu-west-1").key == "bucket/part#1"


def test_a_path_that_is_not_utf_8(tmp_path):
    """Arrow, safetensors and torch refuse it, each in another way."""
    with pytest.raises(DataError, match=r"log\\udcff\.csv': expected a path in UTF-8"):
        as_path(tmp_path / os.fsdecode(b"log\xff.csv"))
    pq.write_table(pa.table({"click": [0, 1]}), tmp_path / "log.parquet")
    (tmp_path / "log.parquet").rename(tmp_path / os.fsdecode(b"\xff.parquet"))
    with pytest.raises(DataError, match=r"the name of a file is not UTF-8: b'.*\\xff\.parquet'"):
        infer_schema([tmp_path], ["click"])


def test_a_bucket_is_no_folder_to_write(faults):
    with (
        pytest.raises(StoreError, match="s3://bucket: expected a folder in it"),
        local_folder("s3://bucket"),
    ):
        raise AssertionError


def test_a_folder_below_the_root_of_hdfs(monkeypatch):
    states = {"/models": State({"x": Published("0" * 64, 1)})}
    monkeypatch.setattr(
        "adaftr_fast.stores.published.read_state", lambda folder: states.get(folder.key)
    )
    assert isinstance(open_folder(as_path("hdfs://host:8020/models")), PublishedFolder)
    assert not isinstance(open_folder(as_path("hdfs://host:8020/other")), PublishedFolder)


def test_missing_permission_is_an_error_at_once(url, tmp_path, faults):
    """S3 denies what is absent to a user who may not list, and folders above may be those of
    others.
    """
    upload(write_text(tmp_path / "x", "1"), as_path(f"{url}/inner/x"))
    faults.denied = "/published.json"
    assert (open_folder(as_path(f"{url}/inner")) / "x").read_bytes() == b"1"
    with pytest.raises(PermissionError, match=r"published\.json"):
        read_state(as_path(f"{url}/inner"))
    faults.denied = "/x"
    faults.requests.clear()
    with pytest.raises(PermissionError, match=f"{url}/inner/x"):
        as_path(f"{url}/inner/x").read_bytes()
    assert len(faults.requests) == 1


def test_a_user_who_may_not_list(url, tmp_path, faults, capsys):
    """S3 denies what is absent to such a user."""
    pq.write_table(shop_log(3000, users=50), tmp_path / "log.parquet")
    put(tmp_path / "log.parquet", f"{url}/log.parquet")
    faults.unlisted = True
    roles = ["--labels", "click", "conversion", "--out", str(tmp_path / "data")]
    assert main(["prepare", "--files", f"{url}/log.parquet", *roles]) == 0
    denied = (
        "[Errno 13] access denied; to a user who may not list (s3:ListBucket), S3 also denies what "
        "is absent: "
    )
    for command, name in (
        (["prepare", "--files", f"{url}/none.parquet", *roles], "none.parquet"),
        (["prepare", "--files", f"{tmp_path}/log.parquet", *roles[:-1], f"{url}/out"], "out"),
        (
            ["train", "--data.folder", f"{tmp_path}/data", "--out", f"{url}/run"],
            "run/published.json",
        ),
    ):
        capsys.readouterr()
        assert main(command) == 2
        assert f"adaftr-fast {command[0]}: {denied}'{url}/{name}'\n" in capsys.readouterr().err
