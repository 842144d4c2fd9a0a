"""Prepared folders in a store are read as local ones."""

import shutil

import pyarrow.parquet as pq
import pytest
import torch

import adaftr_fast
from adaftr_fast.api.prepared import Prepared
from adaftr_fast.data.dataset import split_file
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.stores import as_path
from tests.logs import shop_log
from tests.stores.files import publish_folder, put

ROWS = 4000
TINY = {"max_epochs": 1, "batch_size": 256, "progress": False, "device": "cpu"}


def prepared(folder, users=60):
    pq.write_table(shop_log(ROWS, users), folder / f"{users}.parquet")
    roles = {"group": "user", "time": "time"}
    found = infer_schema([folder / f"{users}.parquet"], ["click", "conversion"], **roles)
    prepare(
        parse_schema(found | {"name": "shop"}),
        [folder / f"{users}.parquet"],
        folder / f"data-{users}",
    )
    return folder / f"data-{users}"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_file, "ROW_GROUP_ROWS", 500)  # many row groups
        return prepared(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("newer"), users=70)


@pytest.fixture(params=["published", "copied"])
def remote(request, local, url):
    if request.param == "published":
        publish_folder(local, url)
        return url
    return put(local, url)


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.group, other.group)


def split_requests(faults):
    return [
        path
        for method, path in faults.requests
        if method == "GET" and path.endswith("train.parquet")
    ]


def test_all_rows_in_order_and_the_second_epoch_from_the_cache(remote, local, faults):
    data = PreparedData(remote)
    assert (str(data.folder), data.manifest) == (remote, PreparedData(local).manifest)
    split = data.load("train")
    groups = pq.read_metadata(local / "train.parquet").num_row_groups
    faults.requests.clear()
    first = list(split.shuffled(256, seed=3, epoch=0, window=2000))
    assert len(split_requests(faults)) == groups > 5
    faults.requests.clear()
    second = list(split.shuffled(256, seed=3, epoch=1, window=2000))
    assert faults.requests == []
    again = list(PreparedData(remote).load("train").shuffled(256, seed=3, epoch=1, window=2000))
    assert len(split_requests(faults)) == 1  # the footer, by another process
    split = PreparedData(local).load("train")
    expected = [
        b for epoch in (0, 1, 1) for b in split.shuffled(256, seed=3, epoch=epoch, window=2000)
    ]
    assert_equal(first + second + again, expected)


def test_a_folder_that_is_replaced_once_is_read_to_the_end(local, newer, url):
    base = publish_folder(local, url)
    data = PreparedData(url)
    publish_folder(newer, url, base)
    assert_equal(
        list(data.load("train").batches(100)), list(PreparedData(local).load("train").batches(100))
    )
    assert PreparedData(url).manifest == read_manifest(newer)


def assert_replaced(url, data, split):
    with pytest.raises(
        DataError, match=f"{url}: was replaced since it was opened; start again with the new one"
    ):
        list((split or data.load("train")).batches(100))
    with pytest.raises(DataError, match=f"{url}: was replaced since it was opened"):
        read_encoders(data.folder, data.manifest)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_folder_that_is_replaced_twice_is_an_error(local, newer, url, tmp_path, loaded):
    base = publish_folder(local, url)
    data = PreparedData(url)
    split = data.load("train") if loaded else None
    base = publish_folder(newer, url, base)
    third = shutil.copytree(newer, tmp_path / "third")
    (third / "other").touch()
    publish_folder(third, url, base)
    assert_replaced(url, data, split)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_copy_that_is_replaced_is_an_error(local, newer, url, loaded):
    data = PreparedData(put(local, url))
    split = data.load("train") if loaded else None
    put(newer, url)
    assert_replaced(url, data, split)


def test_a_published_file_that_is_not_the_manifests_is_an_error(local, newer, url, tmp_path):
    mixed = shutil.copytree(newer, tmp_path / "mixed")
    shutil.copy(local / "schema.json", mixed)
    publish_folder(mixed, url)
    data = PreparedData(url)
    with pytest.raises(DataError, match=rf"{url}/train\.parquet: damaged: its sha256 differs"):
        data.load("train")
    with pytest.raises(DataError, match=rf"{url}/vocabulary\.parquet: damaged: its sha256 differs"):
        read_encoders(data.folder, data.manifest)


def test_damaged_files_of_a_copy(local, url, tmp_path):
    put(local, url)
    for name in ("train.parquet", "vocabulary.parquet"):
        damaged = bytearray((local / name).read_bytes())
        damaged[len(damaged) // 3] ^= 1
        (tmp_path / name).write_bytes(damaged)
        put(tmp_path / name, f"{url}/{name}")
    data = PreparedData(url)
    with pytest.raises(DataError, match=rf"{url}/train\.parquet: not readable"):
        list(data.load("train").batches(100))
    with pytest.raises(DataError, match=rf"{url}/vocabulary\.parquet: damaged: its sha256 differs"):
        read_encoders(data.folder, data.manifest)


def test_what_is_no_prepared_folder(url, faults, few_attempts):
    with pytest.raises(DataError, match=f"{url}: not a prepared folder"):
        PreparedData(url)
    faults.errors = 1.0
    with pytest.raises(StoreError, match=f"{url}.*: failed 2 times"):
        PreparedData(url)


def test_train_evaluate_export_by_python(url, local, tmp_path):
    publish_folder(local, url)
    ours, theirs = (
        adaftr_fast.train(data, tmp_path / name, training=TINY)
        for name, data in (("ours", url), ("theirs", local))
    )
    assert ours.test == theirs.test
    assert ours.about.config.data.folder == url
    found = adaftr_fast.evaluate(theirs, data=as_path(url))
    assert adaftr_fast.evaluate(ours).metrics == found.metrics
    for name, options in (("one", {}), ("other", {"data": Prepared(url)})):
        adaftr_fast.export(ours, tmp_path / name, **options)
        vocabulary = (tmp_path / name / "vocabulary.parquet").read_bytes()
        assert vocabulary == (local / "vocabulary.parquet").read_bytes()
    schema = parse_schema(read_manifest(local).schema)
    prepare(schema, [local.parent / "60.parquet"], tmp_path / "grown", grow=url)
    assert read_manifest(tmp_path / "grown").num_embeddings == read_manifest(local).num_embeddings
