"""Programs of FusedEmbedding and QuantizedEmbedding in PyTorch's ops alone, and as ONNX that numpy
evaluates.
"""

import pytest
import torch
from torch.export import Dim

from adaftr_fast import FusedEmbedding, QuantizedEmbedding, plain_decompositions

VALUES = torch.tensor([0, 4, 39, 6, 6, 1, 2, 3, 1])
OFFSETS = torch.tensor([0, 2, 3, 5, 6, 6, 8, 9, 9, 9])
FACTORS = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25, 1.0, 0.0, 2.0, 1.0])


def embedding(widths, options, quantized):
    made = FusedEmbedding([5, 40, 7], widths, **options).eval()
    return QuantizedEmbedding(made) if quantized else made


def plain_program(module, given):
    program = torch.export.export(module, given, dynamic_shapes=({0: Dim.AUTO},) * len(given))
    return program.run_decompositions(plain_decompositions())


@pytest.mark.parametrize(
    ("options", "widths", "quantized"),
    [
        ({"padding_idx": [0, None, 6]}, 8, True),
        ({"padding_idx": [0, None, 6]}, [3, 8, 3], False),
        ({"on_bad_id": "oov", "pooling": "sum"}, [3, 8, 3], True),
    ],
    ids=str,
)
def test_bags_are_those_of_the_module(options, widths, quantized):
    module = embedding(widths, options, quantized)
    program = plain_program(module, (VALUES, OFFSETS, FACTORS))
    assert not any("adaftr_fast" in str(node.target) for node in program.graph.nodes)
    for values, offsets in (
        (VALUES, OFFSETS),
        (VALUES[:8], OFFSETS[:7]),
        (VALUES[:0], torch.zeros(7, dtype=torch.int64)),
    ):
        factors = FACTORS[: len(values)]
        expected = module(values, offsets, factors)
        torch.testing.assert_close(
            program.module()(values, offsets, factors), expected, rtol=1e-5, atol=1e-8
        )


def test_padded_and_counted_bags_become_onnx(tmp_path):
    evaluated = pytest.importorskip("onnx.reference")
    module = embedding(8, {"padding_idx": [0, None, 6], "on_bad_id": "oov"}, True)
    program = plain_program(module, (VALUES, OFFSETS))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    model = evaluated.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    bad = VALUES.clone()
    bad[1] = 5
    found = model.run(None, dict(zip(model.input_names, (bad.numpy(), OFFSETS.numpy()))))
    torch.testing.assert_close(torch.from_numpy(found[-1]), module(bad, OFFSETS))
