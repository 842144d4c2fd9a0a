"""The parts of a training step, by the names of its operations."""

import pytest
import torch

from adaftr_fast.ops.norms import squared_norm
from benchmarks.training.parts import OTHERS, part_of, parts


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("adaftr_fast::mlp", "dense layers, forward"),
        ("adaftr_fast::mlp_backward", "dense layers, backward"),
        ("adaftr_fast::embedding_and_squares_backward", "merge of the look-ups' gradients"),
        ("GeneratedBackwardFor_adaftr_fast_infonce_default", "contrastive loss"),
        ("aten::mul", OTHERS),
    ],
)
def test_part_of_an_operation(name: str, part: str) -> None:
    assert part_of(name) == part


def test_parts_make_up_the_profiled_time() -> None:
    found = parts(lambda: squared_norm([torch.ones(100_000)]), steps=1)
    assert found["penalty, and gradients scaled"] > 0
    assert found["whole step"] > 0
