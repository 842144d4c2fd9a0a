import copy
import json
import os
import shutil

import numpy as np
import pytest
import torch

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import signed
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import CheckpointError, ServingError
from adaftr_fast.files.whole import sha256
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.nn.deferred import missed_steps
from adaftr_fast.serving.export import check_program, export_run
from adaftr_fast.serving.programs import (
    Probabilities,
    apply_program,
    export_program,
    load_onnx,
    save_onnx,
)
from adaftr_fast.serving.scorer import load_scorer
from adaftr_fast.training.stepper import Stepper
from tests.forks import Script
from tests.runs.own import Plain, Torch
from tests.tolerances import assert_as_accurate

from .conftest import SIZES, SOURCE, drawing, random_ids, randomize, save_run

FIELDS = [50, 20, 7]
TASKS = ["click", "conversion"]
EXAMPLE = drawing(FIELDS)(50)
ALONE = ("single_dnn", "shared_bottom", "mmoe", "ple", "adaftr")
TOGETHER = ("cross_stitch", "autoheri", "esmm", "escm2_dr")


def assert_close(found, expected, atol=1e-6):
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=atol)


@torch.no_grad()  # with gradients, the training kernels run, which round differently
def served_by(model, *features, **named):
    return model(*features, **named).sigmoid()


@torch.no_grad()
def truth(model, *features, **named):
    """Computes the probabilities of a backbone in float64."""
    exact = copy.deepcopy(model).double()
    _, logits = exact.read_towers(exact.task_inputs(model.embed(*features, **named).double()))
    return logits.sigmoid()


@pytest.mark.parametrize("name", ALONE + TOGETHER)
def test_programs_match_the_model(name):
    """The tests of one task have the other programs that are not plain."""
    model = build_model(ModelConfig(name=name, **SIZES), FIELDS, TASKS)
    randomize(model)
    served = Probabilities(model)
    for plain in (True,) if name in ALONE else (False, True):
        program = export_program(served, EXAMPLE, plain=plain)
        assert any("adaftr_fast" in str(node.target) for node in program.graph.nodes) != plain
        for rows in (1, 2, 500):
            ids = random_ids(FIELDS, rows)
            expected = served_by(model, ids)
            assert rows < 500 or (expected.std(0) > 0.001).all()  # towers are not dead
            assert_close(program.module()(ids), expected)
    assert not any("relatedness" in name for name in program.state_dict)


@pytest.mark.parametrize(
    ("name", "widths"), [("single_dnn", {}), ("adaftr", {"0": 4, "2": 5})], ids=str
)
def test_programs_with_multi_valued_fields_match_the_model(name, widths):
    draw = drawing(FIELDS, 1, 2)
    model = build_model(
        ModelConfig(name=name, embedding_dims=widths, **SIZES), FIELDS, TASKS, ["0", "1", "2"]
    )
    randomize(model)
    served = Probabilities(model)
    program = export_program(served, draw(50))
    plain = export_program(served, draw(50), plain=True)
    assert not any("adaftr_fast" in str(node.target) for node in plain.graph.nodes)
    ids = torch.zeros(0, dtype=torch.int32)
    starts = torch.zeros(1, len(FIELDS), dtype=torch.int64)
    assert_close(program.module()(ids, starts), served_by(model, ids, torch.zeros(4).long()))
    for batch in (draw(1), draw(500)):
        for each in (program, plain):
            assert_close(apply_program(each.module(), batch), served_by(model, *batch.features))
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of values, 0"):
        program.module()(ids, starts + 1)
    # each out of its field's range
    bad = (torch.tensor([50, -1, 7], dtype=torch.int32), torch.arange(3)[None])
    unknown = torch.zeros(3, dtype=torch.int32)
    assert torch.equal(plain.module()(*bad), plain.module()(unknown, bad[1]))


@pytest.mark.parametrize("kind", [Plain, Torch])
def test_a_model_need_not_take_inputs_that_its_data_lack(kind):
    model = kind(FIELDS, TASKS, ModelConfig(), None)
    ids = random_ids(FIELDS, 9)
    program = export_program(Probabilities(model), EXAMPLE).module()
    torch.testing.assert_close(program(ids), served_by(model, ids))


def test_export_applies_deferred_updates():
    model = build_model(ModelConfig(name="mmoe", **SIZES), FIELDS, TASKS)
    stepper = Stepper(model, OptimizerConfig(lr=0.1), TrainingConfig(batch_size=8))
    for step in range(1, 6):
        ids = random_ids(FIELDS, 8) if step == 1 else torch.full((8, 3), step, dtype=torch.int32)
        stepper.step(Batch(ids, torch.eye(2).repeat(4, 1)), step)
    ids = random_ids(FIELDS, 8)  # of the first step, four steps ago
    assert missed_steps(model.embedding.weight)
    program = export_program(Probabilities(model), EXAMPLE)
    assert_close(program.module()(ids), served_by(model, ids))


def test_ids_out_of_range_raise_or_are_unknown():
    served = Probabilities(build_model(ModelConfig(name="mmoe", **SIZES), FIELDS, TASKS))
    bad, unknown = (torch.tensor([[3, each, 2]], dtype=torch.int32) for each in (20, 0))
    with pytest.raises(IndexError, match=r"ids\[0, 1\] = 20"):
        export_program(served, EXAMPLE).module()(bad)
    plain = export_program(served, EXAMPLE, plain=True).module()
    assert torch.equal(plain(bad), plain(unknown))


def test_a_program_runs_in_a_new_process(exported):
    folder, model = exported
    script = (
        "import sys, torch, adaftr_fast; program = torch.export.load(sys.argv[1]).module(); "
        "print(program(torch.ones(3, 7, dtype=torch.int32)).tolist())"
    )
    out, _ = Script(script, folder / "model.pt2").end()
    expected = served_by(model, torch.ones(3, 7, dtype=torch.int32))
    assert_close(torch.tensor(json.loads(out)), expected)


def test_native_and_onnx_programs_match_the_model(shop, tmp_path, monkeypatch):
    """It has a dense field and embeddings of several widths."""
    pytest.importorskip("onnx")
    fields = {name: SOURCE["fields"][name] for name in ("item", "place", "day")}
    fields |= {"heat": {"kind": "dense", "encoding": "log"}}
    schema = parse_schema(SOURCE | {"fields": fields})
    prepare(schema, [shop / "log.parquet"], tmp_path / "data")
    data = PreparedData(tmp_path / "data")
    sizes = {"expert_hidden": [4], "tower_hidden": [4], "embedding_dims": {"item": 16, "day": 3}}
    model = save_run(tmp_path / "run", data, ModelConfig(name="shared_bottom", **sizes))
    monkeypatch.setattr("adaftr_fast.serving.export.CHECKED_ROWS", (1,))
    about = export_run(tmp_path / "run", tmp_path / "model", aot=True, onnx=True)
    files = "model.aot.pt2 model.onnx model.pt2 schema.json vocabulary.parquet"
    assert sorted(about.sha256) == files.split()
    native = torch._inductor.aoti_load_package(str(tmp_path / "model/model.aot.pt2"))
    onnx = load_onnx(tmp_path / "model/model.onnx")
    for rows in (1, 100):
        ids = random_ids(data.manifest.num_embeddings, rows)
        numbers = torch.from_numpy(
            np.random.default_rng(rows).normal(0, 2, (rows, 1)).astype(np.float32)
        )
        numbers[::7] = torch.nan
        numbers[1::7] = torch.inf
        numbers[2::7] = -torch.inf
        expected = served_by(model, ids, dense=numbers)
        assert_close(native(ids, dense=numbers), expected)
        exact = truth(model, ids, dense=numbers)
        assert_as_accurate(onnx(ids, dense=numbers), exact, expected, torch.float32, "onnx")


def test_a_program_that_differs_from_the_model_raises(shop, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    data = PreparedData(shop / "data")
    model = save_run(tmp_path / "run", data, ModelConfig(name="single_dnn", **SIZES))

    def save_another(program, path):
        randomize(model, seed=2)
        example = drawing(data.manifest.num_embeddings)(50)
        save_onnx(export_program(Probabilities(model), example, plain=True), path)

    monkeypatch.setattr("adaftr_fast.serving.export.save_onnx", save_another)
    with pytest.raises(ServingError, match="the exported program differs from the model by 0"):
        export_run(tmp_path / "run", tmp_path / "model", onnx=True)
    assert not (tmp_path / "model").exists()


def test_export_errors_name_the_cause(shop, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copytree(shop / "data", tmp_path / "data")
    save_run(tmp_path / "run", PreparedData(tmp_path / "data"), ModelConfig(**SIZES))
    shutil.rmtree(tmp_path / "data")
    path = shutil.copytree(tmp_path / "run", tmp_path / "other") / "best/checkpoint.json"
    fingerprint = PreparedData(shop / "data").manifest.fingerprint
    path.write_text(path.read_text().replace(fingerprint, "another"))
    gone = "the training data are required: .*not a prepared folder"
    for run, out, data, error, message in (
        (shop / "run", "mine", None, ServingError, "not an exported model"),
        (tmp_path, "out", None, CheckpointError, "no checkpoint here"),
        (tmp_path / "run", "out", None, CheckpointError, gone),
        (tmp_path / "other", "out", shop / "data", CheckpointError, "trained on other data"),
    ):
        with pytest.raises(error, match=message):
            export_run(run, tmp_path / out, data=data)
    export_run(tmp_path / "run", tmp_path / "moved", data=shop / "data")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_damaged_files_raise(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "model")
    for name in ("model.pt2", "schema.json", "vocabulary.parquet", "serving.json"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        with pytest.raises(ServingError, match=f"{name}: damaged"):
            load_scorer(folder)
        path.unlink()
        with pytest.raises(ServingError, match=r"cannot be read|not an exported model"):
            load_scorer(folder)
        path.write_bytes(content)
    path.write_text('{"version": 1}')
    message = "written in version 1, this program reads version 4: export the run again"
    with pytest.raises(ServingError, match=message):
        load_scorer(folder)


def test_edited_descriptions_and_programs_raise(exported, tmp_path):
    """Also those whose sums are renewed."""
    folder = shutil.copytree(exported[0], tmp_path / "model")
    about = json.loads((folder / "serving.json").read_text())

    def load(**changes):
        (folder / "serving.json").write_text(signed(about | changes, "serving.json"))
        return load_scorer(folder)

    assert load().about.tasks == ["click", "conversion"]
    swapped = json.dumps(about | {"tasks": ["conversion", "click"]}, indent=2)
    (folder / "serving.json").write_text(swapped)
    with pytest.raises(ServingError, match=r"serving\.json: damaged.*its sha256 differs"):
        load_scorer(folder)
    for tasks in (["conversion", "click"], [], ["click", "click"]):
        with pytest.raises(ServingError, match=r"serving\.json: damaged: its tasks \["):
            load(tasks=tasks)
    surrogate = json.dumps(about | {"tasks": ["\ud800"]})
    for content in ("[]", '{"version": "\\ud800"}', surrogate):
        (folder / "serving.json").write_text(content)
        with pytest.raises(ServingError, match=r"serving\.json: (damaged|written in version)") as e:
            load_scorer(folder)
        str(e.value).encode()
    program = folder / "model.pt2"
    program.write_bytes(program.read_bytes()[:-100])
    with pytest.raises(ServingError, match=r"model\.pt2: damaged: "):
        load(sha256=about["sha256"] | {"model.pt2": sha256(program)})
    program.unlink()
    os.mkfifo(program)
    with pytest.raises(ServingError, match=r"model\.pt2: cannot be read: expected a file"):
        load()


def test_the_arguments_of_ops_have_the_names_that_programs_hold():
    """A program holds them; another name needs another version of exports."""
    bags = (
        "Tensor values, Tensor offsets, Tensor? per_sample_weights, Tensor field_offsets, bool mean"
    )
    for name, arguments in (
        ("fused_embedding", "Tensor ids, Tensor field_offsets"),
        ("embedding_bags", bags),
    ):
        schema = getattr(torch.ops.adaftr_fast, name).default._schema
        given = f"Tensor weight, {arguments}, Tensor[] state"
        # `sparse`, of the gradient, is never in a program
        assert str(schema) == f"adaftr_fast::{name}({given}, *, bool sparse=True) -> Tensor"


FULL = """
import resource, sys
from adaftr_fast.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
sys.exit(main(sys.argv[2:]))
"""


def test_a_full_disk_ends_an_export_in_one_line(shop, exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    size = len(before["model.pt2"]) - 100
    assert len(before["vocabulary.parquet"]) < size  # so the program is the file that does not fit
    _, err = Script(FULL, size, "export", "--run", shop / "run", "--out", tmp_path / "model").end(2)
    assert err.splitlines() == [
        f"adaftr-fast export: {tmp_path / 'model'}: cannot be written: File too large"
    ]
    assert os.listdir(tmp_path) == ["model"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_nan_differs_from_the_model():
    model = build_model(ModelConfig(name="mmoe", **SIZES), FIELDS, TASKS)
    served = Probabilities(model)
    draw = drawing(FIELDS)
    check_program(served, served, draw)
    with pytest.raises(ServingError, match="differs from the model by nan at 1 rows"):
        check_program(lambda ids: torch.full((len(ids), 2), torch.nan), served, draw)
    with torch.no_grad():
        model.towers[0].logit.bias.fill_(float("nan"))
    with pytest.raises(ServingError, match="not finite: it has diverged"):
        check_program(served, served, draw)
