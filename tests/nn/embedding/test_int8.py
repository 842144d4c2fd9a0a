"""QuantizedEmbedding beside the FusedEmbedding that it is made from: look-ups, torch.compile,
torch.export.
"""

import copy

import pytest
import torch
from torch import nn
from torch.export import Dim

from adaftr_fast import FusedEmbedding, QuantizedEmbedding, optim, plain_decompositions
from adaftr_fast.nn import embedding_int8
from adaftr_fast.nn.deferred import missed_steps
from tests.nn.embedding.test_plain import OFFSETS, VALUES
from tests.tolerances import assert_as_accurate

SIZES = [5, 40, 7]
IDS = torch.stack([torch.arange(17) % rows for rows in SIZES], 1)
WIDTHS = pytest.mark.parametrize("widths", [8, [3, 8, 3]], ids=["one width", "mixed"])


def pair(widths, **options):
    """A FusedEmbedding of the rounded rows in float64, and the QuantizedEmbedding."""
    quantized = QuantizedEmbedding(
        FusedEmbedding(SIZES, widths, field_names=["a", "b", "c"], **options)
    )
    tables = {name: quantized.field_weight(name).double() for name in "abc"}
    return quantized, FusedEmbedding.from_pretrained(tables, **options)


@WIDTHS
@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": [0, None, 6]}, {"pooling": "sum"}], ids=str
)
def test_look_ups_are_those_of_the_rounded_rows(widths, options):
    quantized, exact = pair(widths, **options)
    pytorch = copy.deepcopy(exact).float()
    factors = torch.rand(len(VALUES))
    for given in (
        (IDS,),
        (IDS.int(),),
        (IDS[:0],),
        (VALUES, OFFSETS),
        (VALUES, OFFSETS, factors),
        (IDS[:, :, None],),
    ):
        truth = exact(*given)
        assert_as_accurate(quantized(*given), truth, pytorch(*given), torch.float32)
    assert_as_accurate(
        quantized.look_up_field("b", VALUES),
        exact.look_up_field("b", VALUES),
        pytorch.look_up_field("b", VALUES),
        torch.float32,
    )


def test_it_compiles_and_exports_as_one_graph_that_checks_ids():
    quantized, _ = pair([3, 8, 3])
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager", dynamic=True)
    auto = {0: Dim.AUTO}
    for given, smaller in (((IDS,), (IDS[:3],)), ((VALUES, OFFSETS), (VALUES[:8], OFFSETS[:7]))):
        program = torch.export.export(quantized, given, dynamic_shapes=(auto,) * len(given))
        plain = program.run_decompositions(plain_decompositions())
        assert not any("adaftr_fast" in str(node.target) for node in plain.graph.nodes)
        for each in (given, smaller):
            expected = quantized(*each)
            for run in (program.module(), plain.module(), compiled):
                torch.testing.assert_close(run(*each), expected, rtol=0, atol=1e-7)
        with pytest.raises(IndexError, match="out of range"):
            program.module()(given[0] + 40, *given[1:])


def test_bad_ids_name_the_field_or_are_counted():
    quantized, _ = pair(4)
    with pytest.raises(
        IndexError, match=r"ids\[1, 1\] = 41 is out of range for field 1 \('b'\), whose ids are"
    ):
        quantized(torch.tensor([[0, 0, 0], [0, 41, 0]]))
    counting, _ = pair([3, 8, 3], on_bad_id="oov")
    assert torch.equal(
        counting(torch.tensor([[0, 41, -1]])), counting(torch.zeros(1, 3, dtype=torch.int64))
    )
    assert counting.oov_counts.tolist() == [0, 1, 1]


def test_deferred_steps_count_and_large_tables_are_rounded_in_parts(monkeypatch):
    monkeypatch.setattr(embedding_int8, "CHUNK", 3)
    embedding = FusedEmbedding(SIZES, 8)
    optimizer = optim.Adam(embedding, lr=0.1)
    for rows in (17, 2, 2):
        optimizer.zero_grad()
        embedding(IDS[:rows]).sum().backward()
        optimizer.step()
    assert missed_steps(embedding.weight)
    found = QuantizedEmbedding(embedding)(IDS)
    assert (found - embedding(IDS)).abs().max() <= embedding.weight.abs().max() / 254 * 1.001


def test_a_state_is_loaded_and_copied():
    one = pair([3, 8, 3])[0]
    two = pair([3, 8, 3])[0]
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(run(IDS), one(IDS)) for run in (two, copy.deepcopy(one)))
    assert (one.nbytes(), one.float32_nbytes()) == (40 * 8 + 12 * 3 + 4 * 52, 4 * (40 * 8 + 12 * 3))
    assert (
        "QuantizedEmbedding(\n  3 fields, num_embeddings=[5, 40, 7], embedding_dim=[3, 8, 3]"
        in repr(one)
    )
    with pytest.raises(KeyError, match="QuantizedEmbedding: no field 'd'"):
        one.field_weight("d")
    with pytest.raises(TypeError, match=r"embedding must be a FusedEmbedding, got Embedding; "):
        QuantizedEmbedding(torch.nn.Embedding(3, 2))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_scales_stay_float32(cast):
    rounded, _ = pair([3, 8, 3])
    scales = [table.scale.clone() for table in rounded.tables]
    cast(nn.ModuleList([rounded]))
    for table, scale in zip(rounded.tables, scales):
        assert torch.equal(table.scale, scale)
        assert table.scale.dtype == torch.float32
        assert table.weight.dtype == torch.int8
    assert rounded.to("meta").tables[0].scale.device.type == "meta"
