"""Models with a field that is pooled by target attention."""

from dataclasses import replace

import pytest
import torch

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.optim import Adam
from benchmarks.paper.complexity import count_parameters
from tests.models.inputs import DEEP, TWO

NAMES = ["item", "history", "day"]
ROWS = [30, 30, 4]
SMALL = {"embedding_dim": 4, "expert_hidden": [8], "tower_hidden": [8], "relatedness_hidden": [4]}


def build(name="mmoe", attention=None, **options):
    torch.manual_seed(0)
    attention = {"history": "item"} if attention is None else attention
    return build_model(
        ModelConfig(name=name, attention=attention, **(SMALL | options)), ROWS, TWO, NAMES
    )


def batch(rows=64, length=6, seed=0):
    """Returns rows with a history of up to ``length`` items."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.ones(rows, 3, dtype=torch.int64)
    counts[:, 1] = torch.randint(0, length + 1, (rows,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.flatten().cumsum(0)])
    ids = torch.randint(1, 30, (int(offsets[-1]),), generator=g, dtype=torch.int32)
    ids[offsets[2:-1:3]] %= 4  # of the day
    labels = torch.randint(0, 2, (rows, 2), generator=g).float()
    return Batch(ids, labels, offsets=offsets)


@pytest.mark.parametrize("name", [*DEEP, "adaftr"])
def test_every_model_pools_by_attention(name):
    model = build(name)
    rows = batch()
    tables = 2 if name == "single_dnn" else 1
    assert (
        sum("attention" in key and key.endswith("logit.bias") for key in model.state_dict())
        == tables
    )
    before = model(*rows.features)
    assert before.shape == (64, 2)
    optimizer = Adam(model, lr=0.01)
    torch.stack(tuple(model.loss(rows).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    assert (model(*rows.features) - before).abs().max() > 0
    of_tables, dense, deployed = count_parameters(model, rows).values()
    assert of_tables == tables * 4 * (30 + 4)  # the history has no table
    assert of_tables + dense == sum(parameter.numel() for parameter in model.parameters())
    assert deployed >= 16 * 36 + 36 + 36 + 1


def test_the_l2_term_holds_all_fields_beside_numbers():
    torch.manual_seed(0)
    config = ModelConfig(name="mmoe", attention={"history": "item"}, l2=0.5, **SMALL)
    model = build_model(
        config, ROWS, TWO, NAMES, [NumericEncoding("age", "standard", 0.0, 1.0, -3.0, 3.0)]
    )
    with torch.no_grad():
        for name in model.embedding.field_names:
            model.embedding.field_weight(name).normal_()
    rows = replace(batch(), dense=torch.randn(64, 1))
    fields = model.embed(*rows.features)[:, :-1]  # [B, 3 * 4]
    weights = [
        p for key, p in model.named_parameters() if p.dim() > 1 and not key.startswith("embedding.")
    ]
    expected = 0.5 * (sum(p.square().sum() for p in weights) + fields.square().sum() / 64)
    torch.testing.assert_close(model.loss(rows)["l2"], expected)


def test_rows_do_not_depend_on_each_other_and_an_id_is_a_bag_of_one():
    model = build().eval()
    rows = batch()
    with torch.no_grad():
        whole = model(*rows.features)
        alone = torch.cat([model(*rows[n : n + 1].features) for n in range(len(rows))])
    torch.testing.assert_close(whole, alone)
    ids = torch.tensor([[3, 7, 1], [0, 2, 3]], dtype=torch.int32)
    assert torch.equal(model(ids), model(ids.flatten(), torch.arange(7)))
    with pytest.raises(ValueError, match=r"attention: ids must be \[B, 3\]"):
        model(ids[:, :2])


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        (
            {"attention": {"seen": "item"}},
            NAMES,
            r"model\.attention: expected names among item, .*got 'seen'",
        ),
        (
            {"attention": {"item": "item"}},
            NAMES,
            "expected a target of item that is not pooled by attention itself",
        ),
        (
            {"attention": {"history": "day"}},
            NAMES,
            "a field with the 4 ids of its target day, got 'history: 30'",
        ),
        ({}, None, r"field_names are needed for attention = {'history': 'item'}, got None"),
        (
            {"embedding_dims": {"history": 3}},
            NAMES,
            "embedding_dims: expected 4 for history, as for its target item, got 3",
        ),
        (
            {"attention_hidden": []},
            NAMES,
            r"model\.attention_hidden: expected one or more widths >= 1",
        ),
        ({"attention": {"history": 3}}, NAMES, r"model\.attention"),
    ],
)
def test_impossible_attention_is_named(options, names, message):
    with pytest.raises(ValueError, match=message):
        build_model(
            ModelConfig(**({"attention": {"history": "item"}} | SMALL | options)), ROWS, TWO, names
        )


def test_a_field_has_the_width_of_its_target():
    model = build(embedding_dims={"item": 6})
    assert (model.widths, model.embedded_features) == ([6, 6, 4], 16)
    assert model.embedding.field_names == ["0", "2"]
