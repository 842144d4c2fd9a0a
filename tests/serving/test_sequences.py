"""A history of items, and a number, from the raw log to scores: prepare, train, evaluate, export,
predict.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
    WarmStartConfig,
)
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import ConfigError
from adaftr_fast.runs.run import build, train_one
from adaftr_fast.runs.warm_start import warm_start
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.scorer import load_scorer
from adaftr_fast.training.trained import load_trained
from tests.logs import by_day

from .conftest import save_run, scores, scores_of_trainer

LENGTH = 4
SOURCE = {
    "name": "shop",
    "labels": {"click": "click", "conversion": "buy"},
    "split": by_day(8),
    "fields": {
        "seen": {
            "kind": "categorical",
            "tokens": "all",
            "length": LENGTH,
            "separator": "|",
            "vocabulary": "item",
        },
        "user": "categorical",
        "item": {"kind": "categorical", "min_count": 2},
        "tags": {"kind": "categorical", "tokens": "all", "separator": "|"},
        "price": {"kind": "dense", "encoding": "log"},
    },
}


def make_log(rows=600):
    """Histories have no tokens, up to three times ``LENGTH``, and tokens that are not items."""
    random = np.random.default_rng(0)
    histories = [random.integers(0, 40, n) for n in random.integers(0, 3 * LENGTH + 1, rows)]
    item = random.integers(0, 25, rows)
    click = np.array([i in history[-LENGTH:] for i, history in zip(item, histories, strict=True)])
    click |= random.random(rows) < 0.2
    return pa.table(
        {
            "day": np.arange(rows) * 10 // rows,
            "user": random.integers(0, 50, rows),
            "item": item,
            "seen": ["|".join(map(str, history)) for history in histories],
            "price": random.lognormal(size=rows),
            "tags": [
                "|".join(random.choice(["a", "b", "c"], n)) for n in random.integers(0, 3, rows)
            ],
            "click": click.astype(np.int8),
            "buy": (click & (random.random(rows) < 0.5)).astype(np.int8),
        }
    )


def settings(folder, **model):
    sizes = {"expert_hidden": [8], "tower_hidden": [8, 8], "relatedness_hidden": [4]}
    sizes |= {"embedding_dim": 4, "embedding_dims": {"tags": 3}, "attention": {"seen": "item"}}
    return RunConfig(
        DataConfig(str(folder)),
        ModelConfig(**sizes | model),
        OptimizerConfig(lr=0.01),
        TrainingConfig(batch_size=64, max_epochs=2, progress=False),
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with the log, the prepared ``data``, a trained ``run`` and its exported
    ``model``.
    """
    folder = tmp_path_factory.mktemp("shop")
    pq.write_table(make_log(), folder / "log.parquet")
    prepare(parse_schema(SOURCE), [folder / "log.parquet"], folder / "data")
    train_one(PreparedData(folder / "data"), settings(folder / "data"), folder / "run")
    export_run(folder / "run", folder / "model")
    return folder


def test_predictions_are_those_of_the_evaluation(shop, monkeypatch):
    monkeypatch.setattr("adaftr_fast.serving.scorer.ROWS", 70)
    scorer = load_scorer(shop / "model")
    predict(scorer, [shop / "log.parquet"], shop / "scores.parquet")
    expected = scores_of_trainer(load_trained(shop / "run").model, shop / "data")
    np.testing.assert_allclose(scores(shop / "scores.parquet"), expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.01


def test_only_the_last_tokens_of_the_history_count(shop):
    """Rows whose histories differ before the last ``LENGTH`` tokens have the same score; other rows
    do not.
    """
    scorer = load_scorer(shop / "model")
    texts = ["1|2|3|4|5", "9|9|2|3|4|5", "2|3|4|5", "3|4|5", "", None, "999|2|3|4|5", "3|4|5|999"]
    rows = pa.record_batch(
        {"user": [1] * 8, "item": [3] * 8, "tags": ["a"] * 8, "seen": texts, "price": [1.0] * 8}
    )
    scores = scorer.probabilities(scorer.encode(rows))
    assert all((scores[0] == scores[other]).all() for other in (1, 2, 6))
    assert (scores[4] == scores[5]).all()
    assert len(np.unique(scores[:, 0])) == 4


def test_an_onnx_program_serves_attention(shop, tmp_path, monkeypatch):
    """An export compares it with the model. Native code is compiled from the same program."""
    pytest.importorskip("onnx")
    monkeypatch.setattr("adaftr_fast.serving.export.CHECKED_ROWS", (1, 70))
    small = {"expert_hidden": [4], "tower_hidden": [4], "attention_hidden": [3]}
    config = settings("", name="shared_bottom", **small).model
    save_run(tmp_path / "run", PreparedData(shop / "data"), config)
    export_run(tmp_path / "run", tmp_path / "model", onnx=True)
    assert (tmp_path / "model/model.onnx").exists()


def test_weights_are_copied_by_meaning(shop):
    data = PreparedData(shop / "data")
    report = warm_start(build(settings("").model, data), data, WarmStartConfig(str(shop / "run")))
    assert not report.fresh
    assert set(report.rows) == {"user", "item", "tags"}
    assert all(taken == rows for taken, rows in report.rows.values())
    averaged = build(settings("", attention={}).model, data)
    report = warm_start(averaged, data, WarmStartConfig(str(shop / "run")))
    items = data.manifest.fields[2].num_embeddings
    assert (report.rows["seen"], report.rows["item"]) == ((0, items), (items, items))
    assert set(report.fresh) == {
        f"{layer}.{kind}" for layer in ("experts.first", "gates") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"tags": "item"}, "expected vocabulary = \"item\" for tags in .* data, got 'tags'"),
        ({"user": "item"}, "expected fields with tokens = \"all\" in the schema, got 'user'"),
        ({"seen": "tags"}, "expected a single-valued target of seen, got 'tags'"),
        ({"seen": "shop"}, "expected names among seen, user, item, tags, got 'shop'"),
    ],
)
def test_attention_that_the_data_do_not_allow_is_named(shop, attention, message):
    with pytest.raises(ConfigError, match=f"model.attention: {message}"):
        build(settings("", attention=attention).model, PreparedData(shop / "data"))
