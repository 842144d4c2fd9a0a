"""Exports with int8 tables: from a run to scores, with one task, with bags, and what the command
shows.
"""

import re

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import ServingError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.nn.embedding_int8 import quantize_tables
from adaftr_fast.serving.export import check_program, export_run
from adaftr_fast.serving.programs import Probabilities, export_program
from adaftr_fast.serving.scorer import load_scorer, read_about
from adaftr_fast.training.evaluation import evaluate
from tests.runs.own import Torch

from .conftest import SIZES, drawing, randomize, save_run

FIELDS = [50, 20, 7]
TASKS = ["click", "conversion"]


def test_a_run_is_exported_scored_and_shown(shop, exported, tmp_path, capsys, monkeypatch):
    """The programs are compared with the model while they are exported."""
    pytest.importorskip("onnx")
    monkeypatch.setattr("adaftr_fast.serving.export.CHECKED_ROWS", (1, 70))
    _, model = exported
    main(f"export --run {shop}/run --out {tmp_path}/model --int8 --onnx".split())
    about = read_about(tmp_path / "model")
    table = model.served().embedding
    width = table.embedding_dim
    rows = sum(table.num_embeddings)
    assert (about.int8.nbytes, about.int8.float32_nbytes) == (rows * (width + 4), rows * width * 4)
    trained = evaluate(model, PreparedData(shop / "data").load("validation"), 100)
    for task, metrics in about.int8.metrics.items():
        assert metrics.keys() == trained[task].keys()
        assert metrics["auc"] == pytest.approx(trained[task]["auc"], abs=0.02)
    assert about.int8.metrics != trained
    shown = capsys.readouterr().out
    assert re.search(r"tables: [\d.]+ MB in int8, [\d.]+ MB in float32", shown)
    assert f"| click, int8 tables      | {100 * about.int8.metrics['click']['auc']:.2f} |" in shown

    batch = pq.read_table(shop / "log.parquet").to_batches()[0]
    scorers = [load_scorer(folder) for folder in (shop / "model", tmp_path / "model")]
    float32, int8 = (scorer.probabilities(scorer.encode(batch)) for scorer in scorers)
    assert 0 < abs(int8 - float32).max() < 0.05
    assert any("int8_embedding" in str(node.target) for node in scorers[1].program.graph.nodes)


def test_one_task_is_measured_by_its_own_labels(shop, exported, tmp_path):
    folder, _ = exported
    save_run(tmp_path / "run", PreparedData(shop / "data"), ModelConfig(name="mmoe", **SIZES))
    whole = export_run(tmp_path / "run", tmp_path / "whole", int8=True).int8
    alone = export_run(tmp_path / "run", tmp_path / "alone", int8=True, task="conversion").int8
    assert list(alone.metrics) == ["conversion"]
    assert alone.metrics["conversion"]["auc"] == pytest.approx(
        whole.metrics["conversion"]["auc"], abs=1e-4
    )
    assert read_about(folder).int8 is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("single_dnn", {}),
        ("adaftr", {"embedding_dims": {"0": 4, "2": 5}}),
        ("mmoe", {"attention": {"2": "1"}}),
    ],
)
def test_programs_with_multi_valued_fields_match_the_model(name, options):
    rows = [50, 7, 7] if "attention" in options else FIELDS
    draw = drawing(rows, 2)
    model = build_model(ModelConfig(name=name, **options, **SIZES), rows, TASKS, ["0", "1", "2"])
    randomize(model)
    served = Probabilities(model)
    tables = quantize_tables(served)
    assert len(tables) == (len(TASKS) if name == "single_dnn" else 1)
    for plain in (False, True):
        program = export_program(served, draw(50), plain=plain)
        assert any("adaftr_fast" in str(node.target) for node in program.graph.nodes) != plain
        check_program(program.module(), served, draw)


def test_a_model_without_tables_of_ours_is_refused(shop, tmp_path):
    save_run(
        tmp_path / "run", PreparedData(shop / "data"), ModelConfig(name="tests.runs.own:Torch")
    )
    with pytest.raises(ServingError, match=r"int8: the model .* has no FusedEmbedding"):
        export_run(tmp_path / "run", tmp_path / "model", int8=True, model_class=Torch)
