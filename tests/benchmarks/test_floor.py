"""The floor of a step counts what its formulas say, and its parts add up."""

import pytest
import torch

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.models import ModelConfig, build_model
from benchmarks import bench_trainer, render
from benchmarks.prepared import write_prepared
from benchmarks.training import floor

B = 64


def test_work_is_counted_by_hand():
    config = ModelConfig(
        name="adaftr", num_experts=2, expert_hidden=[6], tower_hidden=[5, 3], relatedness_hidden=[4]
    )
    model = build_model(config, [10, 10, 10], ["click", "conversion"])
    backbone = 24 * 2 * 6 + 24 * 2 * 2 + 2 * (6 * 5 + 5 * 3 + 3)
    relatedness = {
        name: each for name, each in model.named_parameters() if name.startswith("relatedness.")
    }
    first = next(each for name, each in relatedness.items() if ".layers.0.weight" in name).numel()
    rest = sum(each.numel() for name, each in relatedness.items() if each.dim() > 1) - first
    found = floor.work(model, B, lookups=3 * B, distinct=20)
    assert found == floor.Work(
        2 * B * (3 * backbone + 2 * first + 3 * rest) + 6 * B * B * 5, B * B, 3 * B + 60
    )
    mmoe = floor.work(
        build_model(ModelConfig(name="mmoe"), [10], ["a", "b"]), B, lookups=B, distinct=1
    )
    assert (mmoe.exponentials, mmoe.rows) == (0, B + 3)


def test_distinct_rows_are_counted_by_field(tmp_path):
    write_prepared(tmp_path, rows=B, ids=4, held_out=8, fields=3)
    train = PreparedData(tmp_path).load("train")
    ids = next(train.batches(B)).ids
    assert floor.distinct_rows(train, B) == (
        3 * B,
        sum(len(torch.unique(column)) for column in ids.T),
    )


def test_parts_add_up_and_make_a_table(monkeypatch):
    monkeypatch.setattr(floor, "SECONDS", 0.001)
    monkeypatch.setattr(floor, "PRODUCT", 64)
    monkeypatch.setattr(bench_trainer, "BATCH", B)
    cases = bench_trainer.measure_floor(fields=3, ids=50, rows=4 * B, turns=1)
    assert [case["model"] for case in cases] == ["adaftr", "mmoe"]
    for case in cases:
        assert case["floor, ms"] == pytest.approx(sum(case["parts, ms"].values()))
        assert case["step, ms"] > 0
        assert min(case["parts, ms"][part] for part in ("products", "random rows", "decoding")) > 0
    adaftr, mmoe = (case["parts, ms"] for case in cases)
    assert adaftr["products"] > mmoe["products"]
    assert adaftr["exponentials"] > mmoe["exponentials"] == 0
    header, _, first, _ = render.floor(cases).splitlines()
    assert header.startswith(
        "| fields | model | products | exponentials | random rows | decoding | floor, ms |"
    )
    assert first.startswith("| 3 | adaftr |")
