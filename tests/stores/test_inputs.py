"""Raw inputs in a store give what local ones give."""

import bz2
import gzip
import pickle
import re
from itertools import count

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import batches, source, staging
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.source import content_digest, data_files
from adaftr_fast.data.schema.parse import load_schema, parse_schema, write_schema
from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.stores import as_path, open_file
from adaftr_fast.stores.published import publish
from tests.logs import shop_log
from tests.stores.files import content, put

FORMS = ["log.parquet", "files", "log.csv", "log.tsv.bz2"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    table = shop_log(3000, 60)
    pq.write_table(table, folder / "log.parquet", row_group_size=400)
    for number, name in enumerate(
        ["b/2.parquet", "B.parquet", "a.parquet", "b/10.parquet", "b-1.parquet"]
    ):
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(600 * number, 600), folder / "files" / name, row_group_size=250)
    for name in (".a.parquet", "b/_SUCCESS", "_temporary/x.parquet"):  # what is left out
        (folder / "files" / name).parent.mkdir(exist_ok=True)
        (folder / "files" / name).write_text("no parquet")
    pa.csv.write_csv(table, folder / "log.csv")
    (folder / "log.csv.gz").write_bytes(gzip.compress((folder / "log.csv").read_bytes()))
    tabs = (folder / "log.csv").read_text().replace(",", "\t").encode()
    (folder / "log.tsv.bz2").write_bytes(bz2.compress(tabs))
    (folder / "log.tsv.zst").write_bytes(pa.Codec("zstd").compress(tabs, asbytes=True))
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(staging, "SEARCH_BYTES", 64)
    monkeypatch.setattr(batches, "BATCH_ROWS", 500)


def inferred(path):
    found = infer_schema([open_file(path)], ["click", "conversion"], group="user", time="time")
    return parse_schema(found | {"name": "log"})


@pytest.fixture(scope="module")
def schema(log):
    return inferred(log / "log.parquet")


@pytest.mark.parametrize("name", FORMS)
def test_what_is_prepared_is_the_same(url, log, tmp_path, name):
    remote = put(log / name, f"{url}/{name}")
    schema = inferred(remote)
    assert schema == inferred(log / name)
    prepare(schema, [log / name], tmp_path / "local")
    prepare(schema, [remote], tmp_path / "remote")
    assert content(tmp_path / "remote") == content(tmp_path / "local")


@pytest.mark.parametrize("name", ["files", "log.csv", "log.tsv.zst"])
def test_shards_of_the_rows(url, log, schema, name):
    remote = put(log / name, f"{url}/{name}")
    for number in range(1, 4):
        shard = Shard(number, 3)
        paths = [as_path(each) for each in (remote, log / name)]
        if name == "files":
            sources = [source.Source(schema, {"data": [path]}, shard) for path in paths]
            ours, theirs = (list(each.scan("train")) for each in sources)
        else:
            ours, theirs = (list(staging.numbered_blocks(path, shard)) for path in paths)
        assert ours == theirs
        assert ours


def test_the_order_of_a_folder(url, log):
    remote = as_path(put(log / "files", f"{url}/files"))
    local = data_files(log / "files")
    names = [path.relative_to(log / "files").as_posix() for path in local]
    found = data_files(remote)
    assert [str(path) for path in found] == [f"{url}/files/{name}" for name in names]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in local]
    sent = [pickle.loads(pickle.dumps(path)).stat() for path in found]
    assert sent == [(remote / name).stat() for name in names]


def test_a_prepared_folder_is_known_by_the_state_of_its_inputs(url, log, schema, tmp_path, faults):
    remote = put(log / "log.parquet", f"{url}/log.parquet")
    first = prepare(schema, [remote], tmp_path / "out")
    faults.requests.clear()
    assert prepare(schema, [remote], tmp_path / "out") == first
    assert not [
        path for method, path in faults.requests if method == "GET" and path.endswith("log.parquet")
    ]
    pq.write_table(shop_log(3000, 61), tmp_path / "new.parquet")
    put(tmp_path / "new.parquet", remote)
    assert prepare(schema, [remote], tmp_path / "out").inputs != first.inputs


def test_an_input_that_changes_meanwhile_is_noticed(url, log, schema, tmp_path, monkeypatch):
    remote = put(log / "log.csv", f"{url}/log.csv")
    number = count()
    parse = staging._write_block

    def write(*arguments, **options):
        if next(number) == 2:
            (tmp_path / "new.csv").write_bytes((log / "log.csv").read_bytes() + b"1,u1,2,3.0,0,0\n")
            put(tmp_path / "new.csv", remote)
        parse(*arguments, **options)

    monkeypatch.setattr(staging, "_write_block", write)
    with pytest.raises(DataError, match=r"log\.csv: changed during the run"):
        prepare(schema, [remote], tmp_path / "out")


@pytest.mark.parametrize(("name", "kind"), [("log.csv", "cuts"), ("log.csv.gz", "slow")])
def test_text_of_a_store_that_fails_now_and_then(url, log, faults, name, kind):
    path = as_path(put(log / name, f"{url}/{name}"))
    faults.methods = ("GET", "HEAD")
    setattr(faults, kind, 0.2)
    assert list(staging.numbered_blocks(path)) == list(staging.numbered_blocks(log / name))


def test_parquet_of_a_store_that_fails_now_and_then(url, log, schema, faults, monkeypatch):
    """The SDK repeats requests of pyarrow's filesystem. The options make it a new one, which
    repeats often.
    """
    monkeypatch.setattr("adaftr_fast.stores.filesystems.SDK_ATTEMPTS", 8)
    put(log / "log.parquet", f"{url}/log.parquet")
    faults.methods = ("GET", "HEAD")
    faults.cuts = 0.1
    remote = source.Source(schema, {"data": [as_path(f"{url}/log.parquet?region=us-east-1")]})
    local = source.Source(schema, {"data": [log / "log.parquet"]})
    assert list(remote.scan("train")) == list(local.scan("train"))


def test_errors_name_the_url(url, log, schema, tmp_path, faults, few_attempts):
    with pytest.raises(DataError, match=rf"{url}/none\.csv: no such file"):
        prepare(schema, [f"{url}/none.csv"], tmp_path / "out")
    put(log / "log.csv", f"{url}/log.parquet")
    with pytest.raises(DataError, match=rf"{url}/log\.parquet: not a readable parquet file"):
        prepare(schema, [f"{url}/log.parquet"], tmp_path / "out")
    put(log / "log.csv", f"{url}/log.csv")
    faults.errors = 1.0
    with pytest.raises(StoreError, match=rf"{url}/log\.csv: failed 2 times"):
        prepare(schema, [f"{url}/log.csv"], tmp_path / "out")


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_store_that_fails_leaves_the_finished_work(
    url, log, schema, tmp_path, faults, few_attempts, monkeypatch, name
):
    remote = put(log / name, f"{url}/{name}")

    def failing(read):
        def fail(*arguments, **options):
            faults.errors = 1.0
            return read(*arguments, **options)

        return fail

    monkeypatch.setattr(staging, "numbered_blocks", failing(staging.numbered_blocks))
    monkeypatch.setattr(source.Source, "scan", failing(source.Source.scan))
    with pytest.raises(StoreError, match=f"{url}/{name}"):
        prepare(schema, [remote], tmp_path / "out")
    assert (tmp_path / ".out.work").exists()


def test_a_schema_file(url, schema, tmp_path):
    write_schema(tmp_path / "log.toml", schema.source, "A log.")
    expected = load_schema(str(tmp_path / "log.toml"))
    publish({"schema.toml": tmp_path / "log.toml"}, as_path(f"{url}/made"), None)
    for place in (put(tmp_path / "log.toml", f"{url}/log.toml"), f"{url}/made/schema.toml"):
        assert load_schema(place) == expected
    for name in ("none.toml", "none.toml?region=eu-west-1"):
        with pytest.raises(DataError, match=re.escape(f"schema: no file {url}/{name}")):
            load_schema(f"{url}/{name}")


@pytest.mark.parametrize("name", ["log.csv.gz", "log.parquet"])
def test_files_of_a_published_folder(url, log, schema, tmp_path, name):
    base = publish({name: log / name, "other": log / "log.csv"}, as_path(f"{url}/raw"), None)
    prepare(inferred(f"{url}/raw/{name}"), [f"{url}/raw/{name}"], tmp_path / "remote")
    prepare(inferred(log / name), [log / name], tmp_path / "local")
    assert content(tmp_path / "remote") == content(tmp_path / "local")
    assert content_digest(open_file(f"{url}/raw/{name}")) == content_digest(log / name)
    publish({name: log / "log.tsv.bz2"}, as_path(f"{url}/raw"), base)
    assert content_digest(open_file(f"{url}/raw/{name}")) == content_digest(log / "log.tsv.bz2")
    with pytest.raises(DataError, match=f"{url}/raw/other: no such file"):
        prepare(schema, [f"{url}/raw/other"], tmp_path / "remote")
